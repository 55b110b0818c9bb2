"""The parts of a method on one parameter array: its state, its probes, its step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from . import _arrays
from ._arrays import Array
from .momentum import Momentum
from .orthogonalize import Normal, Orthogonalizer
from .sampling import Draw, Randomness
from .subspace import Subspace
from .update import Change, Update


class LeafState(NamedTuple):
    """What a method remembers of one parameter array (m x n as its subspace sees it).

    Attributes
    ----------
    frame : array of shape (..., m, r), or None
        A, orthonormal columns, working dtype; None in the full space.
    momentum : array of shape (..., r, n)
        M in subspace coordinates, working dtype.
    moments : tuple of arrays, or None
        What the momentum part keeps beside M.
    right : array of shape (..., n, k), NamedTuple of arrays, or None
        V of the power iteration, or what another orthogonalizer keeps.
    unit : 0-d array or None
        Factor of a default learning rate, or what another update keeps.
    """

    frame: Array | None
    momentum: Array
    moments: Any
    right: Any
    unit: Array | None


class Probe(NamedTuple):
    """All N perturbations of one leaf, ``left @ right``; one factor has a first axis of length N.

    Attributes
    ----------
    left : array of shape (..., m, r) or (N, ..., m, r), or None
        None stands for the identity.
    right : array of shape (N, ..., r, n) or (..., r, n), or (N, *shape) where `left` is None
    coordinates : array of shape (N, ..., r, n)
        B_i, the standard normal numbers behind them.
    """

    left: Array | None
    right: Array
    coordinates: Array

    @property
    def shares_frame(self) -> bool:
        """Whether the left factor is the same for all perturbations."""
        return self.left is None or self.right.ndim > self.left.ndim

    def factors(self, i: int) -> tuple[Array | None, Array]:
        """Return the factors of perturbation `i`."""
        if self.left is None or self.shares_frame:
            return self.left, self.right[i, ...]
        return self.left[i, ...], self.right


@dataclass(frozen=True)
class Rule:
    """The parts of a method that belong to one kind of parameter."""

    subspace: Subspace
    momentum: Momentum
    orthogonalizer: Orthogonalizer
    update: Update

    def init(self, random: Randomness, leaf: int, x: Array) -> LeafState:
        """Return the state of leaf `x` before the first step."""
        xp = _arrays.namespace(x)
        shape = self.subspace.coordinate_shape(x.shape)
        zeros = xp.zeros(shape, dtype=_arrays.working_dtype(x), device=_arrays.device(x))
        right = self.orthogonalizer.init(zeros, self._normal(random, leaf, 0, zeros))
        squares = self.orthogonalizer.squares(zeros, right)
        gain = None if squares is None else (_arrays.size(x) / squares) ** 0.5
        return LeafState(
            self.subspace.init(random, leaf, x),
            zeros,
            self.momentum.init(zeros),
            right,
            self.update.init(x, self.subspace.columns(x.shape), gain),
        )

    @staticmethod
    def _normal(random: Any, leaf: int, step: Any, like: Array) -> Normal:
        return lambda shape: random.normal(Draw("right", leaf, step, None), shape, like)

    def refresh(self, random: Randomness, leaf: int, step: Any, state: LeafState) -> LeafState:
        """Return the state with a new frame and the momentum carried over to it."""
        frame, transport = self.subspace.refresh(
            random,
            leaf,
            step,
            state.frame,
            state.momentum,
            self.orthogonalizer.rank(state.right),
        )
        if transport is None:
            return state
        momentum = self.momentum.carry_over(state.momentum, transport)
        normal = self._normal(random, leaf, step, momentum)
        right = self.orthogonalizer.refresh(state.right, normal, transport)
        return state._replace(frame=frame, momentum=momentum, right=right)

    def draw(
        self, random: Randomness, leaf: int, step: Any, state: LeafState, count: int, block: bool
    ) -> Probe:
        """Return the probes of a step."""
        like, shape = state.momentum, tuple(state.momentum.shape)
        if block:
            normal = random.normal(Draw("probe", leaf, step, None), (count, *shape), like)
        else:
            each = [random.normal(Draw("probe", leaf, step, i), shape, like) for i in range(count)]
            normal = _arrays.namespace(like).stack(each)
        return Probe(*self.subspace.factors(state.frame, normal), normal)

    def advance(
        self,
        random: Any,
        leaf: int,
        step: Any,
        state: LeafState,
        gradient: Array,
        alive: Array,
        started: Array,
        rate: Any,
    ) -> tuple[LeafState, Change]:
        """Return the state after an estimate, and the step to take."""
        xp = _arrays.namespace(gradient)
        momentum, moments, used = self.momentum.update(
            state.momentum, state.moments, gradient, alive, started
        )
        kept = self.orthogonalizer.observe(state.right, state.momentum, gradient, alive)
        direction, right, remainder = self.orthogonalizer.direction(
            used, kept, self._normal(random, leaf, step, gradient)
        )
        if isinstance(right, tuple):  # a NamedTuple of arrays
            pairs = zip(right, state.right, strict=True)
            right = type(right)(*(xp.where(alive > 0, new, old) for new, old in pairs))
        elif right is not None:
            right = xp.where(alive > 0, right, state.right)
        if remainder is not None:
            momentum = xp.where(alive > 0, remainder, state.momentum)
        change, unit = self.update.change(
            *self.subspace.factors(state.frame, direction), rate, state.unit, alive, gradient
        )
        return LeafState(state.frame, momentum, moments, right, unit), change
