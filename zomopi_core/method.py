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
from typing import Any, NamedTuple, TypeGuard

from . import _arrays, errors
from ._arrays import Array
from ._checks import as_python, check_count
from .estimator import _HEADROOM, FiniteDifference, Weighted
from .losses import stack_losses
from .rule import LeafState, Leaves, Probe, Rule, advance_all, has_started, refresh_all
from .sampling import Randomness, Sampler
from .update import Change


class State(NamedTuple):
    """State of a method: a tree of arrays that compiled functions can take and return.

    Attributes
    ----------
    step : int
        Number t of updates so far.
    started : 0-d array
        0 until the first step with a finite loss, then 1.
    leaves : tuple of LeafState
        One for each parameter array, those of a dict in the order of their sorted names.
    random : Randomness or None
        The sampler; None only where nothing is drawn.
    """

    step: Any
    started: Array
    leaves: tuple[LeafState, ...]
    random: Any


@dataclass(frozen=True)
class Snapshots:
    """Steps of another method, every so often, before each of which the iterate is remembered.

    The other method goes on with the same state, so its subspaces and the shapes of what it keeps
    are those of the method it interrupts. Whoever drives the two remembers the iterate, and hands
    it to `perturb` at the steps between.

    Parameters
    ----------
    every : int
        Steps from one snapshot to the next. A step without an estimate takes none; then the next
        step tries again.
    method : Method
        Whose step is taken at a snapshot.

    Examples
    --------
    >>> import numpy as np
    >>> import zomopi_core as zo
    >>> method = zo.mezo_svrg(learning_rate=0.02, snapshot_every=5, probes=4)
    >>> data = np.random.default_rng(0).standard_normal((20, 4, 3))
    >>> x = np.zeros((4, 3))
    >>> state = method.init(x, seed=0)
    >>> for t in range(200):
    ...     current = method.snapshots.method if t % method.snapshots.every == 0 else method
    ...     if current is not method:
    ...         snapshot = x
    ...     probes = current.propose(state)
    ...     points = zo.perturb(current, x, probes, snapshot)
    ...     batch = data if points.full_batch else data[t % 4 :: 4]
    ...     losses = np.asarray([6 * np.mean((p - batch) ** 2) for p in points])
    ...     state, step = current.update(state, losses, probes)
    ...     x = zo.apply_step(x, step)
    >>> bool(np.max(np.abs(x - np.mean(data, axis=0))) < 0.05)  # 0.55 at the start
    True
    """

    every: int
    method: Method

    def __post_init__(self) -> None:
        check_count("snapshot_every", self.every)
        as_python(self, every=int)


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
    estimator : FiniteDifference or None
        Losses to coefficients; shared by all parameters, which are perturbed together. None for
        a first-order method, which takes gradients and has no probes.
    matrices : Rule
        The other four parts for arrays with at least two axes.
    vectors : Rule
        The same for arrays with one axis or none.
    block : bool
        Whether the probes of a leaf are one draw (N x r x n) or one draw each (r x n). The
        numbers differ, so a run keeps to one of the two.
    snapshots : Snapshots, optional
        Steps of another method in between, the first of all steps among them.
    automatic : Method, optional
        The method with all that was not given tuned, which `minimize` takes in its place.

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
    estimator: FiniteDifference | None
    matrices: Rule
    vectors: Rule
    block: bool = True
    snapshots: Snapshots | None = None
    automatic: Method | None = None

    @property
    def evaluations_per_step(self) -> int:
        """Evaluations of the function that one step takes, 0 for a first-order method.

        Steps at which a snapshot is taken are those of ``snapshots.method``.
        """
        return 0 if self.estimator is None else len(self.estimator.evaluations)

    @property
    def takes_full_batches(self) -> bool:
        """Whether the losses of some steps are wanted of all data, not of a batch."""
        methods = (self,) if self.snapshots is None else (self, self.snapshots.method)
        return any(m.estimator is not None and m.estimator.full_batch for m in methods)

    @property
    def draws_in_update(self) -> bool:
        """Whether `advance` draws numbers even where it is given the probes."""
        own = any(rule.orthogonalizer.draws for rule in (self.matrices, self.vectors))
        return own or (self.snapshots is not None and self.snapshots.method.draws_in_update)

    @property
    def refresh_every(self) -> int:
        """Steps between two refreshes of the subspace; 0 where there are none."""
        return self.matrices.subspace.refresh_every or 0

    def with_horizon(self, steps: int | None) -> Method:
        """Return the method with default learning rates made for a run of so many steps."""
        horizon = None if steps is None else max(1, steps)

        def made(rule: Rule) -> Rule:
            if rule.update.learning_rate is not None:
                return rule
            return replace(rule, update=replace(rule.update, horizon=horizon))

        snapshots = self.snapshots
        if snapshots is not None:
            snapshots = replace(snapshots, method=snapshots.method.with_horizon(steps))
        return replace(
            self, matrices=made(self.matrices), vectors=made(self.vectors), snapshots=snapshots
        )

    def rule(self, ndim: int) -> Rule:
        """Return the rule for arrays with `ndim` axes."""
        return self.matrices if ndim >= 2 else self.vectors

    def rules_of(self, params: Array | Mapping[str, Array]) -> Leaves:
        """Return the parameter arrays, each with its rule."""
        return [(self.rule(x.ndim), x) for x in leaves_of(params)]

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
        with _arrays.full_precision(arrays[0]):
            leaves = tuple(self.rule(x.ndim).init(random, i, x) for i, x in enumerate(arrays))
        like = leaves[0].momentum
        xp = _arrays.namespace(like)
        started = xp.zeros((), dtype=like.dtype, device=_arrays.device(like))
        return State(0, started, leaves, random)

    def refresh(self, state: State) -> State:
        """Return the state with new frames, the momentum carried over to them.

        Leaves whose frame is square, or that have none, keep theirs.
        """
        with _arrays.full_precision(state.started):
            rules = [self._rule_of(leaf) for leaf in state.leaves]
            leaves = refresh_all(rules, state.leaves, state.random, state.step)
        return state._replace(leaves=tuple(leaves))

    def propose(self, state: State) -> tuple[Probe, ...]:
        """Return the perturbations of the step, one `Probe` for each parameter array.

        The points to evaluate are those of ``method.estimator.evaluations``; `perturb` makes
        arrays of them.
        """
        count = self.finite_difference.probes
        return tuple(
            self._rule_of(leaf).draw(state.random, i, state.step, leaf, count, self.block)
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
        expected = self.evaluations_per_step
        if not _arrays.is_array(losses):
            losses = stack_losses(losses)
        if tuple(losses.shape) != (expected,):
            raise errors.wrong_number_of_losses(f"shape {tuple(losses.shape)}", expected)
        return self.advance(state, self.finite_difference.differences(losses), probes)

    def advance(
        self,
        state: State,
        coefficients: Array,
        probes: tuple[Probe, ...] | None = None,
        rates: tuple[Any, Any] | None = None,
    ) -> tuple[State, tuple[Change, ...]]:
        """Return what `update` does, from the coefficients c (N,) instead of the losses.

        Whoever compiles this function, and not `update`, takes the differences of losses outside
        of it, in float64 if the losses are numbers on the host, and passes what `rates` returned,
        so that a schedule may be any Python function.
        """
        probes = self.propose(state) if probes is None else probes
        estimator = self.finite_difference
        weighted, widest = self._weigh(state, coefficients)
        gradients, leaves = [], []
        for leaf, probe in zip(state.leaves, probes, strict=True):
            own = weighted
            if leaf.momentum.dtype != widest.dtype:
                own = Weighted(
                    *(None if w is None else _arrays.to_like(w, leaf.momentum) for w in weighted)
                )
            gradients.append(estimator.gradient(own, probe.coordinates))
            frame = self._rule_of(leaf).subspace.observe(leaf.frame, probe.coordinates, own)
            leaves.append(leaf if frame is leaf.frame else leaf._replace(frame=frame))
        with _arrays.full_precision(widest):
            observed = State(state.step, state.started, tuple(leaves), state.random)
            return self._move(observed, gradients, weighted.alive, rates)

    def has_estimate(self, state: State, coefficients: Array) -> Array:
        """Return whether `advance` would find a gradient estimate in these coefficients."""
        return self._weigh(state, coefficients)[0].alive > 0

    def _weigh(self, state: State, coefficients: Array) -> tuple[Weighted, Array]:
        """Return the coefficients weighed, and an array of the precision in which they are."""
        # Weighed in the widest of the leaves' precisions, within what the narrowest can hold.
        widest = narrow = state.leaves[0].momentum
        for leaf in state.leaves[1:]:
            if leaf.momentum.dtype != widest.dtype:
                widest = min(widest, leaf.momentum, key=_arrays.epsilon)
                narrow = max(narrow, leaf.momentum, key=_arrays.epsilon)
        limit = _arrays.largest_number(narrow) * _HEADROOM
        coefficients = _arrays.to_like(coefficients, widest)
        return self.finite_difference.weigh(coefficients, limit), widest

    def rates(self, step: Any) -> tuple[Any, Any]:
        """Return the learning rates of a step, for matrices and for vectors."""
        return self.matrices.update.rate(step), self.vectors.update.rate(step)

    def descend(
        self, state: State, gradient: Any, rates: tuple[Any, Any] | None = None
    ) -> tuple[State, tuple[Change, ...]]:
        """Return the next state and the step to take, from a true gradient.

        Parameters
        ----------
        state : State
        gradient : array or dict of arrays
            dF/dX in the form of the parameters. If an entry is not finite, nothing changes but
            the step's number.
        rates : pair, optional
            What `rates` returned for the step.

        Returns
        -------
        state : State
        step : tuple of Change
        """
        arrays = leaves_of(gradient)
        like = state.leaves[0].momentum
        xp = _arrays.namespace(like)
        finite = [xp.all(xp.isfinite(g)) for g in arrays]
        with _arrays.full_precision(like):
            gradients = [
                self._rule_of(leaf).subspace.project(leaf.frame, xp.where(ok, g, 0.0))
                for leaf, g, ok in zip(state.leaves, arrays, finite, strict=True)
            ]
            alive = xp.astype(xp.all(xp.stack(finite)), like.dtype)
            return self._move(state, gradients, alive, rates)

    def _move(
        self,
        state: State,
        gradients: list[Array],
        alive: Array,
        rates: tuple[Any, Any] | None,
    ) -> tuple[State, tuple[Change, ...]]:
        """Run the parts behind the estimate on all leaves."""
        of_matrices, of_vectors = rates or self.rates(state.step)
        step, started, leaves, random = state
        rules, flags, own, draws = [], [], [], []
        for i, (leaf, g) in enumerate(zip(leaves, gradients, strict=True)):
            rules.append(self._rule_of(leaf))
            flags.append((_arrays.to_like(alive, g), _arrays.to_like(started, g)))
            own.append(of_matrices if g.ndim >= 2 else of_vectors)
            draws.append((random, i, step))
        moved = advance_all(rules, leaves, gradients, flags, own, draws)
        started = has_started(started, _arrays.to_like(alive, started))
        leaves, changes = zip(*moved, strict=True)
        return State(step + 1, started, leaves, random), changes

    @property
    def finite_difference(self) -> FiniteDifference:
        """The estimator; raises for a method that has none."""
        if self.estimator is None:
            raise errors.needs_gradient(self.name)
        return self.estimator

    def _rule_of(self, leaf: LeafState) -> Rule:
        # Coordinates of a matrix are a matrix, with a frame or without.
        return self.rule(leaf.momentum.ndim)


def leaves_of(params: Array | Mapping[str, Array]) -> list[Array]:
    """Return the parameter arrays, those of a dict in the order of their sorted names.

    Compiling libraries hand a dict on with its names sorted; an order that depended on who made
    the dict would mix the arrays up.
    """
    if is_dict(params):
        return [params[name] for name in sorted(params)]
    return [params]


def is_dict(params: Any) -> TypeGuard[Mapping[str, Array]]:
    """Tell whether parameters are a dict of arrays, not an array."""
    # An array is told by its dtype much faster than by not being a Mapping.
    return not hasattr(params, "dtype") and isinstance(params, Mapping)


def like_params(params: Array | Mapping[str, Array], arrays: list[Array]) -> Any:
    """Return arrays in the order of `leaves_of` in the form of `params`."""
    if is_dict(params):
        named = dict(zip(sorted(params), arrays, strict=True))
        return {name: named[name] for name in params}
    return arrays[0]
