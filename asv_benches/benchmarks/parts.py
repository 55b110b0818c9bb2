"""The parts of a step alone: estimate, refresh."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

import zomopi_core as zo
from zomopi_core import _arrays

from .common import BACKENDS, BackendBenchmark, sizes


class Estimate(BackendBenchmark):
    """The gradient estimate from eight probes of r x n."""

    params: ClassVar = [BACKENDS, sizes((16, 64), (64, 4096))]
    param_names: ClassVar = ["backend", "(r, n)"]

    def setup(self, backend, shape):
        super().setup(backend)
        estimator = zo.zo_mopi(learning_rate=1e-3, probes=8).finite_difference
        losses = np.random.default_rng(0).standard_normal(len(estimator.evaluations))
        self.block = self.normal((8, *shape))
        coefficients = _arrays.to_like(estimator.differences(losses), self.block)
        self.weighted = estimator.weigh(coefficients)
        self.estimate = _arrays.compiled(estimator.gradient, self.block)
        self.time_estimate(backend, shape)  # compiles

    def time_estimate(self, backend, shape):
        self.synchronize(self.estimate(self.weighted, self.block))


class Refresh(BackendBenchmark):
    """A new sketch of m x 64 for a momentum of 64 x m, and the momentum in its coordinates."""

    params: ClassVar = [BACKENDS, sizes(256, 4096), ["anchored", "haar"]]
    param_names: ClassVar = ["backend", "m", "refresh"]

    def setup(self, backend, m, refresh):
        super().setup(backend)
        self.method = zo.zo_mopi(learning_rate=1e-3, rank=64, probes=4, refresh=refresh)
        losses = np.random.default_rng(0).standard_normal(self.method.evaluations_per_step)
        self.state, _ = self.method.update(self.method.init(self.normal((m, m)), 0), losses)

    def time_refresh(self, backend, m, refresh):
        leaf = self.method.refresh(self.state).leaves[0]
        self.synchronize(leaf.frame, leaf.momentum)
