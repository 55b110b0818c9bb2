"""The named methods, each a composition of the five parts with its paper's defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from . import errors
from ._checks import check_name
from .adaptive_rank import AdaptiveRank
from .estimator import FiniteDifference
from .first_order import adago, aro, dion, low_rank_msgd, low_rank_muon, mopi, muon
from .linear_methods import hizoo, mezo, mezo_adam, mezo_momentum, mezo_svrg, zo_sgd
from .low_rank_methods import lozo, lozo_m, subzero
from .method import Method
from .momentum import ExponentialAverage
from .newton_schulz import NewtonSchulz
from .orthogonalize import Normalized, Orthogonalizer, Plain, PolarFactor
from .power_iteration import PowerIteration
from .rule import Rule
from .subspace import Basis, FullSpace, Sketch
from .update import Schedule, Update

Rate = float | Schedule | str | None


def zo_mopi(
    *,
    learning_rate: Rate = None,
    rank: int = 64,
    spectral_rank: int | str | None = None,
    probes: int | None = None,
    smoothing: float | str | None = None,
    momentum: float | None = None,
    refresh_every: int = 100,
    refresh: str = "anchored",
    difference: str | None = None,
    weight_decay: float = 0.0,
    vector_learning_rate: Rate = None,
    side: str = "left",
    stacked: bool = False,
    basis: Basis | None = None,
) -> Method:
    """Make ZO-MOPI: low-rank probes, top directions of their momentum.

    With a frame A (m x r), probes B_i (r x n) and central differences, step t is::

        c_i = (F(X + mu A B_i) - F(X - mu A B_i)) / (2 mu)     i = 1..N
        G   = (1/N) sum_i c_i B_i
        M   = beta M + (1 - beta) G
        V   = Q-factor of M^T (M V)                            n x k, warm
        U   = columns of M V, each normalised
        X   = X - eta A U V^T - eta lambda X

    Every nu steps the frame is refreshed and the momentum carried over to it,
    ``M <- A_new^T A_old M``.

    `minimize` tunes what is not given, as it does for ``learning_rate="auto"``, or sets it to what
    was found best (docs, benchmarks). With a learning rate, and in `Optimizer` without one, it has
    the paper's value:

    =============  ==================================  ==============
    option         tuned                               else
    =============  ==================================  ==============
    smoothing      ``"auto"``                          1e-3
    spectral_rank  ``"auto"``                          r // 2
    momentum       by the unknowns, unbiased           0.9
    probes         8                                   4
    difference     leave-one-out; central for 1 probe  central
    =============  ==================================  ==============

    Parameters
    ----------
    learning_rate : float, callable or "auto", optional
        eta, the spectral norm of a step in units of the parameters: a number or a schedule
        (`constant`, `linear_decay`, `cosine_decay`, any callable of the step). ``"auto"``
        measures it by line searches during the run (`zomopi_core.tuning`); some of the points
        that `Optimizer.ask` returns then lie along the last step. In `Optimizer`, the default is
        a constant rate at which the entries of a step have a root mean square of
        0.01 max(rms(x0), 1/sqrt(n)), n the columns.
    rank : int
        Columns r of the frame; clipped to the rows m.
    spectral_rank : int or "auto", optional
        Directions k of a step, clipped to min(r, n). ``"auto"`` finds out from the losses whether
        a few of the r // 2 directions descend most, all of them, or the whole momentum weighted
        by its singular values (`zomopi_core.adaptive_rank`).
    probes : int, optional
        Directions N probed per step.
    smoothing : float or "auto", optional
        mu, the standard deviation of a probe's coordinates in units of the parameters; its
        entries have sqrt(r / m) of that. ``"auto"`` measures the noise of F and follows the
        learning rate.
    momentum : float, optional
        beta, from 0 up to, not including, 1, and M = G at the first step. Where it is not given
        and the learning rate is tuned, the memory is one evaluation for 24 unknowns, within 32
        and 320 evaluations; the average starts from zero and is divided by the sum of its
        weights, so that the first estimates weigh no more than those that follow.
    refresh_every : int
        nu, the steps between two refreshes of the frame.
    refresh : {"anchored", "haar"}
        ``"anchored"`` keeps the min(k, r // 2) leading left singular vectors of the momentum,
        ``"haar"`` draws the frame anew.
    difference : {"central", "forward", "leave-one-out"}, optional
        2N, N + 1 or N evaluations a step; leave-one-out needs two probes or more.
    weight_decay : float
        lambda, decoupled: the parameters shrink by eta lambda a step.
    vector_learning_rate : float or callable, optional
        Root mean square of a step's entries for arrays with one axis or none, which are probed
        in their full space and take normalised steps. By default tuned if `learning_rate` is;
        else 0.01 max(rms(x0), 1/sqrt(n)) for n entries, or in `minimize`, which knows the number
        T of steps, 0.5 / sqrt(T) in the place of 0.01, falling linearly to zero.
    side : {"left", "right"}
        Whether the rows (the paper) or the columns are sketched.
    stacked : bool
        Whether arrays with more than two axes are batches of matrices over the leading axes; by
        default they are one matrix, (first axis, the rest).
    basis : callable, optional
        What is known of the problem: takes the number of a leaf (its place among the sorted
        names, 0 for a single array) and the step, and returns directions as columns (m x c, for
        ``side="right"`` n x c), the most important first, or None. They take the place of the
        Gaussian columns at the start and at each refresh; if they are too few, Gaussian columns
        follow. They need not be orthonormal.

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
    given = dict(locals())
    automatic = None
    if learning_rate is None:
        automatic = zo_mopi(**(given | {"learning_rate": "auto"}))
    tuned = isinstance(learning_rate, str)
    if isinstance(spectral_rank, str):
        check_name("spectral_rank", spectral_rank, ("auto",))
    if difference is None:
        difference = "leave-one-out" if tuned and probes != 1 else "central"
    if probes is None:
        probes = 8 if tuned else 4
    if smoothing is None:
        smoothing = "auto" if tuned else 1e-3
    if spectral_rank is None and tuned:
        spectral_rank = "auto"
    average = ExponentialAverage(0.9 if momentum is None else momentum)
    if momentum is None and tuned:
        average = ExponentialAverage(0.95, unbiased=True, fitted=True)
    orthogonalizer = (
        AdaptiveRank() if isinstance(spectral_rank, str) else PowerIteration(spectral_rank)
    )
    matrices = Rule(
        Sketch(rank, refresh, refresh_every, side, stacked, basis=basis),
        average,
        orthogonalizer,
        Update(learning_rate, weight_decay),
    )
    vectors = Rule(
        FullSpace(),
        average,
        Normalized(),
        _vector_update(vector_learning_rate, learning_rate, weight_decay),
    )
    estimator = FiniteDifference(probes, smoothing, difference)
    return Method("zo_mopi", estimator, matrices, vectors, automatic=automatic)


def _vector_update(rate: Rate, matrices: Rate, weight_decay: float = 0.0) -> Update:
    """Return the update of vectors, tuned if that of the matrices is and nothing was given."""
    if rate is None and isinstance(matrices, str):
        rate = matrices
    return Update(rate, weight_decay, name="vector_learning_rate")


def zo_muon(
    *,
    learning_rate: Rate = 1e-2,
    rank: int = 64,
    probes: int = 4,
    smoothing: float = 1e-3,
    refresh_every: int = 100,
    difference: str = "forward",
    orthogonalizer: str = "newton-schulz",
    vector_learning_rate: Rate = None,
) -> Method:
    """Make ZO-Muon: the whole spectrum of a low-rank estimate.

    ``X <- X - eta P msign((1/N) sum_i c_i Psi_i)`` with a Haar frame P, refreshed every nu steps.

    Parameters
    ----------
    learning_rate, vector_learning_rate : float or callable, optional
        As in `zo_mopi`.
    rank, probes, smoothing, refresh_every, difference
        r, N, mu, nu and the kind of difference, as in `zo_mopi`.
    orthogonalizer : {"newton-schulz", "svd", "polar-express"}
        How the matrix sign is computed: five quintic steps, exactly, or eight steps of Polar
        Express (arXiv 2505.16932).

    Returns
    -------
    Method

    References
    ----------
    arXiv 2602.17155.

    Examples
    --------
    >>> import zomopi_core as zo
    >>> zo.zo_muon().evaluations_per_step
    5
    """
    signs: dict[str, Orthogonalizer] = {
        # its released code adds 1e-7 to the norm
        "newton-schulz": NewtonSchulz(5, 1e-7),
        "svd": PolarFactor(),
        "polar-express": NewtonSchulz(8, polynomials="polar-express"),
    }
    check_name("orthogonalizer", orthogonalizer, tuple(signs))
    return Method(
        "zo_muon",
        FiniteDifference(probes, smoothing, difference),
        Rule(
            Sketch(rank, "haar", refresh_every),
            ExponentialAverage(0.0),
            signs[orthogonalizer],
            Update(learning_rate),
        ),
        Rule(
            FullSpace(),
            ExponentialAverage(0.0),
            Normalized(),
            _vector_update(vector_learning_rate, learning_rate),
        ),
    )


def zo_mopi_released(
    *,
    learning_rate: Rate = 1e-2,
    rank: int = 64,
    spectral_rank: int = 32,
    probes: int = 4,
    smoothing: float = 1e-3,
    refresh_every: int = 500,
    vector_learning_rate: Rate = 1e-7,
) -> Method:
    """Make ZO-MOPI as its authors' code runs: one baseline, no momentum.

    Forward differences, beta = 0, a Haar frame every nu steps with new right vectors, k = 32, and
    plain steps ``eta_v G`` for vectors. Its second phase, in which power iteration is replaced,
    is `zo_muon` or `zo_sgd` started from the result.

    Parameters
    ----------
    learning_rate, rank, spectral_rank, probes, smoothing, refresh_every
        eta, r, k, N, mu and nu, as in `zo_mopi`.
    vector_learning_rate : float or callable
        Learning rate of the plain steps of arrays with one axis or none.

    Returns
    -------
    Method

    References
    ----------
    The code released with arXiv 2605.09034.

    Examples
    --------
    >>> import zomopi_core as zo
    >>> zo.zo_mopi_released().evaluations_per_step
    5
    """
    return Method(
        "zo_mopi_released",
        FiniteDifference(probes, smoothing, "forward"),
        Rule(
            Sketch(rank, "haar", refresh_every),
            ExponentialAverage(0.0),
            PowerIteration(spectral_rank, keep_right=False),
            Update(learning_rate),
        ),
        Rule(
            FullSpace(),
            ExponentialAverage(0.0),
            Plain(),
            Update(vector_learning_rate, name="vector_learning_rate"),
        ),
    )


# In the order in which `methods` names them: the best described first.
_MAKERS: tuple[Callable[..., Method], ...] = (
    zo_mopi,
    zo_mopi_released,
    zo_muon,
    zo_sgd,
    mezo,
    mezo_momentum,
    mezo_adam,
    mezo_svrg,
    lozo,
    lozo_m,
    subzero,
    hizoo,
    mopi,
    muon,
    low_rank_muon,
    low_rank_msgd,
    dion,
    adago,
    aro,
)
_CATALOG = {make.__name__: make for make in _MAKERS}


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


def maker(name: str) -> Callable[..., Method]:
    """Return the function that makes the method of a name, which may have hyphens."""
    known = name.lower().replace("-", "_")
    if known not in _CATALOG:
        raise errors.unknown_name("method", name, _CATALOG)
    return _CATALOG[known]


def describe_methods() -> list[tuple[str, str]]:
    """Return (name, one line) of each method."""
    lines = {name: (make.__doc__ or "").strip().splitlines()[0] for name, make in _CATALOG.items()}
    return [(name, line.removeprefix("Make ").removesuffix(".")) for name, line in lines.items()]


def find_method(method: str | Method) -> Method:
    """Return the method of that name with its defaults, or the method itself."""
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        raise errors.wrong_method(method)
    return maker(method)()


def tuned_method(
    method: str | Method, learning_rate: Rate, smoothing: float | str, spectral_rank: Any
) -> Method:
    """Return the method of that name with these options, or the method itself."""
    given = {
        "learning_rate": learning_rate,
        "smoothing": smoothing,
        "spectral_rank": spectral_rank,
    }
    chosen = {k: v for k, v in given.items() if not (isinstance(v, str) and v == "auto")}
    if not isinstance(method, str):
        if chosen:
            raise errors.option_of_method(next(iter(chosen)))
        method = find_method(method)
        return method.automatic or method
    known = inspect.signature(maker(method)).parameters
    for name in chosen:
        if name not in known:
            raise errors.no_such_option(name, method)
    return automatic(method, chosen)


def automatic(name: str, options: Mapping[str, Any]) -> Method:
    """Return the method of that name with these options, and all that can be tuned tuned.

    First-order methods have no losses to tune by and keep their defaults.
    """
    make = maker(name)
    known = inspect.signature(make).parameters
    tuned = [name for name in _TUNED if name in known] if "smoothing" in known else []
    if make is mezo_svrg:
        tuned = []  # a line along one batch says nothing of what its differences make of all data
    if "spectral_rank" in tuned and known["spectral_rank"].default is not None:
        tuned.remove("spectral_rank")  # a paper's number, not a choice that was left open
    return make(**dict.fromkeys(tuned, "auto") | dict(options))


_TUNED = ("learning_rate", "smoothing", "spectral_rank")
