"""The binding of arrays: factored probes and steps become full-size arrays.

Inside the core a probe or a step is a pair of thin factors; here, and only here, full-size arrays
are made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from . import _arrays
from ._arrays import Array
from .method import leaves_of
from .rule import Displacement, Probe
from .update import Change

Arrays = list[Array]


class _Held(NamedTuple):
    """The last of the points on a path from X, in the points' memory."""

    arrays: Arrays
    probes: tuple[Probe, ...]
    path: tuple[Displacement, ...]
    changes: list[int]  # of each array by then

    def leads_to(
        self, arrays: Arrays, probes: tuple[Probe, ...], path: Sequence[Displacement]
    ) -> bool:
        """Tell whether the path begins with this one."""
        same = self.probes is probes and _same(arrays, self.arrays)
        return same and self.path == tuple(path[: len(self.path)])


class ArrayBinding:
    """The memory of points and iterates, and the two ways in which arrays are moved.

    Parameters
    ----------
    reuse_buffers : bool
        Whether all points of all steps are made in the same memory, and iterates take turns in
        theirs. Then nobody may keep an array that was handed out, or change it.
    """

    def __init__(self, *, reuse_buffers: bool = False) -> None:
        self.reuse_buffers = reuse_buffers
        self._spare: Arrays | None = None  # the points' memory, and that of the next iterate
        self._lent: Arrays = []  # the same as it was handed out
        self._held: _Held | None = None  # the point in it, where another can follow
        self._stack: Arrays | None = None  # that of a vectorised function's points

    def __getstate__(self) -> dict[str, Any]:
        return ArrayBinding(reuse_buffers=self.reuse_buffers).__dict__

    def displace(
        self, arrays: Arrays, probes: tuple[Probe, ...], path: Sequence[Displacement]
    ) -> Arrays:
        """Return the arrays ``x + t P_j`` for the last probe and scale of a path.

        Where buffers are reused, the way there leads over the whole path: ``x + s P_i`` becomes
        the next point by ``t P_j - s P_i``, which has the rank of one probe, in one addition in
        place, without a pass over x beside it. What is in memory already is not made again, and
        a point has the same bits in any order.

        Each addition rounds as one of a point that is made directly does: by up to (r + 1) u of
        the largest sum of magnitudes in it, u the unit roundoff of the dtype, and mostly once. The
        p-th point of a path has p of these roundings. Both points of a central pair share all but
        one of them, where two points made directly have one each.
        """
        if not self.reuse_buffers:
            return self._made(_displace, arrays, probes, path[-1])
        if not any(_follows(x, p) for x, p in zip(arrays, probes, strict=True)):
            path = path[-1:]
        held, done = self._held, 0
        if held is not None and held.leads_to(arrays, probes, path):
            unchanged = held.changes == [_arrays.changes(x) for x in self._lent]
            done = len(held.path) if unchanged else 0
        for i in range(done, len(path)):
            if i:
                self._made(_advance, arrays, probes, path[i - 1], path[i])
            else:
                self._made(_displace, arrays, probes, path[0])
        changes = [_arrays.changes(x) for x in self._lent]
        self._held = _Held(arrays, probes, tuple(path), changes)
        return self._lent

    def shift(self, arrays: Arrays, step: tuple[Change, ...], scale: float) -> Arrays:
        """Return the arrays a multiple of a step away."""
        return self._made(_shift, arrays, step, scale)

    def copy(self, arrays: Arrays) -> Arrays:
        """Return copies, or the arrays themselves if they are the points' memory."""
        if not self.reuse_buffers:
            return [_arrays.copy(x) for x in arrays]
        if _same(arrays, self._lent):
            return arrays
        spare = self._taken()
        places = spare or [None] * len(arrays)
        return self._keep([_arrays.copy(x, y) for x, y in zip(arrays, places, strict=True)])

    def apply(self, arrays: Arrays, step: tuple[Change, ...]) -> Arrays:
        """Return the arrays after a step; those before it stay as they are."""
        moved = self._made(_move, arrays, step)
        return (self._taken() or moved) if self.reuse_buffers else moved

    def mix(self, arrays: Arrays, others: Arrays, weight: float) -> Arrays:
        """Return means of arrays, in which the others have a weight; both stay as they are."""
        mixed = self._made(_mix, arrays, others, weight)
        return (self._taken() or mixed) if self.reuse_buffers else mixed

    def release(self, arrays: Arrays, held: Sequence[Any]) -> None:
        """Take back the memory of an iterate, unless somebody holds it still."""
        if not self.reuse_buffers:
            return
        others = [x for params in held for x in leaves_of(params)]
        if any(x is y for x in arrays for y in others):
            return
        if all(_arrays.thaw(x) and _arrays.lies_in_rows(x) for x in arrays):
            self._taken()
            self._keep(arrays)

    def claim(self, arrays: Arrays) -> Arrays:
        """Return arrays for good: with the points' memory if they are what lies there."""
        return (self._taken() or arrays) if _same(arrays, self._lent) else arrays

    def surrender(self, arrays: Arrays) -> Arrays:
        """Return a copy of arrays for somebody to own, in the points' memory where it is reused.

        No copy is made where they are that memory.
        """
        copies = self.copy(arrays)
        return (self._taken() or copies) if self.reuse_buffers else copies

    def stack_memory(self, arrays: Arrays, count: int) -> list[Array | None]:
        """Return memory for stacks of `count` points."""
        if not self.reuse_buffers:
            return [_arrays.empty_like(x, count) for x in arrays]
        if self._stack is None or self._stack[0].shape[0] != count:
            self._stack = None  # before the new ones are made
            stack = [_arrays.empty_like(x, count) for x in arrays]
            if any(s is None for s in stack):
                return stack
            self._stack = stack
        return list(self._stack)

    def _made(self, function: Callable[..., Arrays], arrays: Arrays, *how: Any) -> Arrays:
        if not self.reuse_buffers:
            return _arrays.compiled(function, arrays[0])(None, arrays, *how)
        spare = self._taken()  # an interruption may leave it half-made
        memory = [_arrays.empty_like(x) for x in arrays] if spare is None else spare
        made = _arrays.compiled(function, arrays[0], donate=True)(memory, arrays, *how)
        return self._keep(made)

    def _taken(self) -> Arrays | None:
        """Give the points' memory away, if there is any."""
        spare = self._spare
        self._spare, self._lent, self._held = None, [], None
        return spare

    def _keep(self, made: Arrays) -> Arrays:
        """Take arrays for the points' memory, and return them as they are handed out."""
        self._spare, self._lent = made, [_arrays.read_only(x) for x in made]
        return self._lent


def _same(arrays: Arrays, others: Arrays | None) -> bool:
    return bool(others) and all(x is y for x, y in zip(arrays, others or [], strict=True))


def _follows(x: Array, probe: Probe) -> bool:
    """Tell whether a point of this array can be made of another one by one addition in place.

    Parameters of 16 bits are added to in more digits than they have: they start from X each time.
    """
    framed = probe.left is not None and x.dtype == probe.right.dtype
    return framed and _arrays.changes_in_place(x)


# The first argument is memory for the results, None for new ones: compiled code takes it over.
def _displace(
    out: Arrays | None, arrays: Arrays, probes: tuple[Probe, ...], place: Displacement
) -> Arrays:
    probe, scale = place
    return [
        _arrays.low_rank_update(x, *p.factors(probe), scale, out=y)
        for x, p, y in zip(arrays, probes, out or [None] * len(arrays), strict=True)
    ]


def _advance(
    out: Arrays,
    arrays: Arrays,
    probes: tuple[Probe, ...],
    start: Displacement,
    end: Displacement,
) -> Arrays:
    return [
        _arrays.low_rank_update(y, *p.way(start, end), out=y)
        if _follows(x, p)
        else _arrays.low_rank_update(x, *p.factors(end[0]), end[1], out=y)
        for x, p, y in zip(arrays, probes, out, strict=True)
    ]


def _shift(out: Arrays | None, arrays: Arrays, step: tuple[Change, ...], scale: float) -> Arrays:
    return [
        _arrays.low_rank_update(x, c.left, c.right, c.scale * scale, out=y)
        for x, c, y in zip(arrays, step, out or [None] * len(arrays), strict=True)
    ]


def _move(out: Arrays | None, arrays: Arrays, step: tuple[Change, ...]) -> Arrays:
    return [
        _arrays.low_rank_update(x, *change, out=y)
        for x, change, y in zip(arrays, step, out or [None] * len(arrays), strict=True)
    ]


def _mix(out: Arrays | None, arrays: Arrays, others: Arrays, weight: float) -> Arrays:
    return [
        _arrays.weighted_mean(x, y, weight, out=z)
        for x, y, z in zip(arrays, others, out or [None] * len(arrays), strict=True)
    ]
