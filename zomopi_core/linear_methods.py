"""The methods of the catalogue whose steps are linear in the estimate of the gradient."""

from __future__ import annotations

from dataclasses import replace

from .curvature import DiagonalMetric, SecondDifference
from .estimator import FiniteDifference
from .method import Method, Snapshots
from .momentum import Adam, ExponentialAverage, Momentum
from .orthogonalize import Plain
from .rule import Rule
from .subspace import FullSpace, Sketch, Subspace
from .update import Schedule, Update
from .variance_reduction import ControlVariate, DifferenceToSnapshot

Rate = float | Schedule | str | None


def linear_method(
    name: str,
    estimator: FiniteDifference,
    subspace: Subspace,
    momentum: Momentum,
    learning_rate: Rate,
    *,
    weight: float = 1.0,
    vector_space: Subspace | None = None,
    rate_name: str = "learning_rate",
) -> Method:
    """Return a method whose steps are linear in its momentum, with one learning rate for all."""
    update = Update(learning_rate, name=rate_name)
    return Method(
        name,
        estimator,
        Rule(subspace, momentum, Plain(weight), update),
        Rule(vector_space or FullSpace(), momentum, Plain(), update),
    )


def zo_sgd(
    *,
    learning_rate: Rate = 1e-3,
    rank: int = 64,
    probes: int = 4,
    smoothing: float = 1e-3,
    momentum: float = 0.0,
    refresh_every: int = 100,
    difference: str = "central",
) -> Method:
    """Make SGD in a random subspace: the control without a matrix sign.

    ``X <- X - eta A M`` with the frame, estimate and momentum of `zo_mopi`, Haar refresh.

    Parameters
    ----------
    learning_rate : float or callable
        eta, multiplies the estimate: steps are as large as the gradient.
    rank, probes, smoothing, momentum, refresh_every, difference
        r, N, mu, beta, nu and the kind of difference, as in `zo_mopi`.

    Returns
    -------
    Method

    Examples
    --------
    >>> import zomopi_core as zo
    >>> zo.zo_sgd().evaluations_per_step
    8
    """
    return linear_method(
        "zo_sgd",
        FiniteDifference(probes, smoothing, difference),
        Sketch(rank, "haar", refresh_every),
        ExponentialAverage(momentum),
        learning_rate,
    )


def mezo(
    *,
    learning_rate: Rate = 1e-6,
    probes: int = 1,
    smoothing: float = 1e-3,
    momentum: float = 0.0,
) -> Method:
    """Make MeZO: two evaluations along a full Gaussian direction.

    ``X <- X - eta c Z``; with `momentum`, ``M <- beta M + (1 - beta) c Z`` in its place.

    Parameters
    ----------
    learning_rate : float or callable
        eta; the paper's 1e-7 to 1e-6 are for language models.
    probes, smoothing, momentum
        N, mu and beta, as in `zo_mopi`.

    Returns
    -------
    Method

    References
    ----------
    arXiv 2305.17333.

    Examples
    --------
    >>> import zomopi_core as zo
    >>> zo.mezo().evaluations_per_step
    2
    """
    return linear_method(
        "mezo",
        FiniteDifference(probes, smoothing),
        FullSpace(),
        ExponentialAverage(momentum),
        learning_rate,
    )


def mezo_momentum(
    *,
    learning_rate: Rate = 1e-6,
    probes: int = 1,
    smoothing: float = 1e-3,
    momentum: float = 0.9,
) -> Method:
    """Make MeZO with momentum: a full-size average of its estimates.

    Parameters
    ----------
    learning_rate, probes, smoothing, momentum
        As in `mezo`.

    Returns
    -------
    Method

    References
    ----------
    arXiv 2305.17333.

    Examples
    --------
    >>> import zomopi_core as zo
    >>> zo.mezo_momentum().name
    'mezo_momentum'
    """
    made = mezo(learning_rate=learning_rate, probes=probes, smoothing=smoothing, momentum=momentum)
    return replace(made, name="mezo_momentum")


def mezo_adam(
    *,
    learning_rate: Rate = 1e-4,
    probes: int = 1,
    smoothing: float = 1e-3,
    momentum: float = 0.9,
    beta2: float = 0.999,
) -> Method:
    """Make MeZO with Adam: averages of estimates and of their squares.

    ``X <- X - eta M / sqrt(S)``, both without bias; there is no epsilon, so that the scale of F
    does not matter.

    Parameters
    ----------
    learning_rate : float or callable
        eta, about the size of an entry's step.
    probes, smoothing, momentum
        N, mu and beta_1.
    beta2 : float
        Memory of the squares.

    Returns
    -------
    Method

    References
    ----------
    arXiv 2305.17333; Kingma and Ba 2015.

    Examples
    --------
    >>> import zomopi_core as zo
    >>> zo.mezo_adam().evaluations_per_step
    2
    """
    return linear_method(
        "mezo_adam",
        FiniteDifference(probes, smoothing),
        FullSpace(),
        Adam(momentum, beta2),
        learning_rate,
    )


def mezo_svrg(
    *,
    learning_rate: Rate = 1e-6,
    full_batch_learning_rate: Rate = None,
    snapshot_every: int = 5,
    probes: int = 1,
    smoothing: float = 1e-3,
) -> Method:
    """Make MeZO-SVRG: differences to a snapshot reduce batch noise.

    Every q steps, at the first to begin with, on all data::

        g = (1/N) sum_i c_i(X) Z_i,    Y <- X,    X <- X - eta_1 g

    and at the others, with one batch and the same probes at X and at Y::

        X <- X - eta_2 ((1/N) sum_i (c_i(X) - c_i(Y)) Z_i + g)

    Only for a loss that is a mean over data: ``fun(x, *, key)`` draws a batch from an integer
    `key` and takes all data where it is None. In ask and tell, ``points.full_batch`` says which.

    Parameters
    ----------
    learning_rate : float or callable
        eta_2. The default is that of `mezo`, for language models.
    full_batch_learning_rate : float or callable, optional
        eta_1; that of `learning_rate` if left out. The paper takes a larger one.
    snapshot_every : int
        q, 2 to 20 in the paper; the default is a choice of ours. The few directions of g are
        taken q times, so that a larger q needs a smaller eta_2, or more probes.
    probes, smoothing
        N and mu, as in `zo_mopi`. A step takes 4N evaluations of a batch, one with a snapshot
        2N of all data.

    Returns
    -------
    Method

    References
    ----------
    arXiv 2404.08080.

    Examples
    --------
    The mean of all data from batches of four; `mezo` with this learning rate ends 0.3 away:

    >>> import numpy as np
    >>> import zomopi_core as zo
    >>> data = np.random.default_rng(0).standard_normal((64, 4, 3))
    >>> def loss(x, *, key):
    ...     chosen = data if key is None else np.random.default_rng(key).choice(data, 4)
    ...     return 0.5 * np.mean(np.sum((x - chosen) ** 2, axis=(1, 2)))
    >>> method = zo.mezo_svrg(learning_rate=0.01)
    >>> result = zo.minimize(loss, np.zeros((4, 3)), method=method, max_queries=4000)
    >>> bool(np.max(np.abs(result.x_last - np.mean(data, axis=0))) < 1e-3)
    True
    """
    rate, rate_name = full_batch_learning_rate, "full_batch_learning_rate"
    if rate is None:
        rate, rate_name = learning_rate, "learning_rate"
    at_snapshot = linear_method(
        "mezo_svrg",
        FiniteDifference(probes, smoothing, full_batch=True),
        FullSpace(),
        ExponentialAverage(0.0),  # M is the estimate: the next steps take it from there
        rate,
        rate_name=rate_name,
    )
    between = linear_method(
        "mezo_svrg",
        DifferenceToSnapshot(probes, smoothing),
        FullSpace(),
        ControlVariate(),
        learning_rate,
    )
    return replace(between, snapshots=Snapshots(snapshot_every, at_snapshot))


def hizoo(
    *,
    learning_rate: Rate = 1e-6,
    smoothing: float = 1e-3,
    curvature_rate: float = 1e-8,
    probes: int = 1,
) -> Method:
    """Make HiZOO: probes shaped by a diagonal curvature.

    ``H <- (1 - s) H + s abs(L+ + L- - 2 L0) / (2 mu^2) H z^2``, from H = 1, and
    ``X <- X - eta c z / sqrt(H)``; three evaluations for one probe, 2N + 1 for N.

    Parameters
    ----------
    learning_rate : float or callable
        eta.
    smoothing : float
        mu.
    curvature_rate : float
        s, from 0 up to, not including, 1.
    probes : int
        N.

    Returns
    -------
    Method

    References
    ----------
    arXiv 2402.15173.

    Examples
    --------
    >>> import zomopi_core as zo
    >>> zo.hizoo().evaluations_per_step
    3
    """
    return linear_method(
        "hizoo",
        SecondDifference(probes, smoothing),
        DiagonalMetric(curvature_rate),
        ExponentialAverage(0.0),
        learning_rate,
        vector_space=DiagonalMetric(curvature_rate),
    )
