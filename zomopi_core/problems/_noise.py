"""Noise added to any problem."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .. import _arrays
from .._checks import positive
from ._problem import Problem


@dataclass(frozen=True, eq=False, kw_only=True)
class Noisy(Problem):
    """A problem whose `fun` adds independent Gaussian noise to each loss.

    The noise is not keyed: every call draws anew, from a generator of the problem.

    Attributes
    ----------
    problem : Problem
        The problem without noise.
    deviation : float
        Standard deviation of the noise.
    seed : int
        Of the noise.
    """

    problem: Problem
    deviation: float
    seed: int

    @cached_property
    def _generator(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, 2])

    def fun(self, x: Any) -> Any:
        """Return the loss with new noise."""
        loss = self.problem.exact(x)
        noise = self.deviation * np.asarray(self._generator.standard_normal(loss.shape))
        return loss + (float(noise) if noise.ndim == 0 else _arrays.from_host(noise, loss))

    def exact(self, x: Any) -> Any:
        """Return the loss of the problem without noise."""
        return self.problem.exact(x)


def noisy(problem: Problem, level: float = 0.01, *, seed: int = 0) -> Noisy:
    """Add Gaussian noise to the losses of a problem.

    Parameters
    ----------
    problem : Problem
        One without noise of its own.
    level : float
        Standard deviation of the noise over the initial range of the loss, which is that from
        ``problem.x0`` down to the best value known.
    seed : int
        Of the noise, which is drawn anew at each call, from a generator of the problem's own.

    Returns
    -------
    Noisy

    Raises
    ------
    ValueError
        If the problem has noise already, or `level` is not above zero.

    Examples
    --------
    >>> from zomopi_core import problems
    >>> problem = problems.noisy(problems.quadratic(), level=0.02)
    >>> problem.name, problem.deviation
    ('quadratic-noisy', 0.02)
    """
    if problem.noisy:
        raise ValueError(f"{problem.name} has noise already; pass the problem without it")
    level = positive("level", level)
    return Noisy(
        name=f"{problem.name}-noisy",
        summary=f"{problem.summary}, noise {100 * level:g}%",
        loss_name=problem.loss_name,
        x0=problem.x0,
        target=problem.target,
        best=problem.best,
        low_rank=problem.low_rank,
        noisy=True,
        problem=problem,
        deviation=level * (problem.initial - problem.best),
        seed=seed,
    )
