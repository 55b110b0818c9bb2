"""A function of arrays: the points it gets, what it may be given, how it is called."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from . import _arrays, errors
from ._arrays import Array
from .binding import ArrayBinding
from .candidates import Candidates, Params, unperturbed
from .losses import check_losses, join_losses, scalar_loss, stack_losses
from .method import Method, leaves_of, like_params
from .rule import Probe
from .update import Change


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
    if not isinstance(method, Method):
        raise errors.wrong_method(method)
    for given in (params,) if snapshot is None else (params, snapshot):
        _check_leaves(given, len(probes))
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
    _check_leaves(params, len(step))
    return like_params(params, ArrayBinding().apply(leaves_of(params), step))


def _check_leaves(params: Any, count: int) -> None:
    """Raise unless parameters are so many arrays."""
    arrays = leaves_of(params)
    if not arrays or not all(map(_arrays.is_array, arrays)):
        raise errors.wrong_parameters(params, "params")
    if len(arrays) != count:
        raise errors.other_number_of_arrays(len(arrays), count)


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
    for name, x in named.items():
        current = _arrays.current_device(x)
        if current != _arrays.device(x):
            raise errors.not_current_device(name, _arrays.device(x), current)
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


def invisible_fraction(x: Array, probe: Probe, smoothing: float) -> float:
    """Return the fraction of the entries of `x` that the first probe does not change."""
    xp = _arrays.namespace(x)
    left, right = probe.factors(0)

    def unchanged(part: Array, frame: Array | None) -> Array:
        moved = _arrays.low_rank_update(part, frame, right, smoothing)
        return xp.sum(xp.astype(moved == part, xp.float32))  # exact up to 2**24

    if left is None or left.ndim > 2:
        return float(unchanged(x, left)) / _arrays.size(x)
    # In parts: no array of the size of x is needed to look at it.
    matrix = xp.reshape(x, (left.shape[0], -1))
    parts = _arrays.row_blocks(*matrix.shape)
    counts = [unchanged(matrix[rows, ...], left[rows, ...]) for rows in parts]
    return float(sum(counts[1:], counts[0])) / _arrays.size(x)


def check_callable(fun: Any) -> None:
    """Raise unless `fun` can be called."""
    if not callable(fun):
        raise TypeError(f"fun must be callable, got {type(fun).__name__}")


class Objective:
    """A user's function with its calling convention: counts its calls and checks what it returns.

    Parameters
    ----------
    fun : callable
        Takes the parameters and returns one real number; if it has a parameter `key`, it also
        gets the integer of the step.
    vectorized : bool
        Whether `fun` takes a stack of candidates (q, *shape) and returns q numbers.
    structured : bool
        Whether `fun` takes a `PerturbedMatrix` in the place of each matrix.
    """

    def __init__(
        self, fun: Callable[..., Any], *, vectorized: bool = False, structured: bool = False
    ) -> None:
        check_callable(fun)
        self._fun = fun
        if vectorized and structured:
            raise errors.two_conventions()
        self.vectorized, self.structured = vectorized, structured
        self.takes_key = takes_key(fun)
        self.calls = 0  # evaluations of F, counted as they begin

    def __call__(
        self,
        points: Sequence[Any],
        places: Sequence[int],
        key: int | None,
        failure: Callable[[int, Exception], float],
    ) -> Array:
        """Return the losses of the points with these numbers, 1-d.

        `failure` makes a loss of a number and its exception.
        """
        if self.vectorized:
            self.calls += len(places)
            try:
                losses = self.call(self.prepared(points, places), key)
                return self.checked_stack(losses, len(places))
            except Exception as error:
                return stack_losses([failure(i, error) for i in places])
        fun = functools.partial(self._fun, key=key) if self.takes_key else self._fun
        losses, calls, plain = [], self.calls, True
        try:
            for point in self.prepared(points, places):
                calls += 1
                try:
                    loss = fun(point)
                    if type(loss) is not float:
                        # What is no loss should be said before the next, maybe costly, call.
                        loss, plain = scalar_loss(loss), False
                except Exception as error:
                    loss, plain = failure(places[len(losses)], error), False
                losses.append(loss)
                del point  # its memory is for the next one
        finally:
            self.calls = calls
        return np.asarray(losses, dtype=np.float64) if plain else join_losses(losses)

    def prepared(self, points: Sequence[Any], places: Sequence[int]) -> Any:
        """Return points as the function takes them: one after the other, or as a stack."""
        some = None if len(places) == len(points) else places
        if self.vectorized:
            stack = points.stacked() if isinstance(points, Candidates) else stack_points(points)
            return stack if some is None else _rows(stack, some)
        if self.structured:
            made = _perturbed(points)
            return made if some is None else (p for i, p in enumerate(made) if i in some)
        if some is not None and isinstance(points, Candidates):
            return points.some(some)
        return points if some is None else map(points.__getitem__, some)

    def call(self, point: Any, key: int | None) -> Any:
        """Return what the function returns for what `prepared` gave."""
        return self._fun(point, key=key) if self.takes_key else self._fun(point)

    @staticmethod
    def checked_stack(losses: Any, count: int) -> Array:
        """Return the losses of a stack as a 1-d array; raise if they are none."""
        return check_losses(losses, count, errors.wrong_stack_of_losses)


def _perturbed(points: Sequence[Any]) -> Iterable[Any]:
    """Return points with matrices that know their products."""
    if isinstance(points, Candidates):
        return points.perturbed()
    return [like_params(p, [unperturbed(x) for x in leaves_of(p)]) for p in points]


def _rows(stack: Any, places: Sequence[int]) -> Any:
    """Return some points of a stack."""
    arrays = leaves_of(stack)
    rows = _arrays.namespace(arrays[0]).asarray(list(places), device=_arrays.device(arrays[0]))
    return like_params(stack, [_arrays.namespace(x).take(x, rows, axis=0) for x in arrays])


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
