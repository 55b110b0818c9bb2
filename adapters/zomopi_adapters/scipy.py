"""The methods of zomopi as custom methods of `scipy.optimize.minimize`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

import zomopi_core as zo
from zomopi_core.errors import missing_extra, unknown_name
from zomopi_core.objective import takes_key

try:
    from scipy.optimize import Bounds, OptimizeResult
except ImportError as error:  # pragma: no cover - shown in an environment without SciPy
    raise missing_extra("scipy", "scipy") from error

__all__ = ["zo_mopi"]

# what SciPy's own methods call their options
_SCIPY_NAMES = {"maxiter": "max_steps", "maxfev": "max_queries", "maxfun": "max_queries"}

# SciPy: 0 stands for convergence, other numbers are a method's own; 99 is its number for a
# callback that raised StopIteration.
_STATUS = {
    "target": 0,
    "max_queries": 1,
    "max_steps": 2,
    "max_time": 3,
    "stagnation": 4,
    "interrupted": 5,
    "callback": 99,
}


def zo_mopi(
    fun: Callable[..., Any],
    x0: Any,
    args: tuple[Any, ...] = (),
    *,
    jac: Any = None,
    hess: Any = None,
    hessp: Any = None,
    bounds: Any = None,
    constraints: Any = (),
    callback: Callable[..., Any] | None = None,
    shape: tuple[int, ...] | None = None,
    max_queries: int | None = None,
    max_steps: int | None = None,
    max_time: float | None = None,
    target: float | None = None,
    stagnation: int | None = None,
    seed: int | zo.Sampler = 0,
    progress: bool = False,
    **method_options: Any,
) -> OptimizeResult:
    """Minimise a function of a flattened matrix with ZO-MOPI, called by SciPy.

    Pass this function as ``method=`` to `scipy.optimize.minimize`; what follows `callback` is
    given there in ``options``.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args) -> float`` with the flat `x` that SciPy's functions take; it gets `key`
        as in `zomopi_core.minimize` if it has a parameter of that name.
    x0 : array of shape (size,)
        Where to start, flat, in C order.
    args : tuple
        Further arguments of `fun`.
    jac, hess, hessp, constraints
        Must not be given: no derivative is used, and constraints other than bounds cannot be
        honoured.
    bounds : scipy.optimize.Bounds or sequence of (low, high), optional
        Applied to the iterate after each step; probes may lie outside by the smoothing.
    callback : callable, optional
        In either of SciPy's forms: ``callback(x)``, or ``callback(intermediate_result)`` with
        an `OptimizeResult` that has `x`, `fun` (mean loss of the step), `nit` and `nfev`.
        StopIteration ends the run.
    shape : tuple of int
        Shape of the matrix behind `x0`; required.
    max_queries, max_steps, max_time, target, stagnation, seed, progress
        As in `zomopi_core.minimize`.
    **method_options
        As in `zomopi_core.zo_mopi`: learning_rate, rank, probes and so on.

    Returns
    -------
    scipy.optimize.OptimizeResult
        With `x` (flat, the best point seen), `fun`, `nfev`, `nit`, `success`, `message`, `status`
        (0 target reached, 1 queries, 2 steps or 3 time spent, 4 stagnation, 5 interrupted,
        99 stopped by the callback), and `x_last` and `history` as in `zomopi_core.Result`.

    Raises
    ------
    ValueError
        If something is given that cannot be honoured, or an option is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> import scipy.optimize
    >>> import zomopi_adapters.scipy
    >>> target = np.outer([1.0, 2.0, 3.0], [1.0, -1.0]) / 4
    >>> result = scipy.optimize.minimize(
    ...     lambda x: np.sum((x.reshape(3, 2) - target) ** 2), np.zeros(6),
    ...     method=zomopi_adapters.scipy.zo_mopi,
    ...     options={"shape": (3, 2), "max_queries": 4000})
    >>> bool(result.fun < 1e-3), result.x.shape
    (True, (6,))
    """
    _refuse({"jac": jac, "hess": hess, "hessp": hessp}, "it only evaluates fun")
    _refuse({"constraints": constraints}, "zo.minimize(project=...) keeps the iterate feasible")
    _refuse(
        {"tol": method_options.pop("tol", None)},
        'stop with options such as "target", "stagnation" or "max_queries"',
    )
    flat = np.asarray(x0)
    if shape is None:
        raise ValueError(
            'options must hold "shape", the shape of the matrix behind the flat x0, for example '
            f'options={{"shape": (m, n)}} with m * n = {flat.size}'
        )
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if int(np.prod(shape)) != flat.size:
        raise ValueError(f"shape={shape} does not fit x0 with {flat.size} entries")
    known = inspect.signature(zo.zo_mopi).parameters
    for name in method_options:
        if name in _SCIPY_NAMES:
            raise ValueError(f"option {name!r} goes by the name {_SCIPY_NAMES[name]!r} in zo_mopi")
        if name not in known:
            options = [n for n, p in inspect.signature(zo_mopi).parameters.items() if _option(p)]
            raise unknown_name("options", name, [*options, *known])

    def loss(x: Any, **key: int) -> Any:
        value = fun(x.reshape(-1), *args, **key)
        # SciPy's own methods accept an array with one entry
        return value.item() if isinstance(value, np.ndarray) and value.size == 1 else value

    def keyed(x: Any, *, key: int) -> Any:
        return loss(x, key=key)

    result = zo.minimize(
        keyed if takes_key(fun) else loss,
        flat.reshape(shape),
        method=zo.zo_mopi(**method_options),
        max_queries=max_queries,
        max_steps=max_steps,
        max_time=max_time,
        target=target,
        stagnation=stagnation,
        seed=seed,
        bounds=None if bounds is None else _low_high(bounds, shape),
        callback=None if callback is None else _translated(callback),
        progress=progress,
    )
    return OptimizeResult(
        x=result.x.reshape(-1),
        fun=result.fun,
        nfev=result.nfev,
        nit=result.nit,
        success=result.success and result.status != "callback",
        status=_STATUS[result.status],
        message=result.message,
        x_last=result.x_last.reshape(-1),
        history=result.history,
    )


def _option(parameter: inspect.Parameter) -> bool:
    after_callback = ("fun", "x0", "args", "jac", "hess", "hessp", "bounds", "constraints")
    return parameter.name not in (*after_callback, "callback", "method_options")


def _refuse(given: dict[str, Any], remedy: str) -> None:
    for name, value in given.items():
        if value is not None and value is not False and np.size(value) > 0:
            raise ValueError(f"{name} cannot be honoured by zo_mopi; leave it out: {remedy}")


def _low_high(bounds: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    size = int(np.prod(shape))
    if isinstance(bounds, Bounds):
        if np.any(bounds.keep_feasible):
            raise ValueError(
                "keep_feasible cannot be honoured by zo_mopi, whose probes may lie outside the "
                "bounds by the smoothing; leave it out, or clip x inside fun"
            )
        low, high = bounds.lb, bounds.ub
    else:
        pairs = list(bounds)
        if len(pairs) != size:
            raise ValueError(f"bounds has {len(pairs)} pairs for an x0 with {size} entries")
        low = [-np.inf if pair[0] is None else pair[0] for pair in pairs]
        high = [np.inf if pair[1] is None else pair[1] for pair in pairs]
    low, high = (np.broadcast_to(np.asarray(b, dtype=float), (size,)) for b in (low, high))
    return low.reshape(shape), high.reshape(shape)


def _translated(callback: Callable[..., Any]) -> Callable[[zo.Iteration], None]:
    try:
        modern = set(inspect.signature(callback).parameters) == {"intermediate_result"}
    except (TypeError, ValueError):
        modern = False

    def translated(iteration: zo.Iteration) -> None:
        x = np.array(iteration.x).reshape(-1)
        if modern:
            callback(
                intermediate_result=OptimizeResult(
                    x=x, fun=iteration.loss, nit=iteration.step, nfev=iteration.queries
                )
            )
        else:
            callback(x)

    return translated
