"""Whole steps, with a function that costs nothing."""

from __future__ import annotations

import functools
from typing import ClassVar

import numpy as np

import zomopi_core as zo
from zomopi_core import _arrays

from .common import BACKENDS, BackendBenchmark, generator, sizes


@functools.cache
def step_method(rank):
    """Return one method for all set-ups: JAX compiles the functions of each method anew."""
    return zo.zo_mopi(learning_rate=1e-3, rank=rank, probes=4)


class Step(BackendBenchmark):
    """Propose, make all points, update, apply; four probes, central differences."""

    params: ClassVar = [
        BACKENDS,
        sizes(
            (64, 64, 16), (512, 512, 32), (1024, 1024, 64), (4096, 4096, 64), (16384, 16384, 64)
        ),
    ]
    param_names: ClassVar = ["backend", "(m, n, r)"]

    def setup(self, backend, sizes):
        super().setup(backend)
        m, n, rank = sizes
        self.require_gpu_for(n)
        self.method = step_method(rank)
        self.x = generator(self.normal((1,)))((m, n))
        self.state = self.method.init(self.x, seed=0)
        self.losses = np.random.default_rng(0).standard_normal(self.method.evaluations_per_step)
        self.propose = _arrays.compiled(self.method.propose, self.x)
        self.advance = _arrays.compiled(self.method.advance, self.x)
        self.time_step(backend, sizes)  # compiles

    def time_step(self, backend, sizes):
        probes = self.propose(self.state)
        for point in zo.perturb(self.method, self.x, probes):
            last = point
        coefficients = self.method.estimator.differences(self.losses)
        state, step = self.advance(self.state, coefficients, probes)
        # The host counts, as the drivers do: a count that lives on a device compiles once more.
        self.state = state._replace(step=self.state.step + 1)
        self.x = zo.apply_step(self.x, step)
        self.synchronize(last, self.x)


class Minimize(BackendBenchmark):
    """Ten steps of `minimize` on 64 x 64, with its start and its end."""

    def setup(self, backend):
        super().setup(backend)
        self.method = step_method(16)
        self.x0 = self.normal((64, 64))
        self.time_minimize(backend)  # compiles what does not belong to one run

    def time_minimize(self, backend):
        result = zo.minimize(lambda x: x[0, 0], self.x0, method=self.method, max_steps=10)
        self.synchronize(result.x_last)
