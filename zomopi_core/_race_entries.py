"""Who races: names of methods with options, methods, outsiders and solvers of one's own."""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from . import _arrays, catalog, errors
from ._race_oracle import Oracle
from .costs import spare_queries, step_costs, steps_paid_for
from .method import Method
from .minimize import minimize
from .update import constant, cosine_decay, linear_decay

_SCHEDULES = ("constant", "linear", "cosine")
_RATES = ("learning_rate", "vector_learning_rate")

Solver = Callable[[Any, Any, int, int], Any]


@dataclass(frozen=True)
class Entry:
    """A competitor.

    Attributes
    ----------
    label : str
        What it is called in tables and files.
    group : str or None
        What the best of a grid is called.
    settings : str
        What must be the same for a finished run to stand for a new one.
    solver : callable
        ``solver(fun, x0, max_queries, seed)``.
    """

    label: str
    group: str | None
    settings: str
    solver: Solver


@dataclass(frozen=True)
class MethodSolver:
    """A method of the catalogue as a solver."""

    method: Method

    def __call__(self, fun: Oracle, x0: Any, max_queries: int, seed: int) -> Any:
        """Minimise, and return what a user gets."""
        method = self.prepared(max_queries)
        # A key that is not used would let tuned rates expect samples of data.
        takes_key = fun.keyed or method.takes_full_batches
        result = minimize(
            fun if takes_key else functools.partial(fun, key=None),
            x0,
            method=method,
            max_queries=max_queries,
            seed=seed,
            callback=(lambda iteration: fun.recommend(iteration.x)) if fun.noisy else None,
        )
        if result.status == "interrupted":  # minimize returns what it reached; the race must end
            raise KeyboardInterrupt
        return result.x

    def prepared(self, max_queries: int) -> Method:
        """Return the method for a budget."""
        return self.method


@dataclass(frozen=True)
class NamedSolver(MethodSolver):
    """A method by its name, with options, and a schedule over the budget."""

    name: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    schedule: str = "constant"

    def prepared(self, max_queries: int) -> Method:
        """Return the method with learning rates that fall over the steps the budget pays for."""
        if self.schedule == "constant":
            return self.method
        costs = step_costs(self.method, constrained=False)
        spare = spare_queries(max_queries, costs)
        steps = steps_paid_for(max_queries - spare, None, costs) or 1
        fall = linear_decay if self.schedule == "linear" else cosine_decay
        falling = {k: fall(v, steps) if k in _RATES else v for k, v in self.options}
        make: Callable[..., Method] = catalog.maker(self.name)
        return make(**falling)


def entries(methods: Any) -> list[Entry]:
    """Return the competitors that `methods` names, each grid expanded.

    Parameters
    ----------
    methods : str, Method, callable, a sequence of these, or a dict from labels to them

    Raises
    ------
    ValueError, TypeError, ImportError
        If a name, an option or a package is missing, a method needs gradients, or two
        competitors have one label.
    """
    if isinstance(methods, Mapping):
        pairs: Iterable[tuple[str | None, Any]] = methods.items()
    elif isinstance(methods, str):
        pairs = [(None, name) for name in methods.replace(",", " ").split()]
    elif isinstance(methods, Iterable):
        pairs = [(None, method) for method in methods]
    else:
        pairs = [(None, methods)]
    found = [entry for label, method in pairs for entry in _entries_of(label, method)]
    if not found:
        raise ValueError("methods names nobody; pass at least one name, Method or solver")
    labels = [entry.label for entry in found]
    for label in labels:
        if labels.count(label) > 1:
            raise errors.same_label("methods", label)
    return found


def _entries_of(label: str | None, method: Any) -> list[Entry]:
    if isinstance(method, str):
        return [
            Entry(label or own, group, settings, solver)
            if group is None
            else Entry(own, label or group, settings, solver)
            for own, group, settings, solver in _named(method)
        ]
    if isinstance(method, Method):
        _check_races(method)
        return [Entry(label or method.name, None, _describe(method), MethodSolver(method))]
    if callable(method):
        name = getattr(method, "__qualname__", type(method).__qualname__)
        return [Entry(label or name.split(".")[-1], None, name, method)]
    raise errors.wrong_competitor(method)


def _named(text: str) -> list[tuple[str, str | None, str, Solver]]:
    """Return (label, group, settings, solver) of each member of ``name:option=a/b:option=c``."""
    name, *parts = text.split(":")
    known = name.lower().replace("-", "_")
    if known not in catalog.methods():
        package, solver = _outsider(name, text)
        if parts:
            raise errors.no_options(name, parts[0])
        return [(name.lower(), None, f"{package} {_arrays.installed_version(package)}", solver)]
    columns = []
    for part in parts:
        option, equals, values = part.partition("=")
        if not equals or not values:
            raise errors.wrong_option(text, part)
        columns.append([(option, value) for value in values.split("/")])
    members = list(itertools.product(*columns))
    group = None
    if len(members) > 1:
        fixed = [f":{c[0][0]}={c[0][1]}" for c in columns if len(c) == 1]
        group = "".join([known, *fixed, " (tuned)"])
    made: list[tuple[str, str | None, str, Solver]] = []
    for chosen in members:
        label = ":".join([known, *(f"{option}={value}" for option, value in chosen)])
        solver = _solver(known, dict(chosen))
        settings = f"{_describe(solver.method)} {solver.schedule}"
        made.append((label, group, settings, solver))
    return made


def _solver(name: str, texts: dict[str, str]) -> NamedSolver:
    make = catalog.maker(name)
    known = list(inspect.signature(make).parameters)
    schedule = texts.pop("schedule", "constant")
    if schedule not in _SCHEDULES:
        raise errors.unknown_name("schedule", schedule, _SCHEDULES)
    for option in texts:
        if option not in known:
            raise errors.unknown_name(f"an option of {name}", option, [*known, "schedule"])
    options = {option: _value(text) for option, text in texts.items()}
    rates = [options[rate] for rate in _RATES if rate in options]
    if schedule != "constant" and (not rates or "auto" in rates):
        raise errors.schedule_without_rate(name, schedule)
    for rate in set(_RATES) & set(options):  # a wrong number is better refused here
        if options[rate] != "auto":
            constant(options[rate])
    # Without a rate, as `minimize` takes a name; with one, the paper's method.
    method = make(**options) if "learning_rate" in options else catalog.automatic(name, options)
    _check_races(method)
    return NamedSolver(method, name, tuple(options.items()), schedule)


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _outsider(name: str, text: str) -> tuple[str, Solver]:
    # The core knows no adapter; this one is looked up only when somebody names it.
    outsiders = importlib.import_module("zomopi_adapters.outsiders")
    if name.lower() not in outsiders.names():
        racing = [n for n in catalog.methods() if _races(catalog.find_method(n))]
        raise errors.unknown_name("methods", text, [*racing, *outsiders.names()])
    found: tuple[str, Solver] = outsiders.find(name.lower())
    return found


def _races(method: Method) -> bool:
    return method.estimator is not None


def _check_races(method: Method) -> None:
    if not _races(method):
        raise errors.cannot_race(method.name)


def _describe(method: Method) -> str:
    """Return what a method is made of, without the addresses of functions."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(method))
