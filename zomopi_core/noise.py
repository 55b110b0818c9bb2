"""The noise of a function from a few of its values along a line (ECNoise).

Moré and Wild 2011, "Estimating computational noise", SIAM J. Sci. Comput. 33: in the table of
differences of values at equally spaced points, a smooth function fades from order to order and
noise stays. With independent noise of deviation s, differences of order k have the variance
``s^2 (2k)! / (k!)^2``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

# Estimates of this many orders in a row must agree within the factor for one to be believed.
_ORDERS = 3
_AGREEMENT = 4.0


def noise_level(values: Sequence[float]) -> float | None:
    """Estimate the standard deviation of the noise in equally spaced values of a function.

    Parameters
    ----------
    values : sequence of float
        At least five; F at ``x + i h d``, i = 0, 1, ..., for a small step h.

    Returns
    -------
    float or None
        The noise; 0.0 if all values are equal. None if the differences do not settle: the function
        changes too much from point to point, or a value is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from zomopi_core.noise import noise_level
    >>> noise = 1e-3 * np.random.default_rng(0).standard_normal(9)
    >>> level = noise_level([float(np.sin(1e-4 * i) + e) for i, e in enumerate(noise)])
    >>> 3e-4 < level < 3e-3
    True
    """
    if not all(map(math.isfinite, values)):
        return None
    if min(values) == max(values):
        return 0.0
    row = [v - values[0] for v in values]  # a constant in F would cost digits
    # Squares of huge or tiny differences would not be numbers; a power of two costs no digits.
    unit = 2.0 ** (math.frexp(max(map(abs, row)))[1] - 1)
    row = [d / unit for d in row]
    levels, changes_sign = [], []
    for k in range(1, len(values)):
        row = [b - a for a, b in itertools.pairwise(row)]
        mean_square = sum(d * d for d in row) / len(row)
        levels.append(math.sqrt(mean_square / math.comb(2 * k, k)))
        changes_sign.append(min(row) < 0 < max(row))
    for k in range(len(levels) - _ORDERS + 1):
        some = levels[k : k + _ORDERS]
        if changes_sign[k] and max(some) <= _AGREEMENT * min(some):
            return some[0] * unit
    return None
