"""A step against the least that it must do: passes over X and random numbers.

The floor of a central step of N probes is 2N + 1 of the best low-rank additions that the library
has, into memory that is there, N r n normal numbers of its own generator, and 2N copies of X
where every point is in new memory.
"""

from __future__ import annotations

import functools
import itertools
from typing import ClassVar, NamedTuple

import numpy as np

import zomopi_core as zo
from zomopi_core import _arrays

from .common import BACKENDS, BackendBenchmark, generator, interleaved_seconds, sizes, turns

PROBES = 4


class Ceilings(NamedTuple):
    """Seconds of what a step is made of, each the least of several rounds."""

    addition: float  # X += A C in place
    copy: float  # X to new memory
    normals: float  # N r n
    product: float  # of two square matrices, for the rate of multiplication


class Floor(BackendBenchmark):
    """X of n x n in float32, four probes, central differences, a function that costs nothing."""

    params: ClassVar = [BACKENDS, sizes(256, 1024, 4096, 16384), ["fresh", "reused"]]
    param_names: ClassVar = ["backend", "n", "buffers"]
    rank = 64
    turns = turns(5)
    timeout = 600

    def setup(self, backend, n, buffers="fresh", method=None, dtype="float32"):
        super().setup(backend)
        self.require_gpu_for(n)
        kind = getattr(self.xp, dtype)  # AttributeError where the library has none
        draw = generator(self.normal((1,)))
        shapes = (n, n), (n, self.rank), (self.rank, n)
        self.x, self.left, self.right = (self.xp.astype(draw(s), kind) for s in shapes)
        self.losses = itertools.cycle(np.random.default_rng(1).standard_normal(997).tolist())
        self.buffers = buffers
        self.optimizer = zo.Optimizer(
            self.x,
            method=method
            or zo.zo_mopi(learning_rate=1e-3, rank=self.rank, probes=PROBES, refresh_every=10**6),
            reuse_buffers=buffers == "reused",
        )
        self.step()

    def step(self):
        """Take a step."""
        points = self.optimizer.ask()
        losses = []
        for point in points:
            losses.append(next(self.losses))
            self.synchronize(point)
        self.optimizer.tell(losses)
        self.synchronize(self.optimizer.x)

    def ceilings(self):
        """Return functions that do what a step is made of, once each."""
        library = _arrays.library(self.xp)
        n, sketch = self.x.shape[0], (PROBES, self.rank, self.x.shape[1])
        own = generator(self.x)
        memory = _arrays.copy(self.x)
        square = self.x[: min(n, 2048), : min(n, 2048)]

        def addition():
            self.synchronize(_added(library, memory, self.left, self.right))

        return [
            addition,
            lambda: self.synchronize(_arrays.copy(self.x)),
            lambda: self.synchronize(own(sketch)),
            lambda: self.synchronize(square @ square),
        ]

    def seconds(self):
        """Return the seconds of a step and the ceilings, measured in turns."""
        functions = [self.step, *self.ceilings()]
        least = interleaved_seconds(functions, self.turns).min(axis=0)
        return float(least[0]), Ceilings(*map(float, least[1:]))

    def floor(self, ceilings):
        """Return the least seconds of a step."""
        copies = 2 * PROBES * ceilings.copy if self.buffers == "fresh" else 0.0
        return (2 * PROBES + 1) * ceilings.addition + ceilings.normals + copies

    def time_step(self, backend, n, buffers):
        self.step()

    def track_step_over_floor(self, backend, n, buffers):
        step, ceilings = self.seconds()
        return step / self.floor(ceilings)

    track_step_over_floor.unit = "ratio"


def _added(library, x, left, right):
    """Return X after the best addition of a low-rank product that a library has, in place."""
    if library == "numpy":
        from scipy.linalg.blas import sgemm

        return sgemm(1e-6, right.T, left.T, 1.0, x.T, overwrite_c=True)
    if library == "torch":
        return x.addmm_(left, right, alpha=1e-6)
    if library == "cupy":
        import cupy.cublas

        return cupy.cublas.gemm("N", "N", left, right, out=x, alpha=1e-6, beta=1.0)
    return _jax_addition()(x, left, right)


@functools.cache
def _jax_addition():
    import jax

    # Not donated: the memory is needed again. It is the fastest that JAX does to the same X.
    return jax.jit(lambda x, left, right: x + 1e-6 * (left @ right))


class Structured(BackendBenchmark):
    """Least squares ``mean((X W - Y)^2)`` with `structured=True`, against one evaluation."""

    params: ClassVar = [BACKENDS, sizes((256, 512, 64), (2048, 8192, 512))]
    param_names: ClassVar = ["backend", "(m, n, columns of W)"]
    rank = 64
    turns = turns(5)
    timeout = 600

    def setup(self, backend, sizes):
        super().setup(backend)
        m, n, p = sizes
        self.x, self.w, self.y = self.normal((m, n)), self.normal((n, p)), self.normal((m, p))
        method = zo.zo_mopi(learning_rate=1e-3, rank=self.rank, probes=PROBES, refresh_every=10**6)
        self.optimizer = zo.Optimizer(self.x, method=method, reuse_buffers=True)
        self.step()

    def loss(self, matrix):
        """Return the mean of squares, of a matrix or of what stands for it."""
        residual = matrix @ self.w - self.y
        return self.xp.mean(residual * residual)

    def step(self):
        """Take a step."""
        points = self.optimizer.ask().perturbed()
        self.optimizer.tell([self.loss(point) for point in points])
        self.synchronize(self.optimizer.x)

    def time_step(self, backend, sizes):
        self.step()

    def track_step_over_one_evaluation(self, backend, sizes):
        one = self.xp.asarray(self.x)
        functions = [self.step, lambda: self.synchronize(self.loss(one))]
        step, single = interleaved_seconds(functions, self.turns).min(axis=0)
        return float(step / single)

    track_step_over_one_evaluation.unit = "ratio"


class StackedLeaves(BackendBenchmark):
    """The orthogonalization of 48 matrices of 512 x 512 as a stack, against one by one."""

    params: ClassVar = [BACKENDS, sizes((16, 8), (32, 16), (64, 32))]
    param_names: ClassVar = ["backend", "(r, k)"]
    leaves = 48
    turns = turns(9)

    def setup(self, backend, ranks):
        from zomopi_core import rule as parts

        super().setup(backend)
        r, k = ranks
        self.rule = zo.zo_mopi(learning_rate=1e-3, rank=r, spectral_rank=k).matrices
        momenta = [self.normal((r, 512)) for _ in range(self.leaves)]
        right = self.xp.linalg.qr(self.normal((512, k)))[0]
        self.averaged = [parts.Averaged(m, None, m, right) for m in momenta]
        self.together = parts.directions

    def stacked(self):
        """Compute all directions as a stack."""
        draws = [(None, i, 0) for i in range(self.leaves)]
        rules = [self.rule] * self.leaves
        self.synchronize(*(d.direction for d in self.together(rules, self.averaged, draws)))

    def one_by_one(self):
        """Compute the directions one after the other."""
        found = [self.rule.orthogonalize(a, (None, i, 0)) for i, a in enumerate(self.averaged)]
        self.synchronize(*(d.direction for d in found))

    def time_stacked(self, backend, ranks):
        self.stacked()

    def track_stacked_over_one_by_one(self, backend, ranks):
        functions = [self.stacked, self.one_by_one]
        seconds = interleaved_seconds(functions, self.turns).min(axis=0)
        return float(seconds[0] / seconds[1])

    track_stacked_over_one_by_one.unit = "ratio"


class StackedRefresh(BackendBenchmark):
    """The refresh of 48 matrices of 512 x 512, each with a momentum, as a stack and one by one.

    A run takes the way that is faster on its backend.
    """

    params: ClassVar = [BACKENDS, sizes(16, 64)]
    param_names: ClassVar = ["backend", "r"]
    leaves = 48
    turns = turns(5)

    def setup(self, backend, rank):
        from zomopi_core import rule as parts

        super().setup(backend)
        method = zo.zo_mopi(learning_rate=1e-3, rank=rank, probes=1)
        start = {f"W{i:02}": self.normal((512, 512)) for i in range(self.leaves)}
        self.state, _ = method.update(method.init(start, 0), np.asarray([1.0, 0.5]))
        self.rule, self.together = method.matrices, parts.refresh_stack

    def wait_for(self, leaves):
        """Wait for new states."""
        self.synchronize(*(x for leaf in leaves for x in (leaf.frame, leaf.momentum)))

    def stacked(self):
        """Refresh all as a stack."""
        _, _, leaves, random = self.state
        self.wait_for(self.together(self.rule, list(leaves), random, range(len(leaves)), 100))

    def one_by_one(self):
        """Refresh one after the other."""
        _, _, leaves, random = self.state
        self.wait_for([self.rule.refresh(random, i, 100, x) for i, x in enumerate(leaves)])

    def time_stacked(self, backend, rank):
        self.stacked()

    def track_stacked_over_one_by_one(self, backend, rank):
        functions = [self.stacked, self.one_by_one]
        seconds = interleaved_seconds(functions, self.turns).min(axis=0)
        return float(seconds[0] / seconds[1])

    track_stacked_over_one_by_one.unit = "ratio"
