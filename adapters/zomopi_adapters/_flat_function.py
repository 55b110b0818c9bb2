"""What a solver of the race sees: a function of one float64 vector, in units of typical size."""

from __future__ import annotations

import contextlib
import math
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from zomopi_core import _arrays
from zomopi_core.method import leaves_of, like_params
from zomopi_core.objective import takes_key
from zomopi_core.update import typical_size

Vector = Any


class Spent(BaseException):
    """The budget is spent; no package may take this for a failure of the function."""


class FlatFunction:
    """A function of arrays as one of a float64 vector, zero at `x0`, in units of typical size.

    A loss that is not finite comes out worse than all before it: no package is told how to treat
    one, and all of them know how to avoid a bad point.
    """

    def __init__(self, fun: Callable[..., Any], x0: Any, max_queries: int) -> None:
        self._fun, self._x0, self._left = fun, x0, max_queries
        self._leaves = leaves_of(x0)
        flat, units = [], []
        for x in self._leaves:
            values = np.array(_arrays.to_host(x), dtype=np.float64)
            columns = values.size // len(values) if values.ndim > 1 else values.size
            flat.append(values.ravel())
            units.append(np.full(values.size, typical_size(values, columns)))
        self._start, self.unit = np.concatenate(flat), np.concatenate(units)
        self.size = self._start.size
        #: machine epsilon of the least precise array
        self.epsilon = max(map(_arrays.epsilon, self._leaves))
        self.noisy = bool(getattr(fun, "noisy", False))
        #: whether the noise of several evaluations can be made the same
        self.keyed = bool(getattr(fun, "keyed", takes_key(fun)))
        self._worst = -math.inf

    def point(self, z: Vector) -> Any:
        """Return the arrays that a vector stands for, in the dtypes of `x0`."""
        values = self._start + self.unit * np.asarray(z, dtype=np.float64).ravel()
        arrays, begin = [], 0
        for x in self._leaves:
            part = values[begin : begin + _arrays.size(x)].reshape(tuple(x.shape))
            begin += _arrays.size(x)
            made = _arrays.from_host(part, x)
            arrays.append(_arrays.namespace(x).astype(made, x.dtype))
        return like_params(self._x0, arrays)

    def __call__(self, z: Vector, key: int | None = None) -> float:
        """Return the loss at a vector, with the noise of `key` where the function takes one."""
        if self._left <= 0:
            raise Spent
        self._left -= 1
        keywords = {} if key is None or not self.keyed else {"key": key}
        loss = float(self._fun(self.point(z), **keywords))
        if not math.isfinite(loss):
            return self._worst + abs(self._worst) + 1.0 if math.isfinite(self._worst) else 1e30
        self._worst = max(self._worst, loss)
        return loss

    def recommend(self, z: Vector) -> None:
        """Say which point would be returned now, if the function wants to know."""
        if (tell := getattr(self._fun, "recommend", None)) is not None:
            tell(self.point(z))


@contextlib.contextmanager
def one_run() -> Iterator[None]:
    """End with the budget, and put the global generators back: some packages draw from them."""
    numpys, pythons = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with warnings.catch_warnings():
            # They warn of their own dependencies and of slow progress; the race records results.
            warnings.simplefilter("ignore")
            yield
    except Spent:
        pass
    finally:
        np.random.set_state(numpys)  # noqa: NPY002
        random.setstate(pythons)
