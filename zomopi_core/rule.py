"""The parts of a method on one parameter array: its state, its probes, its step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from . import _arrays
from ._arrays import Array
from .draws import Draw
from .momentum import Momentum
from .orthogonalize import Direction, Normal, Orthogonalizer
from .sampling import Randomness, StackedRandomness
from .subspace import Subspace, transport
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


#: a perturbation's number and what multiplies it
Displacement = tuple[int, float]


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

    def way(self, start: Displacement, end: Displacement) -> tuple[Array | None, Array, float]:
        """Return the factors of ``t P_j - s P_i``, and what multiplies their product.

        The perturbations share a factor, so that the rank is that of one.
        """
        (i, s), (j, t) = start, end
        left, right = self.factors(j)
        if i == j:
            return left, right, t - s
        if self.left is None or self.shares_frame:
            return left, right - (s / t) * self.right[i, ...], t
        return self.left[j, ...] - (s / t) * self.left[i, ...], right, t


class Averaged(NamedTuple):
    """A leaf between its momentum and its direction.

    Attributes
    ----------
    momentum : array
        M after the estimate.
    moments : tuple of arrays, or None
        What the momentum part keeps beside M.
    used : array
        What is orthogonalized.
    kept : array, tuple of arrays, or None
        What the orthogonalizer kept.
    """

    momentum: Array
    moments: Any
    used: Array
    kept: Any


#: sampler, leaf and step
DrawKey = tuple[Any, int, Any]


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
        frame, carry = self.subspace.refresh(
            random,
            leaf,
            step,
            state.frame,
            state.momentum,
            self.orthogonalizer.rank(state.right),
        )
        if carry is None:
            return state
        return self._carried(random, leaf, step, state, frame, carry)

    def refresh_to(
        self, random: Randomness, leaf: int, step: Any, state: LeafState, frame: Array
    ) -> LeafState:
        """Return the state that `refresh` made with this frame, which was written down then."""
        if frame.shape[-2] == frame.shape[-1]:
            return state
        return self._carried(random, leaf, step, state, frame, transport(frame, state.frame))

    def _carried(
        self, random: Randomness, leaf: int, step: Any, state: LeafState, frame: Any, carry: Array
    ) -> LeafState:
        momentum = self.momentum.carry_over(state.momentum, carry)
        normal = self._normal(random, leaf, step, momentum)
        right = self.orthogonalizer.refresh(state.right, normal, carry)
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

    def average(self, state: LeafState, gradient: Array, alive: Array, started: Array) -> Averaged:
        """Return the momentum after an estimate, and what is orthogonalized."""
        averaged = self.momentum.update(state.momentum, state.moments, gradient, alive, started)
        kept = self.orthogonalizer.observe(state.right, state.momentum, gradient, alive)
        return Averaged(*averaged, kept)

    def orthogonalize(self, averaged: Averaged, draw: DrawKey) -> Direction:
        """Return the direction of a leaf."""
        normal = self._normal(*draw, averaged.used)
        return self.orthogonalizer.direction(averaged.used, averaged.kept, normal)

    def move(
        self,
        state: LeafState,
        averaged: Averaged,
        found: Direction,
        gradient: Array,
        alive: Array,
        rate: Any,
    ) -> tuple[LeafState, Change]:
        """Return the state after an estimate, and the step to take along a direction."""
        momentum, moments, _, _ = averaged
        direction, right, remainder = found
        if isinstance(right, tuple):  # a NamedTuple of arrays
            pairs = zip(right, state.right, strict=True)
            right = type(right)(*(_arrays.select(alive > 0, new, old) for new, old in pairs))
        elif right is not None:
            right = _arrays.select(alive > 0, right, state.right)
        if remainder is not None:
            momentum = _arrays.select(alive > 0, remainder, state.momentum)
        change, unit = self.update.change(
            *self.subspace.factors(state.frame, direction), rate, state.unit, alive, gradient
        )
        return LeafState(state.frame, momentum, moments, right, unit), change


#: parameters, each with the rule that a method has for it
Leaves = Sequence[tuple[Rule, Array]]


def advance_all(
    rules: Sequence[Rule],
    states: Sequence[LeafState],
    gradients: Sequence[Array],
    flags: Sequence[tuple[Array, Array]],
    rates: Sequence[Any],
    draws: Sequence[DrawKey],
) -> list[tuple[LeafState, Change]]:
    """Return the states of all leaves after an estimate, and the steps to take.

    Parameters
    ----------
    rules, states, gradients, rates
        One for each leaf.
    flags : sequence of (alive, started)
        0-d arrays of each leaf's dtype and device.
    draws : sequence of (Randomness, leaf, step)
        What an orthogonalizer that draws numbers draws them with.
    """
    if len(rules) == 1:
        (rule,), (state,), (g,), (own,) = rules, states, gradients, flags
        one = rule.average(state, g, *own)
        direction = rule.orthogonalize(one, draws[0])
        return [rule.move(state, one, direction, g, own[0], rates[0])]
    leaves = list(zip(rules, states, gradients, flags, strict=True))
    averaged = [r.average(state, g, *own) for r, state, g, own in leaves]
    found = directions(rules, averaged, draws)
    return [
        r.move(state, averaged[i], found[i], g, own[0], rates[i])
        for i, (r, state, g, own) in enumerate(leaves)
    ]


def has_started(started: Array, alive: Array) -> Array:
    """Return 1 from the first step on that has an estimate, 0 before it."""
    return _arrays.select(alive > 0, _arrays.namespace(alive).asarray(alive), started)


def directions(
    rules: Sequence[Rule], averaged: list[Averaged], draws: Sequence[DrawKey]
) -> list[Direction]:
    """Return the directions of all leaves; matrices of one shape are computed as a stack."""
    groups: dict[Any, list[int]] = {}
    for i, (rule, a) in enumerate(zip(rules, averaged, strict=True)):
        part = rule.orthogonalizer
        alike = part, *_kind(a.used), _shapes(a.kept)
        groups.setdefault(alike if part.batches else i, []).append(i)
    found: dict[int, Direction] = {}
    for group in groups.values():
        if len(group) == 1:
            (i,) = group
            found[i] = rules[i].orthogonalize(averaged[i], draws[i])
        else:
            stack = _stacked_directions(rules[group[0]], [averaged[i] for i in group])
            found.update(zip(group, stack, strict=True))
    return [found[i] for i in range(len(rules))]


def _stacked_directions(rule: Rule, averaged: list[Averaged]) -> list[Direction]:
    xp = _arrays.namespace(averaged[0].used)
    used = xp.stack([a.used for a in averaged])
    kept = _zipped(xp.stack, [a.kept for a in averaged])

    def no_draws(shape: tuple[int, ...]) -> Array:
        raise TypeError("an orthogonalizer of stacks draws no numbers")

    found = rule.orthogonalizer.direction(used, kept, no_draws)

    return [Direction(*(_entry(part, i) for part in found)) for i in range(len(averaged))]


def refresh_all(
    rules: Sequence[Rule], states: Sequence[LeafState], random: Randomness, step: Any
) -> list[LeafState]:
    """Return the states of all leaves with new frames, the momentum carried over to them.

    Where a call costs more than what it computes, on a device and where a library dispatches
    slowly, matrices of one shape are refreshed as a stack, with the draws that each has alone. On
    a host their factorizations take the time that they take.
    """
    groups: dict[Any, list[int]] = {}
    for i, (rule, state) in enumerate(zip(rules, states, strict=True)):
        batches = rule.subspace.batches and rule.orthogonalizer.batches
        alike: Any = i
        if batches and not _arrays.can_branch(state.momentum):
            alike = id(rule), *_kind(state.momentum), _shapes(state.frame), _shapes(state.right)
        groups.setdefault(alike, []).append(i)
    found = list(states)
    for group in groups.values():
        first, old = group[0], [states[i] for i in group]
        if len(group) == 1:
            new = [rules[first].refresh(random, first, step, old[0])]
        else:
            new = refresh_stack(rules[first], old, random, group, step)
        for i, state in zip(group, new, strict=True):
            found[i] = state
    return found


def refresh_stack(
    rule: Rule, states: list[LeafState], random: Randomness, numbers: Sequence[int], step: Any
) -> list[LeafState]:
    """Return what `refresh_all` returns, for leaves of one shape: those of these numbers."""
    parts = [(state.frame, state.momentum, state.right) for state in states]
    stack = _zipped(_arrays.namespace(states[0].momentum).stack, parts)
    draws: Any = StackedRandomness(random, numbers)
    old = states[0]._replace(frame=stack[0], momentum=stack[1], right=stack[2])
    new = rule.refresh(draws, numbers[0], step, old)
    if new is old:
        return states
    stack = new.frame, new.momentum, new.right
    return [
        state._replace(**dict(zip(("frame", "momentum", "right"), _entry(stack, i), strict=True)))
        for i, state in enumerate(states)
    ]


def _kind(x: Array) -> tuple[Any, ...]:
    """Return what arrays of a stack have in common."""
    return tuple(x.shape), str(x.dtype), str(_arrays.device(x))


def _shapes(kept: Any) -> Any:
    return _zipped(lambda parts: tuple(parts[0].shape), [kept])


def _entry(stack: Any, i: int) -> Any:
    """Return entry `i` of a stack of equal trees."""
    return _zipped(lambda parts: parts[0][i, ...], [stack])


def _zipped(function: Any, parts: list[Any]) -> Any:
    """Apply a function to the lists of what stands at the same place in equal trees."""
    first = parts[0]
    if first is None:
        return None
    if isinstance(first, tuple):
        found = (_zipped(function, list(p)) for p in zip(*parts, strict=True))
        return tuple(found) if type(first) is tuple else type(first)(*found)
    return function(parts)
