"""Where probes live: frames A, their refresh, and what a refresh does to the momentum.

A leaf of shape (..., m, n) is perturbed and moved along A @ C, with a frame A (..., m, r) and
coordinates C (..., r, n). A frame is drawn at step 0 and refreshed every `refresh_every` steps
(arXiv 2605.09034, the momentum-projected subspace).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from . import _arrays, errors
from ._arrays import Array
from ._checks import as_python, check_count, check_name
from .draws import Draw
from .estimator import Weighted
from .sampling import Randomness

#: maps a leaf's number and the step to directions (..., m, c), the most important first, or None
Basis = Callable[[int, Any], Any]


class Subspace(Protocol):
    """How one leaf is seen: its view as matrices, its frame, and the way back."""

    refresh_every: Any  # steps between two refreshes; None where there are none

    @property
    def batches(self) -> bool:
        """Whether `refresh` takes stacks of frames and momenta; by default it does not."""
        return False

    def coordinate_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the coordinates of a leaf of the given shape."""
        ...

    def columns(self, shape: tuple[int, ...]) -> int:
        """Return the length n of a row of a leaf of the given shape, as the frame sees it."""
        ...

    def init(self, random: Randomness, leaf: int, x: Array) -> Array | None:
        """Return the frame at step 0; by default there is none."""
        return None

    def refresh(
        self,
        random: Randomness,
        leaf: int,
        step: Any,
        frame: Array | None,
        momentum: Array,
        spectral_rank: int | None,
    ) -> tuple[Array | None, Array | None]:
        """Return the new frame, and the matrix that carries momentum over (None: as it is).

        By default the frame is never refreshed.
        """
        return frame, None

    def factors(self, frame: Array | None, coordinates: Array) -> tuple[Array | None, Array]:
        """Return (left, right) whose product is the perturbation of the leaf in its own layout."""
        ...

    def project(self, frame: Array | None, gradient: Array) -> Array:
        """Return a gradient of the leaf's shape in subspace coordinates."""
        ...

    def observe(self, frame: Array | None, coordinates: Array, weighted: Weighted) -> Array | None:
        """Return the frame after the losses of a step were seen; by default as it is."""
        return frame


def orthonormal_frame(matrix: Array) -> Array:
    """Return the Q-factor of `matrix` (..., m, r) for an R-factor with a positive diagonal.

    With this sign rule the Q-factor is unique, and that of a Gaussian matrix is Haar-distributed
    (Mezzadri 2007, "How to generate random matrices from the classical compact groups").
    """
    xp = _arrays.namespace(matrix)
    q, r = xp.linalg.qr(matrix)
    diagonal = xp.linalg.diagonal(r)
    sign = xp.where(diagonal < 0, -1.0, xp.ones_like(diagonal))
    return q * sign[..., None, :]


def transport(new: Array, old: Array) -> Array:
    """Return ``A_new^T A_old``, by which coordinates go from one frame to the other."""
    return _arrays.transposed(new) @ old


def leading_left_vectors(momentum: Array, count: int) -> tuple[Array, Array]:
    """Return the leading left singular vectors of `momentum`, and which of them mean anything.

    Parameters
    ----------
    momentum : array of shape (..., r, n)
    count : int
        At most min(r, n).

    Returns
    -------
    vectors : array of shape (..., r, count)
        Each with its entry of largest magnitude positive.
    present : boolean array of shape (..., count)
        False where the singular value is at most max(r, n) eps times the largest: rounding noise.
    """
    xp = _arrays.namespace(momentum)
    largest = xp.max(xp.abs(momentum), axis=(-2, -1), keepdims=True)
    scaled = momentum / xp.where(largest > 0, largest, 1.0)
    u, s, _ = xp.linalg.svd(scaled, full_matrices=False)
    u, lead = u[..., :count], s[..., :count]
    top, bottom = xp.max(u, axis=-2, keepdims=True), xp.min(u, axis=-2, keepdims=True)
    u = xp.where(top >= -bottom, u, -u)
    cutoff = max(momentum.shape[-2:]) * _arrays.epsilon(momentum) * s[..., :1]
    return u, lead > cutoff


@dataclass(frozen=True)
class Sketch(Subspace):
    """Random low-rank subspace: left (or right) multiplication by an orthonormal frame.

    Parameters
    ----------
    rank : int
        Columns r of the frame; clipped to the number of rows, where the subspace is the space.
    refresh_kind : {"anchored", "haar"}
        ``"anchored"`` keeps the leading left singular vectors of the momentum and draws the rest
        (the paper's momentum-projected subspace), ``"haar"`` draws all of it anew.
    refresh_every : int
        Steps nu between two refreshes.
    side : {"left", "right"}
        ``"left"`` sketches the rows (the paper), ``"right"`` works on the transpose.
    stacked : bool
        Whether an array with more than two axes is a batch of matrices over its leading axes; by
        default it is one matrix (first axis, the rest).
    anchor_rank : int, optional
        Directions kept by an anchored refresh; by default those of the orthogonalizer. At most
        r // 2 are kept: a full anchor would freeze the subspace.
    basis : callable, optional
        Directions of one's own in the place of random ones, see `zomopi_core.zo_mopi`.
    """

    rank: int
    refresh_kind: str = "anchored"
    refresh_every: int = 100
    side: str = "left"
    stacked: bool = False
    anchor_rank: int | None = None
    basis: Basis | None = None

    def __post_init__(self) -> None:
        check_count("rank", self.rank)
        check_count("refresh_every", self.refresh_every)
        check_name("refresh", self.refresh_kind, ("anchored", "haar"))
        if self.basis is not None and not callable(self.basis):
            raise errors.wrong_basis(f"must be callable, got {type(self.basis).__name__}")
        check_name("side", self.side, ("left", "right"))
        if self.anchor_rank is not None:
            check_count("anchor_rank", self.anchor_rank)
        if not isinstance(self.stacked, bool):
            raise errors.not_a_number("stacked", self.stacked, "True or False")
        as_python(self, rank=int, refresh_every=int)

    @property
    def batches(self) -> bool:
        """Whether frames are random: directions of one's own are given for one leaf at a time."""
        return self.basis is None

    def _view(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return (..., m, n) as the frame sees the leaf."""
        if self.stacked or len(shape) == 2:
            *batch, m, n = shape
        else:
            batch, m, n = [], shape[0], 1
            for extent in shape[1:]:
                n *= extent
        return (*batch, m, n) if self.side == "left" else (*batch, n, m)

    def coordinate_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return (..., min(r, m), n)."""
        *batch, m, n = self._view(shape)
        return (*batch, min(self.rank, m), n)

    def columns(self, shape: tuple[int, ...]) -> int:
        """Return n."""
        return self._view(shape)[-1]

    def init(self, random: Randomness, leaf: int, x: Array) -> Array:
        """Return a Haar-distributed frame, or that of the basis."""
        *batch, m, _ = self._view(x.shape)
        return orthonormal_frame(self._columns(random, leaf, 0, (*batch, m, min(self.rank, m)), x))

    def _columns(
        self, random: Randomness, leaf: int, step: Any, shape: tuple[int, ...], like: Array
    ) -> Array:
        """Return the columns of a new frame: those of the basis, then Gaussian ones."""
        gauss = random.normal(Draw("sketch", leaf, step, None), shape, like)
        given = None if self.basis is None else self.basis(leaf, step)
        if given is None:
            return gauss
        if not _arrays.is_array(given) or tuple(given.shape[:-1]) != shape[:-1]:
            got = getattr(given, "shape", type(given).__name__)
            raise errors.wrong_basis(
                f"must return None or an array of shape {(*shape[:-1], 'c')} for leaf {leaf}, "
                f"got {got}"
            )
        given = _arrays.to_like(given, gauss)
        if given.shape[-1] > shape[-1]:
            given = given[..., : shape[-1]]
        rest = gauss[..., given.shape[-1] :]
        return _arrays.namespace(gauss).concat([given, rest], axis=-1)

    def refresh(
        self,
        random: Randomness,
        leaf: int,
        step: Any,
        frame: Array | None,
        momentum: Array,
        spectral_rank: int | None,
    ) -> tuple[Array | None, Array | None]:
        """Return a new frame and its transport ``A_new^T A_old``; both as they were if r = m."""
        if frame is None or frame.shape[-2] == frame.shape[-1]:
            return frame, None
        *batch, m, r = frame.shape
        anchors = 0
        if self.refresh_kind == "anchored":
            anchors = min(self.anchor_rank or spectral_rank or r, r // 2, *momentum.shape[-2:])
        columns = self._columns(random, leaf, step, (*batch, m, r - anchors), frame)
        if anchors:
            xp = _arrays.namespace(frame)
            vectors, present = leading_left_vectors(momentum, anchors)
            # A direction that the momentum does not have is replaced by a Gaussian column.
            spare = random.normal(Draw("sketch", leaf, step, 0), (*batch, m, anchors), frame)
            anchor = xp.where(present[..., None, :], frame @ vectors, spare)
            columns = xp.concat([anchor, columns], axis=-1)
        new = orthonormal_frame(columns)
        return new, transport(new, frame)

    def factors(self, frame: Array | None, coordinates: Array) -> tuple[Array | None, Array]:
        """Return (A, C), or (C^T, A^T) for the right side."""
        if self.side == "left":
            return frame, coordinates
        return _arrays.transposed(coordinates), _arrays.transposed(frame)

    def project(self, frame: Array | None, gradient: Array) -> Array:
        """Return ``A^T G``."""
        if not self.stacked and gradient.ndim > 2:
            gradient = _arrays.namespace(gradient).reshape(gradient, (gradient.shape[0], -1))
        gradient = _arrays.to_like(gradient, gradient)
        if self.side == "right":
            gradient = _arrays.transposed(gradient)
        return _arrays.transposed(frame) @ gradient


@dataclass(frozen=True)
class FullSpace(Subspace):
    """The leaf's own space: the coordinates are the entries, there is no frame.

    Parameters
    ----------
    as_matrix : bool
        Whether an array with more than two axes is seen as one matrix, (first axis, the rest), as
        whoever orthogonalizes it needs; by default its shape stays.
    """

    as_matrix: bool = False
    refresh_every: int | None = None

    def coordinate_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape itself, or (m, n)."""
        return (shape[0], math.prod(shape[1:])) if self.as_matrix else shape

    def columns(self, shape: tuple[int, ...]) -> int:
        """Return the length of the last axis, 1 if there is none."""
        return self.coordinate_shape(shape)[-1] if shape else 1

    def factors(self, frame: Array | None, coordinates: Array) -> tuple[None, Array]:
        """Return (None, C)."""
        return None, coordinates

    def project(self, frame: Array | None, gradient: Array) -> Array:
        """Return the gradient, in the working dtype."""
        if self.as_matrix:
            shape = self.coordinate_shape(tuple(gradient.shape))
            gradient = _arrays.namespace(gradient).reshape(gradient, shape)
        return _arrays.to_like(gradient, gradient)
