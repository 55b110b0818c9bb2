"""A method as JSON and back, built from the parts of the core alone: data, never code."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from . import update
from .adaptive_rank import AdaptiveRank
from .aro import Rotated
from .curvature import DiagonalMetric, SecondDifference
from .dion import DionIteration
from .estimator import FiniteDifference
from .low_rank_orthogonalize import LowRankOrthogonalization
from .low_rank_probes import GaussianPairs, TwoSided
from .method import Method, Snapshots
from .momentum import Accumulation, Adam, ExponentialAverage
from .newton_schulz import NewtonSchulz
from .orthogonalize import Normalized, Plain, PolarFactor
from .power_iteration import PowerIteration
from .rule import Rule
from .subspace import FullSpace, Sketch
from .update import NormAdaptive, Update
from .variance_reduction import ControlVariate, DifferenceToSnapshot

# What may stand in the fields that hold parts.
_SUBSPACES = (Sketch, FullSpace, GaussianPairs, TwoSided, DiagonalMetric)
_ESTIMATORS = (FiniteDifference, SecondDifference, DifferenceToSnapshot)
_MOMENTA = (ExponentialAverage, Accumulation, Adam, ControlVariate)
_ORTHOGONALIZERS = (
    *(PowerIteration, AdaptiveRank, NewtonSchulz, PolarFactor, Plain, Normalized),
    *(LowRankOrthogonalization, DionIteration, Rotated),
)
_UPDATES = (Update, NormAdaptive)
_PARTS: dict[str, tuple[type, ...]] = {
    "estimator": (*_ESTIMATORS, type(None)),  # none in a first-order method
    "matrices": (Rule,),
    "vectors": (Rule,),
    "subspace": _SUBSPACES,
    "momentum": _MOMENTA,
    "orthogonalizer": _ORTHOGONALIZERS,
    "update": _UPDATES,
    "method": (Method,),
}
_CLASSES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        *(Method, Snapshots, Rule, update._Decay, update._Constant),
        *(*_SUBSPACES, *_ESTIMATORS, *_MOMENTA, *_ORTHOGONALIZERS, *_UPDATES),
    )
}
_DEEPEST = 12
# Counts of a method, such as ranks and probes, that are read from a file.
_LARGEST = 2**40
_MOST_PROBES = 2**16


class UnknownPartError(TypeError):
    """A method holds something that the core did not define, such as a function."""


def method_to_json(method: Method) -> dict[str, Any]:
    """Return a method as nested dicts of numbers and strings.

    Raises
    ------
    UnknownPartError
        If it has a part, or a function, of somebody's own.
    """
    return _encoded(dataclasses.replace(method, automatic=None))  # type: ignore[no-any-return]


def _encoded(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, tuple):
        return {"tuple": [_encoded(item) for item in value]}
    name = type(value).__name__
    if _CLASSES.get(name) is not type(value):
        raise UnknownPartError(f"{type(value).__module__}.{type(value).__qualname__}")
    names = [f.name for f in dataclasses.fields(_CLASSES[name])]
    fields = {field: _encoded(getattr(value, field)) for field in names}
    return {"class": name, **fields}


def method_from_json(data: Any) -> Method:
    """Return the method that `method_to_json` described.

    Raises
    ------
    ValueError
        If it describes none.
    """
    try:
        method = _decoded(data, 0)
    except (TypeError, KeyError, OverflowError) as error:
        raise ValueError(f"the method is not described as expected: {error}") from error
    if not isinstance(method, Method):
        raise ValueError("the description is not that of a method")
    return method


def _decoded(data: Any, depth: int) -> Any:
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    if data is None or isinstance(data, bool | float | str):
        return data
    if isinstance(data, int):
        if abs(data) > _LARGEST:
            raise ValueError(f"it holds the number {data}")
        return data
    if not isinstance(data, dict):
        raise ValueError(f"it holds a {type(data).__name__}")
    if set(data) == {"float"}:
        return float({"inf": "inf", "-inf": "-inf", "nan": "nan"}[data["float"]])
    if set(data) == {"tuple"}:
        return tuple(_decoded(item, depth + 1) for item in data["tuple"])
    cls = _CLASSES[data["class"]]
    fields = {f.name for f in dataclasses.fields(cls)}
    if set(data) - {"class"} != fields:
        raise ValueError(f"{data['class']} has other fields")
    values = {name: _decoded(data[name], depth + 1) for name in fields}
    for name, value in values.items():
        if name in _PARTS and type(value) not in _PARTS[name]:
            raise ValueError(f"{name} of {data['class']} is a {type(value).__name__}")
        if name == "probes" and not 0 < value <= _MOST_PROBES:
            raise ValueError(f"it has {value} probes")
    return cls(**values)
