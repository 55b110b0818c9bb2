"""A method: subspace, estimator, momentum, orthogonalizer, update, composed to pure functions.

    state = method.init(params, seed)
    loop:   if t > 0 and t % refresh_every == 0: state = method.refresh(state)
            probes = method.propose(state)
            state, step = method.update(state, losses, probes)

States are immutable, nothing branches on the value of an array, and nothing waits for a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from . import _arrays
from ._arrays import Array
from .estimator import FiniteDifference
from .momentum import ExponentialAverage
from .orthogonalize import Orthogonalizer
from .sampling import Draw, Randomness, Sampler
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
    right : array of shape (..., n, k), or None
        V of the power iteration.
    unit : 0-d array or None
        Factor of a default learning rate.
    """

    frame: Array | None
    momentum: Array
    right: Array | None
    unit: Array | None


class State(NamedTuple):
    """State of a method: a tree of arrays that compiled functions can take and return.

    Attributes
    ----------
    step : int
        Number t of updates so far.
    started : 0-d array
        0 until the first step with a finite loss, then 1.
    leaves : tuple of LeafState
        In the order of the parameters.
    random : Randomness or None
        The sampler; None only where nothing is drawn.
    """

    step: Any
    started: Array
    leaves: tuple[LeafState, ...]
    random: Any


class Probe(NamedTuple):
    """All N perturbations of one leaf, ``left @ right``; one factor has a first axis of length N.

    Attributes
    ----------
    left : array of shape (..., m, r) or (N, ..., m, r), or None
        None stands for the identity.
    right : array of shape (N, ..., r, n) or (..., r, n), or (N, *shape) where `left` is None
    """

    left: Array | None
    right: Array

    def factors(self, i: int) -> tuple[Array | None, Array]:
        """Return the factors of perturbation `i`."""
        if self.left is None or self.right.ndim > self.left.ndim:
            return self.left, self.right[i, ...]
        return self.left[i, ...], self.right


@dataclass(frozen=True)
class Rule:
    """The parts of a method that belong to one kind of parameter."""

    subspace: Subspace
    momentum: ExponentialAverage
    orthogonalizer: Orthogonalizer
    update: Update

    def init(self, random: Randomness, leaf: int, x: Array) -> LeafState:
        """Return the state of leaf `x` before the first step."""
        xp = _arrays.namespace(x)
        shape = self.subspace.coordinate_shape(x.shape)
        zeros = xp.zeros(shape, dtype=_arrays.working_dtype(x), device=_arrays.device(x))
        frame = self.subspace.init(random, leaf, x)
        right = self.orthogonalizer.init(random, leaf, zeros)
        gain = (_arrays.size(x) / self.orthogonalizer.squares(zeros, right)) ** 0.5
        unit = self.update.init(x, self.subspace.columns(x.shape), gain)
        return LeafState(frame, self.momentum.init(zeros), right, unit)

    def refresh(self, random: Randomness, leaf: int, step: Any, state: LeafState) -> LeafState:
        """Return the state with a new frame and the momentum carried over to it."""
        rank = None if state.right is None else state.right.shape[-1]
        frame, transport = self.subspace.refresh(
            random, leaf, step, state.frame, state.momentum, rank
        )
        if transport is None:
            return state
        momentum = self.momentum.carry_over(state.momentum, transport)
        return state._replace(frame=frame, momentum=momentum)

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
        return Probe(*self.subspace.factors(state.frame, normal))

    def advance(
        self, state: LeafState, step: Any, gradient: Array, alive: Array, started: Array
    ) -> tuple[LeafState, Change]:
        """Return the state after an estimate, and the step to take."""
        xp = _arrays.namespace(gradient)
        momentum = self.momentum.update(state.momentum, gradient, alive, started)
        direction, right = self.orthogonalizer.direction(momentum, state.right)
        if right is not None:
            right = xp.where(alive > 0, right, state.right)
        left, direction = self.subspace.factors(state.frame, direction)
        change = self.update.change(left, direction, step, state.unit, alive)
        return state._replace(momentum=momentum, right=right), change


@dataclass(frozen=True)
class Method:
    """An optimisation method as a choice of five parts; made by the functions of the catalogue.

    The functions `init`, `refresh`, `propose` and `update` are pure and can be compiled. Whoever
    calls them counts the steps and calls `refresh` before step t if t > 0 and
    ``t % refresh_every == 0``.

    Parameters
    ----------
    name : str
        Name in the catalogue.
    estimator : FiniteDifference
        Losses to coefficients; shared by all parameters, which are perturbed together.
    matrices : Rule
        The other four parts for arrays with at least two axes.
    vectors : Rule
        The same for arrays with one axis or none.
    block : bool
        Whether the probes of a leaf are one draw (N x r x n) or one draw each (r x n). The
        numbers differ, so a run keeps to one of the two.

    Examples
    --------
    Minimise without a driver, here the distance to a matrix of ones:

    >>> import numpy as np
    >>> import zomopi_core as zo
    >>> method = zo.zo_mopi(learning_rate=zo.linear_decay(0.2, 200), rank=6)
    >>> x = np.zeros((6, 5))
    >>> state = method.init(x, seed=0)
    >>> for t in range(200):
    ...     if t > 0 and t % method.refresh_every == 0:
    ...         state = method.refresh(state)
    ...     probes = method.propose(state)
    ...     points = zo.perturb(method, x, probes)
    ...     losses = np.asarray([np.sum((p - 1.0) ** 2) for p in points])
    ...     state, step = method.update(state, losses, probes)
    ...     x = zo.apply_step(x, step)
    >>> bool(np.sum((x - 1.0) ** 2) < 3.0)  # 30 at the start
    True
    """

    name: str
    estimator: FiniteDifference
    matrices: Rule
    vectors: Rule
    block: bool = True

    @property
    def evaluations_per_step(self) -> int:
        """Evaluations of the function that one step takes."""
        return len(self.estimator.evaluations)

    @property
    def refresh_every(self) -> int:
        """Steps between two refreshes of the subspace; 0 where there are none."""
        return self.matrices.subspace.refresh_every or 0

    def with_horizon(self, steps: int) -> Method:
        """Return the method with default learning rates made for a run of so many steps."""
        return replace(
            self,
            matrices=replace(
                self.matrices, update=replace(self.matrices.update, horizon=max(1, steps))
            ),
            vectors=replace(
                self.vectors, update=replace(self.vectors.update, horizon=max(1, steps))
            ),
        )

    def rule(self, ndim: int) -> Rule:
        """Return the rule for arrays with `ndim` axes."""
        return self.matrices if ndim >= 2 else self.vectors

    def init(self, params: Array | Mapping[str, Array], seed: int | Sampler = 0) -> State:
        """Return the state before the first step.

        Parameters
        ----------
        params : array or dict of arrays
            Real floating-point; only shapes, dtypes, devices and, for a default learning rate,
            sizes are taken from them.
        seed : int or Sampler
            Key of all draws.

        Returns
        -------
        State
        """
        arrays = leaves_of(params)
        random = Randomness(seed, arrays[0])
        leaves = tuple(self.rule(x.ndim).init(random, i, x) for i, x in enumerate(arrays))
        like = leaves[0].momentum
        xp = _arrays.namespace(like)
        started = xp.zeros((), dtype=like.dtype, device=_arrays.device(like))
        return State(0, started, leaves, random)

    def refresh(self, state: State) -> State:
        """Return the state with new frames, the momentum carried over to them.

        Leaves whose frame is square, or that have none, keep theirs.
        """
        leaves = tuple(
            self._rule_of(leaf).refresh(state.random, i, state.step, leaf)
            for i, leaf in enumerate(state.leaves)
        )
        return state._replace(leaves=leaves)

    def propose(self, state: State) -> tuple[Probe, ...]:
        """Return the perturbations of the step, one `Probe` for each parameter array.

        The points to evaluate are those of ``method.estimator.evaluations``; `perturb` makes
        arrays of them.
        """
        return tuple(
            self._rule_of(leaf).draw(
                state.random, i, state.step, leaf, self.estimator.probes, self.block
            )
            for i, leaf in enumerate(state.leaves)
        )

    def update(
        self, state: State, losses: Array, probes: tuple[Probe, ...] | None = None
    ) -> tuple[State, tuple[Change, ...]]:
        """Return the next state and the step to take.

        Parameters
        ----------
        state : State
        losses : array of shape (evaluations_per_step,)
            In the order of ``estimator.evaluations``; of NumPy or of the parameters' library.
            Probes with a loss that is not finite have no part in the estimate; if none is left,
            nothing changes but the step's number.
        probes : tuple of Probe, optional
            What `propose` returned; drawn again if left out.

        Returns
        -------
        state : State
        step : tuple of Change
            One for each parameter array; `apply_step` applies it.
        """
        return self.advance(state, self.estimator.differences(losses), probes)

    def advance(
        self, state: State, coefficients: Array, probes: tuple[Probe, ...] | None = None
    ) -> tuple[State, tuple[Change, ...]]:
        """Return what `update` does, from the coefficients c (N,) instead of the losses.

        Whoever compiles this function, and not `update`, takes the differences of losses outside
        of it, in float64 if the losses are numbers on the host.
        """
        probes = self.propose(state) if probes is None else probes
        like = state.leaves[0].momentum
        weighted = self.estimator.weigh(_arrays.to_like(coefficients, like))
        leaves, changes = [], []
        for leaf, probe in zip(state.leaves, probes, strict=True):
            rule = self._rule_of(leaf)
            own = weighted
            started = state.started
            if leaf.momentum.dtype != like.dtype:
                own = type(weighted)(*(_arrays.to_like(w, leaf.momentum) for w in weighted))
                started = _arrays.to_like(started, leaf.momentum)
            gradient = self.estimator.gradient(own, rule.subspace.coordinates(*probe))
            new, change = rule.advance(leaf, state.step, gradient, own.alive, started)
            leaves.append(new)
            changes.append(change)
        started = weighted.alive + state.started * (1.0 - weighted.alive)
        return State(state.step + 1, started, tuple(leaves), state.random), tuple(changes)

    def _rule_of(self, leaf: LeafState) -> Rule:
        # Coordinates of a matrix are a matrix, with a frame or without.
        return self.rule(leaf.momentum.ndim)


def leaves_of(params: Array | Mapping[str, Array]) -> list[Array]:
    """Return the parameter arrays in their order."""
    return list(params.values()) if isinstance(params, Mapping) else [params]


def like_params(params: Array | Mapping[str, Array], arrays: list[Array]) -> Any:
    """Return `arrays` in the form of `params`: a dict with its names, or the array itself."""
    if isinstance(params, Mapping):
        return dict(zip(params, arrays, strict=True))
    return arrays[0]
