"""The points of a step, each made when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

from . import _arrays, errors
from ._arrays import Array
from .binding import ArrayBinding, Arrays
from .estimator import Evaluation, FiniteDifference
from .method import is_dict, leaves_of, like_params
from .rule import Displacement, Probe
from .structured import Base, PerturbedMatrix
from .update import Change

Params = Array | Mapping[str, Array]

# stands in the place of a probe's index for the direction of a step
_STEP = -1

# Points that follow from one another in reused memory before one is made from X again: most of
# the time that copies of X take is saved, and forward differences keep their digits. Measured:
# docs/performance.md.
RUN = 4


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

    def some(self, places: Sequence[int]) -> Iterator[Any]:
        """Yield the points with these numbers, with the bits that they have among all.

        What is made in a stack may be rounded otherwise than what is made in memory of its own.
        """
        if not self._at_once:
            yield from map(self.__getitem__, places)
        else:
            yield from (point for i, point in enumerate(self) if i in places)

    def stacked(self) -> Any:
        """Return all points as one array (q, *shape), or as a dict of them.

        Those along the probes are one batched product for each array where its dtype is that of
        its factors and the probes share its frame; the others are written into the stack.
        """
        memory = self._binding.stack_memory(self._arrays, len(self))
        first, last = self._consecutive
        around = [*range(first), *range(last, len(self))]
        others: list[list[Array]] = []
        if around and memory[0] is None:
            fresh = ArrayBinding()
            others = [leaves_of(self._made(i, fresh)) for i in around]
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
