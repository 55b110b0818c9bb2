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
    """Make ZO-MOPI: low-rank probes, momentum, and its top singular directions as the step.

    With a frame A (m x r), probes B_i (r x n) and central differences, step t is::

        c_i = (F(X + mu A B_i) - F(X - mu A B_i)) / (2 mu)     i = 1..N
        G   = (1/N) sum_i c_i B_i
        M   = beta M + (1 - beta) G
        V   = Q-factor of M^T (M V)                            n x k, warm
        U   = columns of M V, each normalised
        X   = X - eta A U V^T - eta lambda X

    Every nu steps the frame is refreshed and the momentum carried over to it,
    ``M <- A_new^T A_old M``.

    Parameters
    ----------
    learning_rate : float or callable, optional
        eta, the spectral norm of a step in units of the parameters: a number or a schedule
        (`constant`, `linear_decay`, `cosine_decay`, any callable of the step). By default the
        entries of a step have a root mean square of 0.01 max(rms(x0), 1/sqrt(n)), n the columns;
        `minimize`, which knows the number T of steps, takes 0.5 / sqrt(T) in the place of 0.01
        and lets the rate fall linearly to zero.
    rank : int
        Columns r of the frame; clipped to the rows m.
    spectral_rank : int, optional
        Directions k of a step; by default r // 2 of the clipped r, at least one. Clipped to
        min(r, n).
    probes : int
        Directions N probed per step.
    smoothing : float
        mu, the standard deviation of a probe's coordinates in units of the parameters; its
        entries have sqrt(r / m) of that.
    momentum : float
        beta, from 0 up to, not including, 1.
    refresh_every : int
        nu, the steps between two refreshes of the frame.
    refresh : {"anchored", "haar"}
        ``"anchored"`` keeps the min(k, r // 2) leading left singular vectors of the momentum,
        ``"haar"`` draws the frame anew.
    difference : {"central", "forward", "leave-one-out"}
        2N, N + 1 or N evaluations a step; leave-one-out needs two probes or more.
    weight_decay : float
        lambda, decoupled: the parameters shrink by eta lambda a step.
    vector_learning_rate : float or callable, optional
        Root mean square of a step's entries for arrays with one axis or none, which are probed
        in their full space and take normalised steps. Its default is that of `learning_rate`,
        n being the number of entries.
    side : {"left", "right"}
        Whether the rows (the paper) or the columns are sketched.
    stacked : bool
        Whether arrays with more than two axes are batches of matrices over the leading axes; by
        default they are one matrix, (first axis, the rest).

    Returns
    -------
    Method

    Raises
    ------
    ValueError
        If an option is out of range; the message names it.

    References
    ----------
    arXiv 2605.09034, ZO-MOPI.

    Examples
    --------
    >>> import zomopi_core as zo
    >>> method = zo.zo_mopi(learning_rate=0.01, rank=16, probes=2)
    >>> method.evaluations_per_step
    4
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
        Update(vector_learning_rate, weight_decay, name="vector_learning_rate"),
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
