"""Draws of the native samplers, and what a key costs beyond the library's own generator."""

from __future__ import annotations

import itertools
from typing import ClassVar

import numpy as np

import zomopi_core as zo
from zomopi_core import _arrays
from zomopi_core.sampling import native_sampler

from .common import BACKENDS, BackendBenchmark, interleaved_seconds, sizes, turns


class NativeDraw(BackendBenchmark):
    """One draw of the probes' stream in float32, with a new key each time."""

    params: ClassVar = [BACKENDS, sizes((16, 64), (64, 4096))]
    param_names: ClassVar = ["backend", "shape"]

    def setup(self, backend, shape):
        super().setup(backend)
        self.like = self.normal((1, 1))
        self.sampler = native_sampler(0, self.like)
        self.steps = itertools.count()
        self.time_draw(backend, shape)  # compiles

    def time_draw(self, backend, shape):
        draw = zo.Draw("probe", 0, next(self.steps), None)
        self.synchronize(
            self.sampler.normal(draw, shape, dtype=self.like.dtype, device=self.device)
        )


class SmallDraw(BackendBenchmark):
    """Four numbers: what remains is the cost of a key."""

    shape = (2, 2)
    draws = 200
    turns = turns(9)

    def setup(self, backend):
        super().setup(backend)
        self.like = self.normal((1, 1))
        self.sampler = native_sampler(0, self.like)
        self.steps = itertools.count()
        self.own = self._own_generator()

    def _own_generator(self):
        """Return a function that draws from the library's generator, which exists already."""
        library, dtype = _arrays.library(self.xp), self.like.dtype
        if library == "torch":
            import torch

            return lambda: torch.randn(self.shape, dtype=dtype, device=self.device)
        if library == "cupy":
            import cupy

            generator = cupy.random.default_rng(0)
            return lambda: generator.standard_normal(self.shape, dtype=dtype)
        if library == "jax":
            import jax

            key = jax.random.key(0)
            return lambda: jax.random.normal(key, self.shape, dtype)
        generator = np.random.Generator(np.random.Philox(0))
        return lambda: generator.standard_normal(self.shape, dtype=dtype)

    def draw(self):
        """Draw from the sampler, with a new key."""
        draw = zo.Draw("probe", 0, next(self.steps), None)
        return self.sampler.normal(draw, self.shape, dtype=self.like.dtype, device=self.device)

    def _repeated(self, function):
        def run():
            for _ in range(self.draws):
                last = function()
            self.synchronize(last)

        return run

    def seconds(self):
        """Return the seconds (rounds, 2) of one draw from the sampler and from the library."""
        functions = [self._repeated(self.draw), self._repeated(self.own)]
        return interleaved_seconds(functions, self.turns) / self.draws

    def track_draw_overhead_us(self, backend):
        seconds = self.seconds()
        return float(np.median(seconds[:, 0] - seconds[:, 1]) * 1e6)

    track_draw_overhead_us.unit = "us"
