"""Peak memory of whole runs, that of the process with its libraries included."""

from __future__ import annotations

import zomopi_core as zo

from .common import BackendBenchmark


class Memory(BackendBenchmark):
    """X of 2048 x 2048 in float32: 16 MiB."""

    def setup(self, backend):
        super().setup(backend)
        self.x0 = self.normal((2048, 2048))

    def minimize(self, reuse_buffers, max_steps=3, **options):
        """Take a few steps."""
        options = options or {"learning_rate": 1e-3}
        method = zo.zo_mopi(rank=64, probes=2, **options)
        result = zo.minimize(
            lambda x: x[0, 0],
            self.x0,
            method=method,
            max_steps=max_steps,
            reuse_buffers=reuse_buffers,
        )
        self.synchronize(result.x_last)

    def peakmem_minimize(self, backend):
        self.minimize(False)

    def peakmem_minimize_reusing_buffers(self, backend):
        self.minimize(True)

    def peakmem_minimize_tuned_reusing_buffers(self, backend):
        # as many steps as the first searches take, so that all that tuning holds is there
        self.minimize(True, max_steps=20, learning_rate="auto", smoothing="auto")

    def peakmem_parameters_alone(self, backend):
        self.synchronize(self.x0)
