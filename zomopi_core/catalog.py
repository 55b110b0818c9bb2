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
    """Zeroth-order momentum with partial orthogonalization in a low-rank subspace (ZO-MOPI)."""
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


# In the order in which `methods` names them: the best described first.
_CATALOG: dict[str, Callable[..., Method]] = {"zo_mopi": zo_mopi}


def methods() -> tuple[str, ...]:
    """Return the names of the methods, the best described first.

    Returns
    -------
    tuple of str
        Each is the name of a function of this package that makes the method, and can be passed as
        ``method=``, with underscores or hyphens.

    Examples
    --------
    >>> import zomopi_core as zo
    >>> zo.methods()[0]
    'zo_mopi'
    """
    return tuple(_CATALOG)


def describe_methods() -> list[tuple[str, str]]:
    """Return (name, one line) of each method."""
    return [
        (name, (make.__doc__ or "").strip().splitlines()[0]) for name, make in _CATALOG.items()
    ]


def find_method(method: str | Method) -> Method:
    """Return the method of that name with its defaults, or the method itself."""
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        raise errors.wrong_method(method)
    name = method.replace("-", "_")
    if name not in _CATALOG:
        raise errors.unknown_name("method", method, _CATALOG)
    return _CATALOG[name]()
