"""Quantiles of the normal distribution with the same bits on every machine.

Wichura 1988, "The percentage points of the normal distribution", algorithm AS 241, written with
operations that IEEE 754 rounds exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# AS 241, routine PPND16: numerators and denominators of the three rational approximations,
# lowest power first, for |p - 1/2| <= 0.425, for a tail of up to e^-25, and beyond.
_CENTRE = (
    (
        3.3871328727963666080e0,
        1.3314166789178437745e2,
        1.9715909503065514427e3,
        1.3731693765509461125e4,
        4.5921953931549871457e4,
        6.7265770927008700853e4,
        3.3430575583588128105e4,
        2.5090809287301226727e3,
    ),
    (
        1.0,
        4.2313330701600911252e1,
        6.8718700749205790830e2,
        5.3941960214247511077e3,
        2.1213794301586595867e4,
        3.9307895800092710610e4,
        2.8729085735721942674e4,
        5.2264952788528545610e3,
    ),
)
_TAIL = (
    (
        1.42343711074968357734e0,
        4.63033784615654529590e0,
        5.76949722146069140550e0,
        3.64784832476320460504e0,
        1.27045825245236838258e0,
        2.41780725177450611770e-1,
        2.27238449892691845833e-2,
        7.74545014278341407640e-4,
    ),
    (
        1.0,
        2.05319162663775882187e0,
        1.67638483018380384940e0,
        6.89767334985100004550e-1,
        1.48103976427480074590e-1,
        1.51986665636164571966e-2,
        5.47593808499534494600e-4,
        1.05075007164441684324e-9,
    ),
)
_FAR_TAIL = (
    (
        6.65790464350110377720e0,
        5.46378491116411436990e0,
        1.78482653991729133580e0,
        2.96560571828504891230e-1,
        2.65321895265761230930e-2,
        1.24266094738807843860e-3,
        2.71155556874348757815e-5,
        2.01033439929228813265e-7,
    ),
    (
        1.0,
        5.99832206555887937690e-1,
        1.36929880922735805310e-1,
        1.48753612908506148525e-2,
        7.86869131145613259100e-4,
        1.84631831751005468180e-5,
        1.42151175831644588870e-7,
        2.04426310338993978564e-15,
    ),
)
_LOG_SERIES = tuple(1.0 / (2 * j + 1) for j in range(12))
_LOG_2 = 0.6931471805599453
_SQRT_HALF = 0.7071067811865476


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    result = np.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result *= x
        result += c
    return result


def _exact_log(x: Array) -> Array:
    """Return the logarithm from sums, products and quotients alone.

    The logarithm of a C library differs in its last bit between machines; this one does not.
    """
    mantissa, exponent = np.frexp(x)
    low = mantissa < _SQRT_HALF
    mantissa = np.where(low, 2.0 * mantissa, mantissa)
    exponent = exponent - low
    s = (mantissa - 1.0) / (mantissa + 1.0)  # |s| <= 0.172: twelve terms reach 1e-18
    return exponent * _LOG_2 + 2.0 * s * _polynomial(_LOG_SERIES, s * s)


def inverse_normal(p: Array) -> Array:
    """Return the quantiles of the standard normal distribution at `p`, strictly inside (0, 1)."""
    q = p - 0.5
    centre = np.abs(q) <= 0.425
    r = np.where(centre, 0.180625 - q * q, 0.0)
    result = q * _polynomial(_CENTRE[0], r) / _polynomial(_CENTRE[1], r)
    tail = np.flatnonzero(~centre)
    if tail.size:
        q = q[tail]
        r = np.sqrt(-_exact_log(np.where(q < 0.0, p[tail], 1.0 - p[tail])))
        near, far = r - 1.6, r - 5.0
        value = np.where(
            r <= 5.0,
            _polynomial(_TAIL[0], near) / _polynomial(_TAIL[1], near),
            _polynomial(_FAR_TAIL[0], far) / _polynomial(_FAR_TAIL[1], far),
        )
        result[tail] = np.where(q < 0.0, -value, value)
    return result
