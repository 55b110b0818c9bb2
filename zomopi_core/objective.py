"""The binding of a function of arrays: factored probes and steps become full-size arrays.

Inside the core a probe or a step is a pair of thin factors; here, and only here, full-size arrays
are made of them.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

from . import _arrays, errors
from ._arrays import Array
from .estimator import Evaluation, FiniteDifference
from .losses import check_losses, join_losses, scalar_loss, stack_losses
from .method import Method, is_dict, leaves_of, like_params
from .rule import Probe
from .update import Change

Params = Array | Mapping[str, Array]


class Candidates(Sequence[Any]):
    """The perturbed parameters of a step, made one at a time when they are asked for.

    A sequence of arrays, or of dicts of arrays: each new, none shared with the parameters. Only
    what the caller keeps stays in memory.

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
    ) -> None:
        self._params = params
        self._single = not is_dict(params)
        self._arrays = leaves_of(params)
        self._probes, self._step, self._project = probes, step, project
        self._displace = _arrays.compiled(_displace, self._arrays[0])
        self._shift = _arrays.compiled(_shift, self._arrays[0])
        self._evaluations, self._mirrored = estimator.evaluations, estimator.mirrored
        if along_probe or along_step:
            extra = [Evaluation(0 if scale else None, scale) for scale in along_probe]
            extra += [Evaluation(_STEP if scale else None, scale) for scale in along_step]
            self._evaluations = (*self._evaluations, *extra)
            self._mirrored = (*self._mirrored, *(False for _ in extra))
        self.full_batch = estimator.full_batch
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
        probe, scale, snapshot = self._evaluations[index]
        base = self._snapshot if snapshot else self._arrays
        if probe is None:
            arrays = [_arrays.copy(x) for x in base]
        elif probe == _STEP:
            point = self._point(self._shift(base, self._step, scale))
            return point if self._project is None else self._project(point)
        else:
            arrays = self._displace(base, self._probes, probe, scale)
        return self._point(arrays)

    def __iter__(self) -> Iterator[Any]:
        """Yield all points; those of a central difference share a product where that is faster."""
        waiting = None
        for i, mirrored in enumerate(self._mirrored):
            if waiting is not None:
                yield waiting
                waiting = None
            elif mirrored and (pairs := self._pairs(i)):
                waiting = self._point([minus for _, minus in pairs])
                yield self._point([plus for plus, _ in pairs])
            else:
                yield self[i]

    def _pairs(self, index: int) -> list[tuple[Array, Array]] | None:
        probe, scale, snapshot = self._evaluations[index]
        if probe is None:
            return None
        pairs = []
        base = self._snapshot if snapshot else self._arrays
        for x, p in zip(base, self._probes, strict=True):
            pair = _arrays.low_rank_pair(x, *p.factors(probe), scale)
            if pair is None:
                return None
            pairs.append(pair)
        return pairs

    def _point(self, arrays: list[Array]) -> Any:
        return arrays[0] if self._single else like_params(self._params, arrays)


# stands in the place of a probe's index for the direction of a step
_STEP = -1


def _shift(arrays: list[Array], step: tuple[Change, ...], scale: float) -> list[Array]:
    return [
        _arrays.low_rank_update(x, c.left, c.right, c.scale * scale)
        for x, c in zip(arrays, step, strict=True)
    ]


def _displace(
    arrays: list[Array], probes: tuple[Probe, ...], probe: int, scale: float
) -> list[Array]:
    return [
        _arrays.low_rank_update(x, *p.factors(probe), scale)
        for x, p in zip(arrays, probes, strict=True)
    ]


def perturb(
    method: Method,
    params: Params,
    probes: tuple[Probe, ...],
    snapshot: Params | None = None,
) -> Candidates:
    """Return the points at which a step needs the loss, in the order in which it needs it.

    Parameters
    ----------
    method : Method
    params : array or dict of arrays
        The current parameters; they are left as they are.
    probes : tuple of Probe
        What ``method.propose`` returned.
    snapshot : array or dict of arrays, optional
        The parameters at the last snapshot, for a method that compares with them.

    Returns
    -------
    sequence of arrays or dicts of arrays
        ``[baseline where there is one], +1, -1, +2, -2, ...`` or ``+1, +2, ...``; then, where
        there is a snapshot to compare with, the same around it. Each is made when it is asked
        for. The attribute `full_batch` tells whether their losses are wanted of all data.

    Examples
    --------
    >>> import numpy as np
    >>> import zomopi_core as zo
    >>> method = zo.zo_mopi(rank=2, probes=3)
    >>> x = np.zeros((4, 4))
    >>> points = zo.perturb(method, x, method.propose(method.init(x)))
    >>> len(points), points[0].shape
    (6, (4, 4))
    """
    return Candidates(method.finite_difference, params, probes, snapshot)


def apply_step(params: Params, step: tuple[Change, ...]) -> Any:
    """Return the parameters after a step, as new arrays.

    Parameters
    ----------
    params : array or dict of arrays
        They are left as they are.
    step : tuple of Change
        What ``method.update`` returned.

    Returns
    -------
    array or dict of arrays
        In the form of `params`, with its shapes and dtypes.

    Examples
    --------
    >>> import numpy as np
    >>> import zomopi_core as zo
    >>> method = zo.zo_mopi(learning_rate=0.1, rank=2, probes=1)
    >>> x = np.zeros((4, 4))
    >>> state, step = method.update(method.init(x), np.asarray([1.0, 0.5]))
    >>> round(float(np.linalg.norm(zo.apply_step(x, step), 2)), 6)
    0.1
    """
    arrays = leaves_of(params)
    return like_params(params, _arrays.compiled(_move, arrays[0])(arrays, step))


def _move(arrays: list[Array], step: tuple[Change, ...]) -> list[Array]:
    return [_arrays.low_rank_update(x, *change) for x, change in zip(arrays, step, strict=True)]


def check_params(x0: Any) -> Any:
    """Return a copy of `x0` without autograd graphs; raise if it cannot be optimised."""
    if isinstance(x0, Mapping):
        if not x0:
            raise errors.no_parameters()
        for name in x0:
            if not isinstance(name, str):
                raise errors.not_a_name(name)
        named = {f"x0[{name!r}]": x0[name] for name in sorted(x0)}
    else:
        named = {"x0": x0}
    if not all(_arrays.is_array(x) for x in named.values()):
        bad = next(x for x in named.values() if not _arrays.is_array(x))
        raise errors.wrong_parameters(bad)
    for name, x in named.items():
        if _arrays.has_meaning_of_its_own(x):
            raise errors.special_array(name, x)
        if _arrays.is_complex(x):
            raise errors.complex_parameters(name, x.dtype)
        if not _arrays.is_real_floating(x):
            raise errors.integer_parameters(name, x.dtype)
        if _arrays.size(x) == 0:
            raise errors.empty_parameters(name, tuple(x.shape))
    libraries = {_arrays.library(_arrays.namespace(x)) for x in named.values()}
    if len(libraries) > 1:
        raise errors.mixed_libraries(libraries)
    devices = {str(_arrays.device(x)) for x in named.values()}
    if len(devices) > 1:
        raise errors.mixed_devices(devices)
    # A copy: the caller may go on to change x0.
    clean = {name: _arrays.copy(_arrays.detach(x)) for name, x in named.items()}
    return check_finite(like_params(x0, list(clean.values())), "x0")


def check_finite(params: Any, name: str) -> Any:
    """Return `params`; raise if an entry is NaN or infinite."""
    names = [f"{name}[{k!r}]" for k in sorted(params)] if isinstance(params, Mapping) else [name]
    for label, x in zip(names, leaves_of(params), strict=True):
        xp = _arrays.namespace(x)
        if not bool(xp.all(xp.isfinite(x))):
            raise errors.nonfinite_parameters(label)
    return params


def check_gradient(gradient: Any, params: Any) -> Any:
    """Return a gradient in the order of `params`, without its graph; raise if it does not fit."""
    if isinstance(params, Mapping):
        if not isinstance(gradient, Mapping) or set(gradient) != set(params):
            found = sorted(map(str, gradient)) if isinstance(gradient, Mapping) else gradient
            raise errors.wrong_gradient("it", f"returned {found!r:.60}, not {sorted(params)}")
        gradient = {name: gradient[name] for name in params}
    elif isinstance(gradient, Mapping):
        raise errors.wrong_gradient("it", "is a dict")
    names = [f"[{name!r}]" for name in sorted(params)] if isinstance(params, Mapping) else ["it"]
    for name, g, x in zip(names, leaves_of(gradient), leaves_of(params), strict=True):
        if not _arrays.is_array(g) or _arrays.namespace(g) is not _arrays.namespace(x):
            raise errors.wrong_gradient(name, f"is of type {type(g).__name__}")
        if tuple(g.shape) != tuple(x.shape) or not _arrays.is_real_floating(g):
            raise errors.wrong_gradient(
                name, f"has shape {tuple(g.shape)} and dtype {g.dtype}, not {tuple(x.shape)}"
            )
    return like_params(params, [_arrays.detach(g) for g in leaves_of(gradient)])


def frobenius(left: Array | None, right: Array) -> float:
    """Return the Frobenius norm of ``left @ right`` on the host, without making the product."""
    xp = _arrays.namespace(right)
    image = right if left is None else (_arrays.transposed(left) @ left) @ right
    return math.sqrt(max(float(xp.sum(image * right)), 0.0))


def invisible_fraction(x: Array, probe: Probe, smoothing: float) -> float:
    """Return the fraction of the entries of `x` that the first probe does not change."""
    xp = _arrays.namespace(x)
    left, right = probe.factors(0)
    moved = _arrays.low_rank_update(x, left, right, smoothing)
    return float(xp.mean(xp.astype(moved == x, xp.float32)))


class Objective:
    """A user's function with its calling convention: counts its calls and checks what it returns.

    Parameters
    ----------
    fun : callable
        Takes the parameters and returns one real number; if it has a parameter `key`, it also
        gets the integer of the step.
    vectorized : bool
        Whether `fun` takes a stack of candidates (q, *shape) and returns q numbers.
    """

    def __init__(self, fun: Callable[..., Any], *, vectorized: bool = False) -> None:
        if not callable(fun):
            raise TypeError(f"fun must be callable, got {type(fun).__name__}")
        self._fun = fun
        self.vectorized = vectorized
        self.takes_key = takes_key(fun)
        self.calls = 0  # evaluations of F, counted as they begin

    def __call__(
        self, points: Sequence[Any], key: int | None, failure: Callable[..., Any]
    ) -> Array:
        """Return the losses of `points`, 1-d; `failure` makes a loss of an exception."""
        keywords = {"key": key} if self.takes_key else {}
        if self.vectorized:
            self.calls += len(points)
            stack = stack_points(points)
            try:
                losses = self._fun(stack, **keywords)
            except Exception as error:
                return stack_losses([failure(error)] * len(points))
            return check_losses(losses, len(points), errors.wrong_stack_of_losses)
        losses, fun, calls = [], self._fun, self.calls
        try:
            for point in points:
                calls += 1
                try:
                    loss = fun(point, **keywords) if keywords else fun(point)
                except Exception as error:
                    loss = failure(error)
                # one by one: what is no loss should be said before the next, maybe costly, call
                losses.append(loss if type(loss) is float else scalar_loss(loss))
        finally:
            self.calls = calls
        return join_losses(losses)


def stack_points(points: Sequence[Any]) -> Any:
    """Return points as one array (q, *shape), or a dict of them."""
    points = list(points)
    columns = zip(*[leaves_of(point) for point in points], strict=True)
    return like_params(points[0], [_arrays.namespace(c[0]).stack(c) for c in columns])


def takes_key(fun: Callable[..., Any]) -> bool:
    """Tell whether a function has a parameter named `key` that can be given by name."""
    try:
        parameters = inspect.signature(fun).parameters
    except (TypeError, ValueError):  # some callables written in C tell nothing of themselves
        return False
    if isinstance(fun, functools.partial) and "key" in fun.keywords:
        return False
    if next(iter(parameters), None) == "key":  # that one takes the parameters
        return parameters["key"].kind is inspect.Parameter.KEYWORD_ONLY
    return "key" in parameters and parameters["key"].kind in (
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
