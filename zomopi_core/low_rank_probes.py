"""Probes that are low-rank on both sides: pairs U V^T, and a small matrix between two frames."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from . import _arrays
from ._arrays import Array
from ._checks import as_python, check_count
from .draws import Draw
from .sampling import Randomness
from .subspace import Subspace, orthonormal_frame


def _flat(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return a leaf's shape as that of one matrix, (first axis, the rest)."""
    return shape[0], math.prod(shape[1:])


@dataclass(frozen=True)
class GaussianPairs(Subspace):
    """Probes ``U V^T``: U fresh for each, V drawn at a refresh (LOZO, arXiv 2410.07698).

    The frame is V (n x r), standard normal and not orthonormal; the coordinates are U (m x r).

    Parameters
    ----------
    rank : int
        r.
    refresh_every : int
        nu.
    """

    rank: int
    refresh_every: int = 100

    def __post_init__(self) -> None:
        check_count("rank", self.rank)
        check_count("refresh_every", self.refresh_every)
        as_python(self, rank=int, refresh_every=int)

    def coordinate_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return (m, r)."""
        return shape[0], self.rank

    def columns(self, shape: tuple[int, ...]) -> int:
        """Return n."""
        return _flat(shape)[1]

    def init(self, random: Randomness, leaf: int, x: Array) -> Array:
        """Return V."""
        return random.normal(Draw("sketch", leaf, 0, None), (_flat(x.shape)[1], self.rank), x)

    def refresh(
        self,
        random: Randomness,
        leaf: int,
        step: Any,
        frame: Array | None,
        momentum: Array,
        spectral_rank: int | None,
    ) -> tuple[Array | None, Array | None]:
        """Return V_new, and the transport by which N becomes ``N V_old^T V_new / n``."""
        assert frame is not None
        new = random.normal(Draw("sketch", leaf, step, None), tuple(frame.shape), frame)
        return new, (None, (_arrays.transposed(frame) @ new) / frame.shape[0])

    def factors(self, frame: Array | None, coordinates: Array) -> tuple[Array | None, Array]:
        """Return (U, V^T)."""
        return coordinates, _arrays.transposed(frame)

    def project(self, frame: Array | None, gradient: Array) -> Array:
        """Return ``G V``."""
        matrix = _arrays.namespace(gradient).reshape(gradient, _flat(gradient.shape))
        return _arrays.to_like(matrix, matrix) @ frame


@dataclass(frozen=True)
class TwoSided(Subspace):
    """Probes ``sqrt(m n / r^2) U Z V^T`` with orthonormal U, V (SubZero, arXiv 2410.08989).

    The frame is the pair (U, V), scaled so that the probe has the norm of a full one; the
    coordinates are Z (r x r).

    Parameters
    ----------
    rank : int
        r; clipped to min(m, n).
    refresh_every : int
        nu.
    """

    rank: int
    refresh_every: int = 500

    def __post_init__(self) -> None:
        check_count("rank", self.rank)
        check_count("refresh_every", self.refresh_every)
        as_python(self, rank=int, refresh_every=int)

    def coordinate_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return (r, r)."""
        r = min(self.rank, *_flat(shape))
        return r, r

    def columns(self, shape: tuple[int, ...]) -> int:
        """Return n."""
        return _flat(shape)[1]

    def _frames(self, random: Randomness, leaf: int, step: Any, m: int, n: int, x: Array) -> Any:
        r = min(self.rank, m, n)
        left = random.normal(Draw("sketch", leaf, step, None), (m, r), x)
        right = random.normal(Draw("right", leaf, step, None), (n, r), x)
        scale = math.sqrt(m * n) / r
        return orthonormal_frame(left) * scale, orthonormal_frame(right)

    def init(self, random: Randomness, leaf: int, x: Array) -> Any:
        """Return (sqrt(m n / r^2) U, V)."""
        return self._frames(random, leaf, 0, *_flat(x.shape), x)

    def refresh(
        self,
        random: Randomness,
        leaf: int,
        step: Any,
        frame: Any,
        momentum: Array,
        spectral_rank: int | None,
    ) -> tuple[Any, Any]:
        """Return new frames, and the pair of transports ``U_new^T U_old``, ``V_old^T V_new``."""
        left, right = frame
        new = self._frames(random, leaf, step, left.shape[0], right.shape[0], left)
        scale = left.shape[0] * right.shape[0] / left.shape[1] ** 2
        across = (_arrays.transposed(new[0]) @ left) / scale
        return new, (across, _arrays.transposed(right) @ new[1])

    def factors(self, frame: Any, coordinates: Array) -> tuple[Array | None, Array]:
        """Return (sqrt(m n / r^2) U, Z V^T)."""
        return frame[0], coordinates @ _arrays.transposed(frame[1])

    def project(self, frame: Any, gradient: Array) -> Array:
        """Return ``sqrt(m n / r^2) U^T G V``."""
        matrix = _arrays.namespace(gradient).reshape(gradient, _flat(gradient.shape))
        return _arrays.transposed(frame[0]) @ _arrays.to_like(matrix, matrix) @ frame[1]
