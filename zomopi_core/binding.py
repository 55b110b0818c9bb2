"""The binding of arrays: factored probes and steps become full-size arrays.

Inside the core a probe or a step is a pair of thin factors; here, and only here, full-size arrays
are made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

from . import _arrays, errors
from ._arrays import Array
from .estimator import Evaluation, FiniteDifference
from .method import is_dict, leaves_of, like_params
from .rule import Displacement, Probe
from .structured import Base, PerturbedMatrix
from .update import Change

Params = Array | Mapping[str, Array]
Arrays = list[Array]

# stands in the place of a probe's index for the direction of a step
_STEP = -1


# Points that follow from one another before one is made from X again: one copy of X for eight
# points, and rounding that nobody sees. Measured: docs/performance.md.
RUN = 4


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


def _along(x: Array, probe: Probe, evaluations: Sequence[Evaluation], out: Array | None) -> Array:
    """Return the points at consecutive evaluations of a leaf's probes, stacked."""
    mirrored = len(evaluations) > 1 and evaluations[0].probe == evaluations[1].probe
    count = len(evaluations) // 2 if mirrored else len(evaluations)
    if probe.left is not None and probe.shares_frame and x.dtype == probe.right.dtype:
        # scaled as a single point is, whose bits these have
        left, right, scale = probe.left, probe.right[:count, ...], evaluations[0].scale
        if _arrays.size(left) * count < _arrays.size(right):
            left = left * scale
        else:
            right = right * scale
        return _arrays.low_rank_stack(x, left, right, mirrored=mirrored, out=out)
    made = [
        _arrays.low_rank_update(
            x, *probe.factors(e.probe or 0), e.scale, out=None if out is None else out[i, ...]
        )
        for i, e in enumerate(evaluations)
    ]
    return _arrays.namespace(x).stack(made) if out is None else out


def unperturbed(x: Array) -> Any:
    """Return an array as a structured function gets it: a matrix as a `PerturbedMatrix`."""
    return PerturbedMatrix(Base(x)) if x.ndim == 2 else x


class Candidates(Sequence[Any]):
    """The perturbed parameters of a step, made one at a time when they are asked for.

    A sequence of arrays, or of dicts of arrays: each new, none shared with the parameters. Only
    what the caller keeps stays in memory. Where buffers are reused, each takes the memory of the
    one before.

    Behind the points of the estimator's evaluations come those along the first probe, and along a
    step, that are asked for; a scale of 0.0 is the iterate itself.

    Attributes
    ----------
    full_batch : bool
        Whether the losses are wanted of all data, and not of a batch that these points share.
    """

    def __init__(
        self,
        estimator: FiniteDifference,
        params: Params,
        probes: tuple[Probe, ...],
        snapshot: Params | None = None,
        *,
        along_probe: tuple[float, ...] = (),
        along_step: tuple[float, ...] = (),
        step: tuple[Change, ...] = (),
        project: Callable[[Any], Any] | None = None,
        binding: ArrayBinding | None = None,
    ) -> None:
        self.params = params
        self._single = not is_dict(params)
        self._arrays = leaves_of(params)
        self._probes, self._step, self._project = probes, step, project
        self._binding = ArrayBinding() if binding is None else binding
        self._evaluations, self._consecutive = estimator.evaluations, estimator.consecutive
        if along_probe or along_step:
            extra = [Evaluation(0 if scale else None, scale) for scale in along_probe]
            extra += [Evaluation(_STEP if scale else None, scale) for scale in along_step]
            self._evaluations = (*self._evaluations, *extra)
        self.full_batch = estimator.full_batch
        self._at_once = _arrays.made_at_once(self._arrays, len(self._evaluations))
        self._snapshot = self._arrays if snapshot is None else leaves_of(snapshot)
        if snapshot is None and estimator.compares:
            raise errors.needs_snapshot()

    def __len__(self) -> int:
        return len(self._evaluations)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._made(index, self._binding)

    def _made(self, index: int, binding: ArrayBinding) -> Any:
        probe, scale, snapshot = self._evaluations[index]
        base = self._base(snapshot)
        if probe is None:
            arrays = binding.copy(base)
        elif probe == _STEP:
            point = self._point(binding.shift(base, self._step, scale))
            return point if self._project is None else self._project(point)
        else:
            arrays = binding.displace(base, self._probes, self._path(index))
        return self._point(arrays)

    def _path(self, index: int) -> list[Displacement]:
        """Return the points that lead from X to this one, each by one addition from the last."""
        around = self._evaluations[index].snapshot
        index %= len(self)  # it may count from the end
        begin = index - index % RUN
        if self._at_once:  # all of them are made directly, in a stack
            begin = index
        path: list[Displacement] = []
        for probe, scale, snapshot in self._evaluations[begin : index + 1]:
            if probe is None or probe == _STEP or snapshot is not around:
                path = []
            else:
                path.append((probe, scale))
        return path

    def __iter__(self) -> Iterator[Any]:
        """Yield all points; small ones on a host are made together."""
        if not self._at_once:
            yield from map(self.__getitem__, range(len(self)))
        elif self._single:
            yield from self.stacked()
        else:
            for point in zip(*leaves_of(self.stacked()), strict=True):
                yield self._point(list(point))

    def stacked(self) -> Any:
        """Return all points as one array (q, *shape), or as a dict of them.

        Those along the probes are one batched product for each array where its dtype is that of
        its factors and the probes share its frame; the others are written into the stack.
        """
        memory = self._binding.stack_memory(self._arrays, len(self))
        first, last = self._consecutive
        around = [i for i in range(len(self)) if not first <= i < last]
        fresh = ArrayBinding()
        others = [leaves_of(self._made(i, fresh)) for i in around] if memory[0] is None else []
        stacks = []
        for j, (x, probe, stack) in enumerate(
            zip(self._arrays, self._probes, memory, strict=True)
        ):
            place = None if stack is None else stack[first:last, ...]
            made = _along(x, probe, self._evaluations[first:last], place) if last > first else []
            beside = [point[j] for point in others]
            stacks.append(
                _arrays.joined(beside[:first], made, beside[first:]) if stack is None else stack
            )
        if memory[0] is not None:
            for i in around:
                for stack, x in zip(stacks, leaves_of(self[i]), strict=True):
                    stack[i, ...] = x
        return self._point(stacks)

    def perturbed(self) -> Iterator[Any]:
        """Yield all points with a `PerturbedMatrix` in the place of each matrix."""
        bases = {flag: [unperturbed(x) for x in self._base(flag)] for flag in (False, True)}
        for i, (probe, scale, snapshot) in enumerate(self._evaluations):
            if probe == _STEP and self._project is not None:
                yield like_params(self.params, [*map(unperturbed, leaves_of(self[i]))])
                continue
            point = []
            for j, x in enumerate(self._base(snapshot)):
                base = bases[snapshot][j]
                if probe is None:
                    point.append(base if isinstance(base, PerturbedMatrix) else _arrays.copy(x))
                    continue
                left, right, by, names = self._factors(j, probe, scale)
                if isinstance(base, PerturbedMatrix) and left is not None:
                    point.append(base.moved(left, right, by, names))
                else:
                    point.append(unperturbed(_arrays.low_rank_update(x, left, right, by)))
            yield self._point(point)

    def _base(self, snapshot: bool) -> Arrays:
        return self._snapshot if snapshot else self._arrays

    def _factors(
        self, leaf: int, probe: int, scale: float
    ) -> tuple[Array | None, Array, Any, tuple[Any, Any]]:
        """Return the factors of a point's distance from X, what multiplies them, their names."""
        if probe == _STEP:
            change = self._step[leaf]
            return change.left, change.right, change.scale * scale, ("step", "step")
        found = self._probes[leaf]
        names = ("frame", probe) if found.shares_frame else (probe, "frame")
        return (*found.factors(probe), scale, names)

    def _point(self, arrays: list[Array]) -> Any:
        return arrays[0] if self._single else like_params(self.params, arrays)
