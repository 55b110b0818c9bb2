"""How many directions of the momentum to step along, told from the losses of the next probes.

The estimate G of a step does not depend on the momentum M it is averaged into next, so that
``<G, O>`` is an unbiased measure of the slope of F along any direction O made of the momentum
before. Averaged over steps, it says which of several directions of the same length descends
most: the top k singular directions with equal weight, k = 1, 2, 4, ..., or all of them weighted
by their singular values (M itself).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from . import _arrays
from ._arrays import Array
from .orthogonalize import Direction, Normal, scaled_to_one
from .power_iteration import PowerIteration, sweep

# Steps over which slopes are averaged, and by how much another choice must be better: the noise
# of a slope is that of a single estimate, and changing back and forth costs more than it brings.
_AVERAGE = 50.0
_BETTER = 1.05


class Spectrum(NamedTuple):
    """What `AdaptiveRank` keeps of a leaf.

    Attributes
    ----------
    right : array of shape (..., n, k)
        V.
    left : array of shape (..., r, k)
        U of the step before, in the coordinates of the frame.
    slopes : array of shape (..., choices)
        Averaged ``<G, O_j>`` for directions O_j of Frobenius norm 1.
    choice : array of shape (..., choices)
        1 for the direction in use, else 0.
    count : 0-d array
        Number of estimates that the slopes have seen.
    """

    right: Array
    left: Array
    slopes: Array
    choice: Array
    count: Array


@dataclass(frozen=True)
class AdaptiveRank(PowerIteration):
    """``O = sqrt(K / k) U_k V_k^T`` or ``O = sqrt(K) M / norm(M)``, whichever descends most.

    All directions have the Frobenius norm sqrt(K), so that what is chosen does not change the
    length of a step. One warm-started sweep of power iteration as in `PowerIteration`, of
    K = spectral_rank directions (by default r // 2); k is masked within that fixed shape.
    """

    def _ranks(self, kept: int) -> tuple[int, ...]:
        powers = [2**i for i in range(kept.bit_length())]
        return tuple(dict.fromkeys([*powers, kept]))

    def init(self, momentum: Array, normal: Normal) -> Any:
        """Return a Gaussian Q-factor V and slopes of zero; M itself is in use."""
        xp = _arrays.namespace(momentum)
        right = super().init(momentum, normal)
        *batch, r, _ = momentum.shape
        width = int(right.shape[-1])
        choices = len(self._ranks(width)) + 1
        place = {"dtype": momentum.dtype, "device": _arrays.device(momentum)}
        slopes = xp.zeros((*batch, choices), **place)
        last = xp.arange(choices, **place) == choices - 1
        return Spectrum(
            right,
            xp.zeros((*batch, r, width), **place),
            slopes,
            slopes + xp.astype(last, momentum.dtype),
            xp.zeros((), **place),
        )

    def observe(self, kept: Any, momentum: Array, gradient: Array, alive: Array) -> Spectrum:
        """Return what is kept after an estimate was seen that `momentum` does not hold yet."""
        xp = _arrays.namespace(momentum)
        ranks = self._ranks(int(kept.right.shape[-1]))
        # u_j^T G v_j for all j, then sums over the first k
        along = xp.sum(
            (_arrays.transposed(kept.left) @ gradient) * _arrays.transposed(kept.right), axis=-1
        )
        total = xp.cumulative_sum(along, axis=-1)
        measured = [total[..., k - 1] / math.sqrt(k) for k in ranks]
        scaled, _ = scaled_to_one(momentum)
        norm = xp.sqrt(xp.sum(scaled * scaled, axis=(-2, -1)))
        inner = xp.sum(scaled * gradient, axis=(-2, -1))
        measured.append(inner / xp.where(norm > 0, norm, 1.0))
        count = kept.count + alive
        # A plain mean at first; the first estimate of all meets no momentum and says nothing.
        pace = alive / xp.where(count < _AVERAGE, xp.where(count > 1, count - 1.0, 1.0), _AVERAGE)
        slopes = kept.slopes + pace * (xp.stack(measured, axis=-1) - kept.slopes)
        choice = self._choose(kept.choice, slopes)
        return Spectrum(kept.right, kept.left, slopes, choice, count)

    @staticmethod
    def _choose(choice: Array, slopes: Array) -> Array:
        xp = _arrays.namespace(slopes)
        current = xp.sum(slopes * choice, axis=-1, keepdims=True)
        best = xp.max(slopes, axis=-1, keepdims=True)
        change = best > current + (_BETTER - 1.0) * xp.abs(current)
        index = xp.argmax(slopes, axis=-1, keepdims=True)
        places = xp.arange(slopes.shape[-1], device=_arrays.device(slopes))
        return xp.where(change, xp.astype(places == index, slopes.dtype), choice)

    def direction(self, momentum: Array, kept: Any, normal: Normal) -> Direction:
        """Return O, keeping V, U and the slopes."""
        xp = _arrays.namespace(momentum)
        left, right = sweep(momentum, kept.right)
        width = int(right.shape[-1])
        ranks = self._ranks(width)
        place = {"dtype": momentum.dtype, "device": _arrays.device(momentum)}
        # Weight of column j under each choice of k: 1 / sqrt(k) where j < k. The last row is for
        # M itself, which takes no part of the columns.
        rows = [[1.0 / math.sqrt(k) if j < k else 0.0 for j in range(width)] for k in ranks]
        table = xp.asarray([*rows, [0.0] * width], **place)
        weights = kept.choice[..., None, :] @ table  # (..., 1, width)
        scaled, present = scaled_to_one(momentum)
        norm = xp.sqrt(xp.sum(scaled * scaled, axis=(-2, -1), keepdims=True))
        whole = kept.choice[..., None, -1:] * scaled / xp.where(present, norm, 1.0)
        direction = whole + (left * weights) @ _arrays.transposed(right)
        return Direction(math.sqrt(width) * direction, kept._replace(right=right, left=left))

    def refresh(self, kept: Any, normal: Normal, transport: Any = None) -> Any:
        """Return what is kept with U in the coordinates of the new frame."""
        return kept if transport is None else kept._replace(left=transport @ kept.left)

    def rank(self, kept: Any) -> int | None:
        """Return K."""
        return super().rank(kept.right)

    def squares(self, momentum: Array, kept: Any) -> float:
        """Return K, times the matrices of the batch."""
        return super().squares(momentum, kept.right)
