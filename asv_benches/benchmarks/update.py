"""The low-rank update X + s A C, the one pass over X that every point of a step takes."""

from __future__ import annotations

from zomopi_core import _arrays

from .common import BackendBenchmark, interleaved_seconds, median_ratio


class LowRankUpdate(BackendBenchmark):
    """X of 1024 x 1024, A and C of rank 64, float32."""

    rounds = 9

    def setup(self, backend):
        super().setup(backend)
        self.x = self.normal((1024, 1024))
        self.left, self.right = self.normal((1024, 64)), self.normal((64, 1024))
        self.time_low_rank_update(backend)  # compiles

    def time_low_rank_update(self, backend):
        self.synchronize(_arrays.low_rank_update(self.x, self.left, self.right, 1e-3))

    def track_update_over_copy(self, backend):
        def update():
            self.time_low_rank_update(backend)

        def copy():
            self.synchronize(_arrays.copy(self.x))

        return median_ratio(interleaved_seconds([update, copy], self.rounds))

    track_update_over_copy.unit = "ratio"
