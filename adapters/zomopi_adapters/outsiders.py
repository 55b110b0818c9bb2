"""Optimizers of other packages, and `poem`, for a race with the methods of zomopi.

Each is ``solver(fun, x0, max_queries, seed)``, the form in which `zomopi_core.race` takes any
solver, and drives its package's own loop. They all see the unknowns as one float64 vector that
starts at zero, in units of the parameters' typical size (`zomopi_core.update.typical_size`), by
which the default learning rates of zomopi are measured too: each package's documentation asks for
variables of similar scale.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from zomopi_core.errors import missing_extra, unknown_name

from ._flat_function import FlatFunction, one_run
from .poem import poem

__all__ = [
    "cma",
    "cma_separable",
    "evosax_openes",
    "find",
    "names",
    "nevergrad_ngopt",
    "nevergrad_spsa",
    "scipy_lbfgsb",
]

Solver = Callable[[Callable[..., Any], Any, int, int], None]

# A full covariance matrix of so many unknowns takes 32 MB, and its eigenvectors, computed every
# few generations, seconds: 10,000 evaluations take a minute, and twice the unknowns eight times
# as long.
_FULL_COVARIANCE = 2000


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise missing_extra(name, "bench") from error


def cma(fun: Callable[..., Any], x0: Any, max_queries: int, seed: int) -> None:
    """Minimise with CMA-ES of pycma: the full covariance matrix, the diagonal of large problems.

    Up to 2,000 unknowns the full matrix is adapted, beyond that its diagonal (`cma_separable`).
    The population size is pycma's; sigma0 is 0.3 in units of typical size; restarts double the
    population. Where the function is noisy, pycma's `NoiseHandler` is used, unless the function
    takes a `key`: then a generation is compared under the same noise.

    Parameters
    ----------
    fun : callable
        ``fun(x) -> float``; the arguments are those of any solver in `zomopi_core.race`.
    x0 : array or dict of arrays
        Where to start.
    max_queries : int
        Budget of evaluations.
    seed : int
        Of the package's generator.

    Examples
    --------
    >>> import numpy as np
    >>> from zomopi_adapters import outsiders
    >>> seen = []
    >>> def loss(x):
    ...     seen.append(float(np.sum((x - 1.0) ** 2)))
    ...     return seen[-1]
    >>> outsiders.cma(loss, np.zeros((2, 2)), 400, 0)
    >>> len(seen) <= 400, min(seen) < 1e-3
    (True, True)
    """
    _cma(fun, x0, max_queries, seed, separable=False)


def cma_separable(fun: Callable[..., Any], x0: Any, max_queries: int, seed: int) -> None:
    """Minimise with separable CMA-ES of pycma, which adapts a diagonal covariance matrix.

    The option ``CMA_diagonal``; all else is as in `cma`.

    Parameters
    ----------
    fun, x0, max_queries, seed
        As in `cma`.
    """
    _cma(fun, x0, max_queries, seed, separable=True)


# The standard deviation at the start, which pycma wants to be a third of the distance at which the
# optimum is expected. On the digits and on quadratics, at 4,000 evaluations, 0.1 and 0.03 were
# nowhere better by more than a tenth, and elsewhere up to 1.8 and 4.9 times worse.
_SIGMA0 = 0.3


def _cma(
    fun: Callable[..., Any], x0: Any, max_queries: int, seed: int, *, separable: bool
) -> None:
    pycma = _package("cma")
    flat = FlatFunction(fun, x0, max_queries)
    key = 0

    def after_generation(strategy: Any) -> None:
        nonlocal key
        key += 1
        flat.recommend(strategy.mean)

    options = {
        "CMA_diagonal": separable or flat.size > _FULL_COVARIANCE,
        "maxfevals": max_queries,
        "maxiter": math.inf,
        "seed": seed % 2**31 + 1,  # 0 stands for the time
        "verbose": -9,
        "verb_log": 0,
        "signals_filename": "",
    }
    with one_run():
        pycma.fmin2(
            lambda z: flat(z, key=key),
            np.zeros(flat.size),
            _SIGMA0,
            options,
            restarts=9,
            restart_from_best=True,
            noise_handler=True if flat.noisy and not flat.keyed else None,
            callback=after_generation,
        )


def nevergrad_ngopt(fun: Callable[..., Any], x0: Any, max_queries: int, seed: int) -> None:
    """Minimise with NGOpt of nevergrad, which chooses a method by budget, dimension and noise.

    The variables are in the units that nevergrad expects, where a standard deviation of 1 is
    typical; it is told whether the function is noisy.

    Parameters
    ----------
    fun, x0, max_queries, seed
        As in `cma`.
    """
    with one_run(), _metamodel_repaired():
        flat = FlatFunction(fun, x0, max_queries)
        optimizer = _nevergrad("NGOpt", flat, max_queries, seed)
        # finding the recommendation can cost a search through all points
        marks = set(_log_spaced(max_queries))
        for query in range(max_queries):
            candidate = optimizer.ask()
            optimizer.tell(candidate, flat(candidate.value))
            if flat.noisy and query + 1 in marks:
                flat.recommend(optimizer.provide_recommendation().value)


@contextlib.contextmanager
def _metamodel_repaired() -> Iterator[None]:
    """Let nevergrad's surrogate model take its predictions for numbers.

    Up to nevergrad 1.0.12 it calls `float` on arrays with one entry, which NumPy refuses from 2.4
    on: an optimizer that uses the model would fail at its first use.
    """
    metamodel = _package("nevergrad.optimization.metamodel")
    metamodel.float = lambda x: np.asarray(x, dtype=np.float64).item()
    try:
        yield
    finally:
        del metamodel.float  # the built-in one is seen again


def _nevergrad(name: str, flat: FlatFunction, max_queries: int, seed: int) -> Any:
    nevergrad = _package("nevergrad")
    parameters = nevergrad.p.Array(init=np.zeros(flat.size))
    parameters.random_state.seed(seed % 2**32)
    parameters.function.deterministic = not flat.noisy
    return nevergrad.optimizers.registry[name](
        parametrization=parameters, budget=max_queries, num_workers=1
    )


def _log_spaced(last: int, count: int = 50) -> list[int]:
    return sorted({round(q) for q in np.geomspace(1, last, count)})


# Of Spall's guidelines: pairs for the size of the gradient, and the length of the first steps, in
# units of typical size. Of 0.1 to 4, on the digits and on quadratics, shorter steps than 1 were
# slower everywhere, and longer ones slower or divergent on two or more of the four.
_SPSA_PAIRS = 10
_SPSA_STEP = 1.0


def nevergrad_spsa(fun: Callable[..., Any], x0: Any, max_queries: int, seed: int) -> None:
    """Minimise with SPSA of nevergrad, its two gains set by Spall's guidelines.

    nevergrad's own gains are placeholders, as its code says. Spall's guidelines (Introduction to
    Stochastic Search and Optimization, 7.5.2): c is about the standard deviation of the noise,
    and a small number without noise; a is such that the first steps have the size that is wanted,
    by the mean slope of a few pairs of evaluations, which count.

    Parameters
    ----------
    fun, x0, max_queries, seed
        As in `cma`.
    """
    with one_run():
        flat = FlatFunction(fun, x0, max_queries)
        optimizer = _nevergrad("SPSA", flat, max_queries, seed)
        generator = np.random.default_rng(seed)
        if not flat.noisy:
            # half of the digits are left for the slope, and the curvature matters little
            optimizer.c = max(1e-3, math.sqrt(flat.epsilon))
        slopes = []
        for pair in range(min(_SPSA_PAIRS, max(1, max_queries // 40))):
            shift = optimizer.c * generator.choice([-1.0, 1.0], flat.size)
            difference = flat(shift, key=pair) - flat(-shift, key=pair)
            slopes.append(abs(difference) / (2 * optimizer.c))
        step = _SPSA_STEP / math.sqrt(flat.size)  # of one entry
        slope = float(np.mean(slopes))
        if slope > 0:
            optimizer.a = step * (1 + optimizer.A) ** 0.602 / slope
        for query in range(max_queries - 2 * len(slopes)):
            candidate = optimizer.ask()
            # both points of a pair under the same noise
            optimizer.tell(candidate, flat(candidate.value, key=len(slopes) + query // 2))
            if query % 2 and flat.noisy:
                flat.recommend(optimizer.provide_recommendation().value)


def scipy_lbfgsb(fun: Callable[..., Any], x0: Any, max_queries: int, seed: int) -> None:
    """Minimise with SciPy's L-BFGS-B, whose gradient is its own two-point difference.

    The difference step is the root of the relative precision of the function, which is the
    machine epsilon of the parameters' dtype or, where the function is noisy, its measured noise.
    A run that converges, or whose line search fails, is started again from where it ended.

    Parameters
    ----------
    fun, x0, max_queries, seed
        As in `cma`; nothing is random here.
    """
    optimize = _package("scipy.optimize")
    with one_run():
        flat = FlatFunction(fun, x0, max_queries)
        relative, spent = flat.epsilon, 0
        if flat.noisy and not flat.keyed:
            values = [flat(np.zeros(flat.size)) for _ in range(min(8, max_queries))]
            spent = len(values)
            noise = float(np.std(values)) / max(abs(float(np.mean(values))), 1e-300)
            relative = max(relative, noise)
        z = np.zeros(flat.size)
        restart = 0
        while spent < max_queries:
            result = optimize.minimize(
                functools.partial(flat, key=restart),
                z,
                method="L-BFGS-B",
                jac=None,
                callback=flat.recommend if flat.noisy else None,
                options={
                    "eps": min(0.1, math.sqrt(relative)),
                    "maxfun": max_queries - spent,
                    # under noise that is the same for a run, a run must not go after that noise
                    "maxiter": 10 if flat.noisy else max_queries,
                    "ftol": 0.0,
                    "gtol": 0.0,
                },
            )
            if not flat.noisy and result.nit == 0:
                return  # another run would do the same
            z, spent, restart = result.x, spent + result.nfev, restart + 1


# Within the range that the authors of evosax search for Open-ES (learning rate 0.001 to 0.04,
# sigma 0.01 to 0.1), with Adam as in the paper of OpenAI-ES. On the digits and on quadratics, at
# 4,000 evaluations, half the rate was slower everywhere, so were 32 and 64 points, and sigma
# made no difference.
_OPENES_RATE, _OPENES_SIGMA, _OPENES_POPULATION = 0.04, 0.03, 16


def evosax_openes(fun: Callable[..., Any], x0: Any, max_queries: int, seed: int) -> None:
    """Minimise with Open-ES of evosax: mirrored samples, centred ranks, Adam.

    sigma is 0.03 and the learning rate of Adam falls linearly from 0.04 to zero over the budget,
    both in units of typical size; the population is 16, or a tenth of the budget if that is less.
    The mean, which is the answer, is evaluated once a generation.

    Parameters
    ----------
    fun, x0, max_queries, seed
        As in `cma`.
    """
    _package("evosax")
    jax = _package("jax")
    with one_run():
        flat = FlatFunction(fun, x0, max_queries)
        population = min(_OPENES_POPULATION, max(2, max_queries // 20 * 2))
        generations = -(-max_queries // (population + 1))
        strategy = _openes(flat.size, population, generations)
        parameters = strategy.default_params
        key = jax.random.key(seed)
        state = strategy.init(key, np.zeros(flat.size, dtype=np.float32), parameters)
        for generation in range(generations):
            asking, telling = jax.random.split(jax.random.fold_in(key, generation))
            points, state = strategy.ask(asking, state, parameters)
            losses = np.asarray([flat(z, key=generation) for z in np.asarray(points)])
            # its shaping uses ranks alone; given as such they survive in float32
            ranks = np.argsort(np.argsort(losses, kind="stable"), kind="stable").astype(np.float32)
            state, _ = strategy.tell(telling, points, ranks, state, parameters)
            mean = np.asarray(state.mean)
            flat.recommend(mean)
            flat(mean, key=generation)


@functools.lru_cache(maxsize=8)
def _openes(size: int, population: int, generations: int) -> Any:
    """Return the strategy; it is what JAX compiles for, so runs of one size share it."""
    optax = _package("optax")
    jax = _package("jax")
    return _package("evosax.algorithms").Open_ES(
        population_size=population,
        solution=jax.numpy.zeros(size, dtype=np.float32),
        optimizer=optax.adam(optax.linear_schedule(_OPENES_RATE, 0.0, generations)),
        std_schedule=optax.constant_schedule(_OPENES_SIGMA),
    )


_SOLVERS: dict[str, tuple[str, Solver]] = {
    "cma": ("cma", cma),
    "cma-separable": ("cma", cma_separable),
    "nevergrad-ngopt": ("nevergrad", nevergrad_ngopt),
    "nevergrad-spsa": ("nevergrad", nevergrad_spsa),
    "scipy-lbfgsb": ("scipy", scipy_lbfgsb),
    "evosax-openes": ("evosax", evosax_openes),
    "poem": ("numpy", poem),
}


def names() -> tuple[str, ...]:
    """Return the names of the outsiders.

    Returns
    -------
    tuple of str
        As `zomopi_core.race` takes them.

    Examples
    --------
    >>> from zomopi_adapters import outsiders
    >>> outsiders.names()[0]
    'cma'
    """
    return tuple(_SOLVERS)


def find(name: str) -> tuple[str, Solver]:
    """Return the package of an outsider, and the solver.

    Parameters
    ----------
    name : str
        One of `names`.

    Returns
    -------
    package : str
    solver : callable

    Raises
    ------
    ValueError
        If there is no outsider of that name.
    ImportError
        If its package is not installed (extra ``bench``).
    """
    if name not in _SOLVERS:
        raise unknown_name("name", name, _SOLVERS)
    package, solver = _SOLVERS[name]
    if importlib.util.find_spec(package) is None:
        raise missing_extra(package, "bench")
    return package, solver
