"""POEM: a zeroth-order method without parameters, to compare tuning with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ._flat_function import FlatFunction, one_run

# The first step, in units of typical size for each entry. Of 0.001, 0.01 and 0.1, in runs of 5,000
# evaluations on `quadratic`, `digits`, `gate` and `regulator`, the first was the slowest on three
# of them and the last diverged on two.
_FIRST_STEP = 0.01


def poem(fun: Callable[..., Any], x0: Any, max_queries: int, seed: int) -> None:
    """Minimise with POEM, whose rate is distance over finite differences.

    With d unknowns, v_t uniform on the unit sphere and D_t the largest distance from the start so
    far, at least that of the first step::

        g_t = d (F(x_t + mu_t v_t) - F(x_t - mu_t v_t)) / (2 mu_t) v_t
        x_{t+1} = x_t - D_t / sqrt(|g_0|^2 + ... + |g_t|^2) g_t

    The smoothing falls with the number of steps, ``mu_t = D_t / sqrt(t + 1)``. The answer is the
    average of the iterates with weights D_t. A function that takes a `key` has the same noise on
    both sides of a difference.

    Parameters
    ----------
    fun, x0, max_queries, seed
        As in `outsiders.cma`.

    References
    ----------
    K. Ren, L. Luo, "A parameter-free and near-optimal zeroth-order algorithm for stochastic convex
    optimization", arXiv 2502.05600.

    Examples
    --------
    >>> import numpy as np
    >>> from zomopi_adapters.poem import poem
    >>> losses = []
    >>> def distance(x):
    ...     losses.append(float(np.sum((x - 1) ** 2)))
    ...     return losses[-1]
    >>> poem(distance, np.zeros((2, 3)), 1000, seed=0)
    >>> len(losses), min(losses) < 0.1
    (1000, True)
    """
    with one_run():
        flat = FlatFunction(fun, x0, max_queries)
        generator = np.random.default_rng(seed)
        x, size = np.zeros(flat.size), flat.size
        distance = _FIRST_STEP * math.sqrt(size)
        squares, weights, average, step = 0.0, 0.0, np.zeros(size), 0
        while True:  # the budget ends it
            weights += distance
            average += distance / weights * (x - average)
            if step % 20 == 19:
                flat.recommend(average)
                flat(average, key=step)
            direction = generator.standard_normal(size)
            direction /= np.linalg.norm(direction)
            smoothing = distance / math.sqrt(step + 1)
            shift = smoothing * direction
            difference = flat(x + shift, key=step) - flat(x - shift, key=step)
            estimate = size * difference / (2 * smoothing)
            squares += estimate**2
            if squares > 0:
                x = x - distance / math.sqrt(squares) * estimate * direction
            distance = max(distance, float(np.linalg.norm(x)))
            step += 1
