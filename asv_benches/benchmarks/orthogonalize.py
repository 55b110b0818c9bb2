"""Matrix signs, and how orthonormal the refreshed frame is."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

import zomopi_core as zo
from zomopi_core import _arrays

from .common import BACKENDS, BackendBenchmark


class Orthogonalize(BackendBenchmark):
    """Time of the matrix signs of M (r x n); the power iteration keeps k directions."""

    params: ClassVar = [BACKENDS, [(64, 4096, 32)]]
    param_names: ClassVar = ["backend", "(r, n, k)"]

    def setup(self, backend, sizes):
        super().setup(backend)
        r, n, k = sizes
        self.M = self.normal((r, n))
        self.V = self.xp.linalg.qr(self.normal((n, k)))[0]
        self.power_iteration = _arrays.compiled(zo.streaming_power_iteration, self.M)
        self.newton_schulz = _arrays.compiled(zo.newton_schulz, self.M)
        self.polar = _arrays.compiled(zo.polar, self.M)

    def time_streaming_power_iteration(self, backend, sizes):
        self.synchronize(*self.power_iteration(self.M, self.V))

    def time_newton_schulz(self, backend, sizes):
        self.synchronize(self.newton_schulz(self.M))

    def time_polar(self, backend, sizes):
        self.synchronize(self.polar(self.M))


class Frame(BackendBenchmark):
    """The anchored frame A (1024 x 64) in float32, after a refresh."""

    def setup(self, backend):
        super().setup(backend)
        self.x = self.normal((1024, 256))
        self.method = zo.zo_mopi(learning_rate=1e-3, rank=64, probes=4)

    def track_orthogonality_error(self, backend):
        losses = np.random.default_rng(0).standard_normal(self.method.evaluations_per_step)
        state, _ = self.method.update(self.method.init(self.x, seed=0), losses)
        frame = _arrays.to_host(self.method.refresh(state).leaves[0].frame).astype(np.float64)
        return float(np.max(np.abs(frame.T @ frame - np.eye(frame.shape[1]))))

    track_orthogonality_error.unit = "max |A^T A - I|"
