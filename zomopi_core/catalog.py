"""The named methods, each a composition of the five parts with its paper's defaults."""

from __future__ import annotations

from collections.abc import Callable

from . import errors
from .estimator import FiniteDifference
from .method import Method, Rule
from .momentum import ExponentialAverage
from .orthogonalize import NormalizedVector, PowerIteration
from .subspace import FullSpace, Sketch
from .update import Schedule, Update


def zo_mopi(
    *,
    learning_rate: float | Schedule | None = None,
    rank: int = 64,
    spectral_rank: int | None = None,
    probes: int = 4,
    smoothing: float = 1e-3,
    momentum: float = 0.9,
    refresh_every: int = 100,
    refresh: str = "anchored",
    difference: str = "central",
    weight_decay: float = 0.0,
    vector_learning_rate: float | Schedule | None = None,
    side: str = "left",
    stacked: bool = False,
) -> Method:
    """Zeroth-order momentum with partial orthogonalization in a low-rank subspace (ZO-MOPI).
    """
    matrices = Rule(
        Sketch(rank, refresh, refresh_every, side, stacked),
        ExponentialAverage(momentum),
        PowerIteration(spectral_rank),
        Update(learning_rate, weight_decay),
    )
    vectors = Rule(
        FullSpace(),
        ExponentialAverage(momentum),
        NormalizedVector(),
        Update(vector_learning_rate, weight_decay),
    )
    return Method("zo_mopi", FiniteDifference(probes, smoothing, difference), matrices, vectors)
