"""Orthonormal columns from Gram matrices: Cholesky-QR, twice or, shifted, three times.

For Y (n x k, n much larger than k) the R-factor is the Cholesky factor of ``Y^T Y``, and
``Q = Y R^-1``: two products and work on k x k matrices, where Householder's method goes column by
column. One round leaves an error of the unit roundoff times the squared condition number of Y, a
second one removes it (Yamamoto, Nakatsukasa, Yanagisawa, Fukaya 2015, "Roundoff error analysis of
the CholeskyQR2 algorithm"); a small shift of the first Gram matrix keeps it positive for any Y,
at the price of a third round (Fukaya, Kannan, Nakatsukasa, Yamamoto, Yanagisawa 2020, "Shifted
Cholesky QR for computing the QR factorization of ill-conditioned matrices").

The columns of Y are first scaled to length 1, in the Gram matrix. After a few sweeps of power
iteration they are nearly orthogonal and differ in length alone, and are well conditioned then.
"""

from __future__ import annotations

from . import _arrays
from ._arrays import Array

# Entries below which Householder's method is faster on a host, alone and in a batch. Measured:
# docs/performance.md.
_SMALL = 2**12
# A round makes orthonormal to rounding what is so within this much.
_NEARLY = 0.5
# Shift of a Gram matrix with diagonal 1, in units of k times the spacing of numbers at 1: above
# the rounding of its entries.
_SHIFT = 4.0


def orthonormal_columns(matrix: Array, fallback: Array) -> Array:
    """Return an orthonormal basis of the columns of `matrix` (..., n, k) that spans them in order.

    It is the Q-factor up to the signs of its columns. Hosts look whether a matrix was too badly
    conditioned for Cholesky-QR and take Householder's method then; a device is not waited for:
    where three rounds were not enough, the matrix of `fallback`, which has orthonormal columns,
    takes the place of the basis.
    """
    if _arrays.on_gpu(matrix):
        return shifted_cholesky_qr(matrix, fallback)
    n, k = matrix.shape[-2:]
    if n >= 4 * k and n * k >= _SMALL and _arrays.can_branch(matrix):
        found = cholesky_qr_twice(matrix)
        if found is not None:
            return found
    return _arrays.namespace(matrix).linalg.qr(matrix)[0]


def cholesky_qr_twice(matrix: Array) -> Array | None:
    """Return the Q-factor with a positive diagonal of R, None where it would be inaccurate."""
    xp = _arrays.namespace(matrix)
    for last in (False, True):
        gram = _arrays.transposed(matrix) @ matrix
        if last:
            off = xp.max(xp.abs(gram - _identity(gram)))
            if not bool(off < _NEARLY):  # false for NaN
                return None
        inverse = _inverse_factor(gram, 0.0)
        if inverse is None:
            return None
        matrix = matrix @ inverse
    return matrix


def shifted_cholesky_qr(matrix: Array, fallback: Array) -> Array:
    """Return it from three rounds without a branch, `fallback` where they do not suffice."""
    xp = _arrays.namespace(matrix)
    k = matrix.shape[-1]
    shift = _SHIFT * k * _arrays.epsilon(matrix)
    off: Array = 0.0
    for i in range(3):
        gram = _arrays.transposed(matrix) @ matrix
        off = xp.max(xp.abs(gram - _identity(gram)), axis=(-2, -1), keepdims=True)
        # Unshifted rounds have nothing to fear but rounding, which a tenth of the shift covers.
        inverse = _inverse_factor(gram, shift if i == 0 else 0.1 * shift)
        matrix = fallback if inverse is None else matrix @ inverse
    return xp.where(off < _NEARLY, matrix, fallback)


def _inverse_factor(gram: Array, shift: float) -> Array | None:
    """Return R^-1 for ``R^T R = gram``, shifted after its diagonal was scaled to 1."""
    xp = _arrays.namespace(gram)
    squares = xp.linalg.diagonal(gram)
    scale = 1.0 / xp.sqrt(xp.where(squares > 0, squares, 1.0))
    scaled = gram * scale[..., :, None] * scale[..., None, :]
    if shift:
        scaled = scaled + shift * _identity(gram)
    inverse = _arrays.inverse_cholesky_factor(scaled)
    return None if inverse is None else scale[..., :, None] * inverse


def _identity(gram: Array) -> Array:
    k = gram.shape[-1]
    return _arrays.namespace(gram).eye(k, dtype=gram.dtype, device=_arrays.device(gram))
