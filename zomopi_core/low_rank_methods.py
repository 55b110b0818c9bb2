"""The methods of the catalogue whose probes are products of thin random matrices."""

from __future__ import annotations

from .estimator import FiniteDifference
from .linear_methods import Rate, linear_method
from .low_rank_probes import GaussianPairs, TwoSided
from .method import Method
from .momentum import ExponentialAverage


def lozo(
    *,
    learning_rate: Rate = 1e-6,
    rank: int = 2,
    smoothing: float = 1e-3,
    refresh_every: int = 50,
    probes: int = 1,
) -> Method:
    """Make LOZO: probes U V^T, U new for each, V kept for some steps.

    ``X <- X - eta c U V^T / r``; the 1/r keeps the rank from scaling the learning rate.

    Parameters
    ----------
    learning_rate : float or callable
        eta; the paper's 1e-7 to 1e-6 are for language models.
    rank : int
        r, 1 to 8 in the paper.
    smoothing, probes
        mu and N, as in `zo_mopi`.
    refresh_every : int
        nu, the steps for which V is kept.

    Returns
    -------
    Method

    References
    ----------
    arXiv 2410.07698.

    Examples
    --------
    >>> import zomopi_core as zo
    >>> zo.lozo().evaluations_per_step
    2
    """
    return linear_method(
        "lozo",
        FiniteDifference(probes, smoothing),
        GaussianPairs(rank, refresh_every),
        ExponentialAverage(0.0),
        learning_rate,
        weight=1.0 / rank,
    )


def lozo_m(
    *,
    learning_rate: Rate = 1e-6,
    rank: int = 2,
    smoothing: float = 1e-3,
    momentum: float = 0.9,
    refresh_every: int = 50,
    probes: int = 1,
) -> Method:
    """Make LOZO-M: LOZO with momentum, projected at a refresh.

    ``N <- beta N + (1 - beta) c U`` from N = 0, ``X <- X - eta N V^T / r``, and at a refresh
    ``N <- N V_old^T V_new / n``.

    Parameters
    ----------
    learning_rate, rank, smoothing, refresh_every, probes
        As in `lozo`.
    momentum : float
        beta.

    Returns
    -------
    Method

    References
    ----------
    arXiv 2410.07698.

    Examples
    --------
    >>> import zomopi_core as zo
    >>> zo.lozo_m().evaluations_per_step
    2
    """
    return linear_method(
        "lozo_m",
        FiniteDifference(probes, smoothing),
        GaussianPairs(rank, refresh_every),
        ExponentialAverage(momentum, from_zero=True),
        learning_rate,
        weight=1.0 / rank,
    )


def subzero(
    *,
    learning_rate: Rate = 1e-6,
    rank: int = 32,
    smoothing: float = 1e-3,
    refresh_every: int = 500,
    probes: int = 1,
) -> Method:
    """Make SubZero: small probes Z between two orthonormal frames.

    ``X <- X - eta c P`` with the scaled probe P, so that the rank does not scale the learning
    rate; its released code takes the unscaled one, shorter by r / sqrt(m n).

    Parameters
    ----------
    learning_rate : float or callable
        eta.
    rank : int
        r, 8 to 128 in the paper; clipped to min(m, n).
    smoothing, refresh_every, probes
        mu, nu and N.

    Returns
    -------
    Method

    References
    ----------
    arXiv 2410.08989.

    Examples
    --------
    >>> import zomopi_core as zo
    >>> zo.subzero().evaluations_per_step
    2
    """
    return linear_method(
        "subzero",
        FiniteDifference(probes, smoothing),
        TwoSided(rank, refresh_every),
        ExponentialAverage(0.0),
        learning_rate,
    )
