"""Perturbed matrices that are never formed: products with X + s A C from those with X, A and C.

All points of a step share X and, along a probe and back, A C. The product of X with a matrix is
computed once a step; each point adds ``s A (C W)``, which costs r (m + n) operations a column
instead of m n.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from . import _arrays, errors
from ._arrays import Array

# Products remembered for each matrix and its views: more than a loss makes of matrices that stay
# the same, few enough where it makes new ones for each point.
_REMEMBERED = 8


class _Remembered:
    """Results by the identity of an argument, the latest few."""

    def __init__(self) -> None:
        self._found: OrderedDict[Hashable, tuple[Any, Any]] = OrderedDict()

    def get(self, kind: Hashable, argument: Any, make: Callable[[], Any]) -> Any:
        """Return what `make` returned for this very object before, or returns now."""
        key = (kind, id(argument))
        if key not in self._found:
            # The argument is kept, so that its identity is not given to another one.
            self._found[key] = argument, make()
            if len(self._found) > _REMEMBERED:
                self._found.popitem(last=False)
        self._found.move_to_end(key)
        return self._found[key][1]


class Base:
    """A matrix X that perturbed matrices of a step share, with its products.

    Parameters
    ----------
    x : array of shape (m, n)
    """

    def __init__(self, x: Array) -> None:
        self.x = _arrays.to_like(x, x)  # 16 bits would lose what a probe changes
        self.remembered = _Remembered()
        self._transposed: Base | None = None

    @property
    def transposed(self) -> Base:
        """X^T, with its own products."""
        if self._transposed is None:
            self._transposed = Base(_arrays.transposed(self.x))
            self._transposed._transposed = self
        return self._transposed

    def rows(self, rows: Any) -> Base:
        """Return rows of X, with their own products."""
        kind = (rows.start, rows.stop, rows.step) if isinstance(rows, slice) else None
        argument = None if isinstance(rows, slice) else rows
        made: Base = self.remembered.get(
            ("rows", kind), argument, lambda: Base(_taken(self.x, rows))
        )
        return made


def _taken(x: Array, rows: Any) -> Array:
    return x[rows, ...] if isinstance(rows, slice) else _arrays.namespace(x).take(x, rows, axis=0)


class PerturbedMatrix:
    """``P = X + s A C`` without its m n entries: what a `structured` function gets for a matrix.

    It supports ``P @ W``, ``W @ P``, ``P.T``, rows (``P[3:7]``, ``P[indices]``, ``P[0]``),
    ``P.dense()``, ``len(P)`` and the attributes `shape`, `ndim` and `dtype`.

    The product of X with W is computed at the first point of a step and remembered for the object
    W: pass the same array at each point, and do not change it in between. Results are new arrays
    in the working dtype, float32 or float64.

    Examples
    --------
    >>> import numpy as np
    >>> import zomopi_core as zo
    >>> rng = np.random.default_rng(0)
    >>> W, Y = rng.standard_normal((40, 100)), rng.standard_normal((30, 100))
    >>> result = zo.minimize(lambda P: np.mean((P @ W - Y) ** 2), np.zeros((30, 40)),
    ...                      structured=True, max_queries=2000)
    >>> result.fun < 0.9
    True
    """

    # Arrays of NumPy and CuPy then leave ``W @ P`` to this class.
    __array_ufunc__ = None
    __array_priority__ = 1000

    def __init__(
        self,
        base: Base,
        left: Array | None = None,
        right: Array | None = None,
        scale: Any = 0.0,
        names: tuple[Hashable, Hashable] = (None, None),
    ) -> None:
        self._base, self._left, self._right = base, left, right
        self._scale, self._names = scale, names

    def moved(
        self, left: Array, right: Array, scale: Any, names: tuple[Hashable, Hashable]
    ) -> PerturbedMatrix:
        """Return the matrix plus ``scale * left @ right``.

        Products with factors of the same name are shared by all that were moved from here.
        """
        return PerturbedMatrix(self._base, left, right, scale, names)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        m, n = self._base.x.shape
        return m, n

    @property
    def ndim(self) -> int:
        """2."""
        return 2

    @property
    def dtype(self) -> Any:
        """Dtype of what products return."""
        return self._base.x.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<PerturbedMatrix of shape {self.shape}, {_arrays.dtype_name(self._base.x)}>"

    def __array__(self, *arguments: Any, **options: Any) -> Any:
        """Refuse to become an array unasked."""
        raise errors.not_dense()

    @property
    def T(self) -> PerturbedMatrix:
        """The transposed matrix."""
        left = None if self._right is None else _arrays.transposed(self._right)
        right = None if self._left is None else _arrays.transposed(self._left)
        names = self._names[::-1]
        return PerturbedMatrix(self._base.transposed, left, right, self._scale, names)

    def dense(self) -> Array:
        """Return the matrix as a new array."""
        if self._left is None or self._right is None:
            return _arrays.copy(self._base.x)
        return _arrays.low_rank_update(self._base.x, self._left, self._right, self._scale)

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, int) and not isinstance(rows, bool):
            if not -len(self) <= rows < len(self):
                raise IndexError(f"row {rows} of {len(self)}")
            rows %= len(self)
            return self[rows : rows + 1].dense()[0, ...]
        if not isinstance(rows, slice) and not (
            _arrays.is_array(rows) and rows.ndim == 1 and "int" in _arrays.dtype_name(rows)
        ):
            raise errors.not_rows(rows)
        left = None if self._left is None else _taken(self._left, rows)
        return PerturbedMatrix(self._base.rows(rows), left, self._right, self._scale, self._names)

    def __matmul__(self, other: Any) -> Array:
        x, remembered = self._base.x, self._base.remembered
        with _arrays.full_precision(x):
            wide = remembered.get("wide", other, lambda: _like(other, x))
            product = remembered.get("behind", other, lambda: x @ wide)
            right = self._right
            if self._left is None or right is None:
                return _arrays.copy(product)
            thin = remembered.get(("behind", self._names[1]), other, lambda: right @ wide)
            return _added(product, self._left, thin, self._scale)

    def __rmatmul__(self, other: Any) -> Array:
        x, remembered = self._base.x, self._base.remembered
        with _arrays.full_precision(x):
            wide = remembered.get("wide", other, lambda: _like(other, x))
            product = remembered.get("before", other, lambda: wide @ x)
            left = self._left
            if left is None or self._right is None:
                return _arrays.copy(product)
            thin = remembered.get(("before", self._names[0]), other, lambda: wide @ left)
            return _added(product, thin, self._right, self._scale)


def _like(other: Any, x: Array) -> Any:
    """Return an operand in the dtype of `x`, in which it is multiplied."""
    if not _arrays.is_array(other) or other.dtype == x.dtype:
        return other
    return _arrays.namespace(x).astype(other, x.dtype)


def _added(product: Array, left: Array, right: Array, scale: Any) -> Array:
    """Return ``product + scale * (left @ right)``, where a factor may be a vector."""
    if left.ndim == right.ndim == 2:
        return _arrays.low_rank_update(product, left, right, scale)
    return product + scale * (left @ right)
