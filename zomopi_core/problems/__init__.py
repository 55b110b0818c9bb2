"""Real problems to try methods on, written for any namespace.

``make`` makes one of ``names()``; the functions beside them have options of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .. import errors
from .._arrays import Namespace
from ._noise import Noisy, noisy
from ._problem import Problem
from .digits import DigitErrors, Digits, MiniBatches, digits, digits_accuracy
from .gate import Gate, gate
from .phase_mask import PhaseMask, phase_mask
from .quadratic import Quadratic, quadratic
from .regulator import RandomShocks, Regulator, regulator
from .sensing import Sensing, sensing

__all__ = [
    "DigitErrors",
    "Digits",
    "Gate",
    "MiniBatches",
    "Noisy",
    "PhaseMask",
    "Problem",
    "Quadratic",
    "RandomShocks",
    "Regulator",
    "Sensing",
    "digits",
    "digits_accuracy",
    "gate",
    "make",
    "names",
    "noisy",
    "phase_mask",
    "quadratic",
    "regulator",
    "sensing",
]


def _with_noise(maker: Callable[..., Problem]) -> Callable[..., Problem]:
    def make_noisy(xp: Namespace, *, device: Any, seed: int) -> Problem:
        return noisy(maker(xp, device=device, seed=seed), seed=seed)

    return make_noisy


_full_rank = partial(quadratic, rank=None)
# The queries for a given gain grow with the unknowns: with one for every ten of them a learning
# rate of 0.15 made the focus 5 % brighter after 5,858, 2,770 and 2,946 of them (seeds 0, 1, 2);
# half of the best is far away.
_large_mask = partial(phase_mask, size=320, brighter=1.05)

_MAKERS: dict[str, Callable[..., Problem]] = {
    "digits": digits,
    "digits-accuracy": digits_accuracy,
    "sensing": sensing,
    "regulator": regulator,
    "phase-mask": phase_mask,
    "phase-mask-large": _large_mask,
    "quadratic": quadratic,
    "quadratic-full": _full_rank,
    "gate": gate,
    "digits-noisy": partial(digits, batch=64),
    "digits-accuracy-noisy": partial(digits_accuracy, batch=64),
    "sensing-noisy": partial(sensing, noise=0.1),
    "regulator-noisy": partial(regulator, rollouts=8),
    "phase-mask-noisy": partial(phase_mask, photons=1e5),
    "phase-mask-large-noisy": partial(_large_mask, photons=1e5),
    "quadratic-noisy": _with_noise(quadratic),
    "quadratic-full-noisy": _with_noise(_full_rank),
    "gate-noisy": _with_noise(gate),
}


def names() -> tuple[str, ...]:
    """Return the names of all problems, those without noise first.

    Examples
    --------
    >>> from zomopi_core import problems
    >>> problems.names()[:3]
    ('digits', 'digits-accuracy', 'sensing')
    """
    return tuple(_MAKERS)


def make(name: str, xp: Namespace = np, *, device: Any = None, seed: int = 0) -> Problem:
    """Make a problem by its name.

    Parameters
    ----------
    name : str
        One of `names`.
    xp : namespace
        Where its arrays live: ``numpy``, ``torch`` through array-api-compat, and so on.
    device : device, optional
        As the library names it.
    seed : int
        Of the initial point and of the instance; the same seed makes the same problem.

    Returns
    -------
    Problem

    Raises
    ------
    ValueError
        If there is no such problem.
    ImportError
        If scikit-learn, which brings the handwritten digits, is not installed (extra ``cli``).

    Examples
    --------
    >>> import zomopi_core as zo
    >>> from zomopi_core import problems
    >>> problem = problems.make("sensing")
    >>> result = zo.minimize(problem.fun, problem.x0, max_queries=500)
    >>> bool(problem.exact(result.x) < problem.exact(problem.x0))
    True
    """
    if name not in _MAKERS:
        raise errors.unknown_name("name", name, _MAKERS)
    return _MAKERS[name](xp, device=device, seed=seed)
