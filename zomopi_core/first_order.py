"""The methods of the catalogue that take true gradients: no probes, the same other four parts."""

from __future__ import annotations

from .aro import Rotated
from .dion import DionIteration
from .low_rank_orthogonalize import LowRankOrthogonalization
from .method import Method
from .momentum import Accumulation, ExponentialAverage, Momentum
from .newton_schulz import NewtonSchulz
from .orthogonalize import Normalized, Orthogonalizer, PolarFactor
from .power_iteration import PowerIteration
from .rule import Rule
from .subspace import FullSpace
from .update import NormAdaptive, Schedule, Update

Rate = float | Schedule | str | None


def _first_order(
    name: str,
    momentum: Momentum,
    orthogonalizer: Orthogonalizer,
    update: Update,
    beta: float,
    vector_learning_rate: Rate,
) -> Method:
    """Return a method in the full space; vectors take normalised steps along their average."""
    return Method(
        name,
        None,
        Rule(FullSpace(as_matrix=True), momentum, orthogonalizer, update),
        Rule(
            FullSpace(),
            ExponentialAverage(beta),
            Normalized(),
            Update(vector_learning_rate, name="vector_learning_rate"),
        ),
    )


def mopi(
    *,
    learning_rate: Rate = None,
    spectral_rank: int | None = None,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    vector_learning_rate: Rate = None,
) -> Method:
    """Make MOPI: top directions of the momentum of true gradients.

    ``M <- beta M + (1 - beta) G``, then the power iteration and the step of `zo_mopi` in the
    full space.

    Parameters
    ----------
    learning_rate, spectral_rank, momentum, weight_decay, vector_learning_rate
        eta, k (by default half the rows), beta and lambda, as in `zo_mopi`.

    Returns
    -------
    Method

    References
    ----------
    arXiv 2605.09034.

    Examples
    --------
    >>> import numpy as np
    >>> import zomopi_core as zo
    >>> result = zo.minimize(lambda x: np.sum(x**2), np.ones((4, 3)), max_steps=200,
    ...                      method=zo.mopi(), gradient=lambda x: 2 * x)
    >>> result.fun < 1e-3
    True
    """
    return _first_order(
        "mopi",
        ExponentialAverage(momentum),
        PowerIteration(spectral_rank),
        Update(learning_rate, weight_decay),
        momentum,
        vector_learning_rate,
    )


def muon(
    *,
    learning_rate: Rate = 0.02,
    momentum: float = 0.95,
    steps: int = 5,
    weight_decay: float = 0.0,
    vector_learning_rate: Rate = None,
) -> Method:
    """Make Muon: the whole spectrum of the momentum, by Newton-Schulz.

    ``M <- beta M + G``, ``O = newton_schulz(G + beta M)``,
    ``X <- X - eta sqrt(max(1, m/n)) O``.

    Parameters
    ----------
    learning_rate : float or callable
        eta.
    momentum : float
        beta.
    steps : int
        Newton-Schulz steps.
    weight_decay, vector_learning_rate
        As in `zo_mopi`.

    Returns
    -------
    Method

    References
    ----------
    Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".

    Examples
    --------
    >>> import zomopi_core as zo
    >>> zo.muon().evaluations_per_step
    0
    """
    return _first_order(
        "muon",
        Accumulation(momentum, nesterov=True),
        NewtonSchulz(steps, 1e-7),
        Update(learning_rate, weight_decay, aspect="tall"),
        momentum,
        vector_learning_rate,
    )


def low_rank_msgd(
    *,
    learning_rate: Rate = 0.02,
    rank: int = 200,
    sketch: str = "gaussian",
    power_iterations: int = 0,
    vector_learning_rate: Rate = None,
) -> Method:
    """Make low-rank MSGD: the sign of the gradient seen in few columns.

    ``Q = qr(G Omega)``, ``X <- X - eta Q msign(Q^T G)``.

    Parameters
    ----------
    learning_rate : float or callable
        eta.
    rank : int
        Columns of the sketch; clipped to min(m, n).
    sketch : {"gaussian", "columns"}
        Omega: Gaussian, or a choice of columns.
    power_iterations : int
        Times that ``G G^T`` is applied to the sketch.
    vector_learning_rate : float or callable, optional
        As in `zo_mopi`.

    Returns
    -------
    Method

    References
    ----------
    He, Deng, Lu 2025, arXiv 2509.11983.

    Examples
    --------
    >>> import zomopi_core as zo
    >>> zo.low_rank_msgd(sketch="columns").name
    'low_rank_msgd'
    """
    return _first_order(
        "low_rank_msgd",
        ExponentialAverage(0.0),
        LowRankOrthogonalization(rank, sketch, power_iterations),
        Update(learning_rate),
        0.0,
        vector_learning_rate,
    )


def low_rank_muon(
    *,
    learning_rate: Rate = 0.02,
    rank: int = 200,
    momentum: float = 0.95,
    sketch: str = "gaussian",
    power_iterations: int = 0,
    vector_learning_rate: Rate = None,
) -> Method:
    """Make low-rank Muon: the sign of the momentum seen in few columns.

    ``M <- beta M + (1 - beta) G``, ``Q = qr(M Omega)``, ``X <- X - eta Q msign(Q^T M)``.

    Parameters
    ----------
    learning_rate, rank, sketch, power_iterations, vector_learning_rate
        As in `low_rank_msgd`.
    momentum : float
        beta.

    Returns
    -------
    Method

    References
    ----------
    He, Deng, Lu 2025, arXiv 2509.11983.

    Examples
    --------
    >>> import zomopi_core as zo
    >>> zo.low_rank_muon(power_iterations=1).name
    'low_rank_muon'
    """
    return _first_order(
        "low_rank_muon",
        ExponentialAverage(momentum),
        LowRankOrthogonalization(rank, sketch, power_iterations),
        Update(learning_rate),
        momentum,
        vector_learning_rate,
    )


def dion(
    *,
    learning_rate: Rate = 0.02,
    rank: int = 64,
    momentum: float = 0.95,
    weight_decay: float = 0.0,
    vector_learning_rate: Rate = None,
) -> Method:
    """Make Dion: one power iteration, the rest fed back to the momentum.

    ``B = M + G``, ``P = qr(B Q)``, ``R = B^T P``, ``M <- B - (1 - beta) P R^T``,
    ``Q <- columns of R, normalised``, ``X <- X - eta sqrt(m/n) P Q^T``.

    Parameters
    ----------
    learning_rate : float or callable
        eta.
    rank : int
        Columns of P and Q; clipped to min(m, n). The paper takes a quarter of the width.
    momentum : float
        beta.
    weight_decay, vector_learning_rate
        As in `zo_mopi`.

    Returns
    -------
    Method

    References
    ----------
    arXiv 2504.05295.

    Examples
    --------
    >>> import zomopi_core as zo
    >>> zo.dion().name
    'dion'
    """
    return _first_order(
        "dion",
        Accumulation(1.0),
        DionIteration(rank, momentum),
        Update(learning_rate, weight_decay, aspect="ratio"),
        momentum,
        vector_learning_rate,
    )


def adago(
    *,
    learning_rate: Rate = 0.02,
    momentum: float = 0.95,
    clip: float = 1.0,
    floor: float = 0.0,
    start: float = 1e-3,
    vector_learning_rate: Rate = None,
) -> Method:
    """Make AdaGO: the polar factor, at a rate over gradient norms.

    ``v^2 <- v^2 + min(norm(G), gamma)^2``,
    ``X <- X - max(eps, eta min(norm(G), gamma) / v) polar(M)``, M an exponential average.

    Parameters
    ----------
    learning_rate : float or callable
        eta.
    momentum : float
        beta.
    clip, floor, start : float
        gamma, eps and v_0; the choices here are the library's, the paper leaves them to tuning.
    vector_learning_rate : float or callable, optional
        As in `zo_mopi`.

    Returns
    -------
    Method

    References
    ----------
    arXiv 2509.02981.

    Examples
    --------
    >>> import zomopi_core as zo
    >>> zo.adago().name
    'adago'
    """
    return _first_order(
        "adago",
        ExponentialAverage(momentum),
        PolarFactor(),
        NormAdaptive(learning_rate, clip=clip, floor=floor, start=start),
        momentum,
        vector_learning_rate,
    )


def aro(
    *,
    learning_rate: Rate = 1e-3,
    momentum: float = 0.95,
    normalisation: str = "sinkhorn",
    vector_learning_rate: Rate = None,
) -> Method:
    """Make ARO: the momentum, normalised in a basis that turns with it.

    ``R_t = qr(M f(R_{t-1}^T M)^T)``, R_0 = I, ``X <- X - eta R_t f(R_t^T M)``, M an exponential
    average.

    Parameters
    ----------
    learning_rate : float or callable
        eta, about the size of an entry's step.
    momentum : float
        beta.
    normalisation : {"sinkhorn", "sign"}
        f: rows and columns scaled to root mean square 1 in turn, or the sign of each entry.
    vector_learning_rate : float or callable, optional
        As in `zo_mopi`.

    Returns
    -------
    Method

    References
    ----------
    arXiv 2602.09006.

    Examples
    --------
    >>> import zomopi_core as zo
    >>> zo.aro(normalisation="sign").name
    'aro'
    """
    return _first_order(
        "aro",
        ExponentialAverage(momentum),
        Rotated(normalisation),
        Update(learning_rate),
        momentum,
        vector_learning_rate,
    )
