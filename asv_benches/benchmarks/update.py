"""The low-rank update X + s A C, the one pass over X that every point of a step takes."""

from __future__ import annotations

from typing import ClassVar

from zomopi_core import _arrays

from .common import (
    BACKENDS,
    BackendBenchmark,
    interleaved_seconds,
    median_ratio,
    sizes,
    turns,
)


class LowRankUpdate(BackendBenchmark):
    """X of n x n, A and C of rank 64, float32."""

    params: ClassVar = [BACKENDS, sizes(64, 1024, 4096)]
    param_names: ClassVar = ["backend", "n"]
    turns = turns(9)

    def setup(self, backend, n):
        super().setup(backend)
        self.x = self.normal((n, n))
        self.left, self.right = self.normal((n, 64)), self.normal((64, n))
        self.out = _arrays.empty_like(self.x)
        self.time_low_rank_update(backend, n)  # compiles

    def time_low_rank_update(self, backend, n):
        self.synchronize(_arrays.low_rank_update(self.x, self.left, self.right, 1e-3))

    def time_low_rank_update_into_memory(self, backend, n):
        if self.out is None:
            raise NotImplementedError("arrays of this library are not written to")
        self.synchronize(
            _arrays.low_rank_update(self.x, self.left, self.right, 1e-3, out=self.out)
        )

    def track_update_over_copy(self, backend, n):
        def update():
            self.time_low_rank_update(backend, n)

        def copy():
            self.synchronize(_arrays.copy(self.x))

        return median_ratio(interleaved_seconds([update, copy], self.turns))

    track_update_over_copy.unit = "ratio"
