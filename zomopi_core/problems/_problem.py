"""What all problems share: the names a method, a race and the command line rely on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .. import _arrays
from .._arrays import Array, Namespace

Params = Array | Mapping[str, Array]


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """A function to minimise, where to start, and what counts as solved.

    Attributes
    ----------
    name : str
        As `make` takes it.
    summary : str
        One line.
    x0 : array or dict of arrays
        Where to start; no problem changes it.
    target : float
        Value of `exact` at or below which the problem counts as solved.
    best : float
        Lowest value of `exact` that is known.
    low_rank : bool
        Whether four singular values hold two thirds of the squared norm of the gradient of each
        matrix, at `x0` and on the path of gradient descent to the target. A zeroth-order run
        leaves that path and can meet gradients of a higher rank.
    noisy : bool
        Whether `fun` differs from `exact`.
    loss_name : str
        What the loss is, for the axis of a picture.
    """

    name: str
    summary: str
    x0: Any
    target: float
    best: float = 0.0
    low_rank: bool
    noisy: bool = False
    loss_name: str

    @property
    def unknowns(self) -> int:
        """The number of entries of `x0`."""
        return sum(_arrays.size(x) for x in _leaves(self.x0))

    def fun(self, x: Any) -> Any:
        """Return what a method may ask for: the loss at `x`, or the losses of a stack."""
        return self.exact(x)

    def exact(self, x: Any) -> Any:
        """Return the loss without noise, to score with; a stack has its axis in front."""
        return self._compiled(x)

    def _value(self, x: Any) -> Any:
        """Return the loss from array operations alone."""
        raise NotImplementedError

    @cached_property
    def _compiled(self) -> Any:
        return _arrays.compiled(self._value, _leaves(self.x0)[0])

    @cached_property
    def initial(self) -> float:
        """The value of `exact` at `x0`."""
        return float(self.exact(self.x0))


def _leaves(params: Params) -> list[Array]:
    return list(params.values()) if isinstance(params, Mapping) else [params]


def constants(xp: Namespace, device: Any, *values: Any) -> list[Array]:
    """Return NumPy arrays in a namespace, on a device, in their own precision where it has it."""
    return [xp.asarray(value, device=device) for value in values]


def on_host(loss: Any) -> Any:
    """Return a loss as a float, or those of a stack as a NumPy array, for host generators."""
    if not _arrays.is_array(loss):
        return float(loss)
    return float(loss) if loss.ndim == 0 else _arrays.to_host(loss).astype(np.float64)
