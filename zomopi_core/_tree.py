"""The state of a run as arrays and JSON, and back: a closed set of types, nothing is executed.

Arrays come back with the bits and the layout that they had, and where one array stood in two
places it does so again: both decide how a product is rounded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import _arrays
from ._safetensors import Stored
from .adaptive_rank import Spectrum
from .balance import Balance, Share
from .line_search import LineModel, MeanParabola, Parabola
from .method import State
from .momentum import Moments
from .noise import Noise
from .point import Point, Snapshot
from .rate_search import RateSearch
from .retreat import Descent
from .rule import LeafState
from .smoothing import Smoothing
from .tuning import Tuning
from .update import Change

_OF_LINES = (RateSearch, LineModel, Parabola, MeanParabola, Descent, Balance, Share)
_OF_TUNING = (Tuning, Noise, Smoothing, *_OF_LINES)
_CLASSES: dict[str, type] = {
    cls.__name__: cls
    for cls in (Point, Snapshot, State, LeafState, Change, Moments, Spectrum, *_OF_TUNING)
}
_HOST = np.zeros(0)
_SCALARS = {np.dtype(name).str for name in ("f2", "f4", "f8", "i4", "i8", "?")}


class CannotStoreError(TypeError):
    """A state holds something that has no place in a file."""


def encode(tree: Any) -> tuple[Any, dict[str, Stored]]:
    """Return the structure of `tree` as JSON's types, and its arrays by name."""
    encoder = _Encoder()
    return encoder.encode(tree), encoder.arrays


class _Encoder:
    def __init__(self) -> None:
        self.arrays: dict[str, Stored] = {}
        self._names: dict[Any, str] = {}
        self._kept: list[Any] = []  # else an address might be used twice

    def encode(self, value: Any) -> Any:
        if isinstance(value, np.generic):  # what NumPy's arithmetic makes of 0-d arrays
            return {"scalar": value.dtype.str, "hex": value.tobytes().hex()}
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return {"float": value.hex()}
        if _arrays.is_array(value):
            return self._array(value)
        name = type(value).__name__
        if _CLASSES.get(name) is type(value):
            return {"class": name, "fields": [self.encode(v) for v in _fields(value)]}
        if type(value) is tuple:
            return {"tuple": [self.encode(v) for v in value]}
        if isinstance(value, Mapping):
            return {"dict": [[k, self.encode(v)] for k, v in value.items()]}
        if hasattr(value, "sampler"):  # Randomness: whoever restores it has one
            return {"random": True}
        raise CannotStoreError(f"{type(value).__module__}.{type(value).__qualname__}")

    def _array(self, x: Any) -> Any:
        key = _arrays.identity(x)
        if key not in self._names:
            name = self._names[key] = str(len(self._names))
            self._kept.append(x)
            order = _arrays.axis_order(x)
            plain = order == tuple(range(x.ndim))
            lying = x if plain else _arrays.namespace(x).permute_dims(x, order)
            dtype = _arrays.dtype_name(x)
            shape = tuple(map(int, lying.shape))
            self.arrays[name] = Stored(dtype, shape, _arrays.to_bytes(lying))
        host = isinstance(x, np.ndarray)
        return {"array": self._names[key], "order": list(_arrays.axis_order(x)), "host": host}


def _fields(value: Any) -> list[Any]:
    if dataclasses.is_dataclass(value):
        return [getattr(value, f.name) for f in dataclasses.fields(value)]
    return list(value)


def decode(structure: Any, arrays: Mapping[str, Stored], like: Any, random: Any) -> Any:
    """Return the tree that `encode` took apart, its arrays in the library and place of `like`.

    Raises
    ------
    ValueError
        If the structure holds anything else than `encode` writes.
    """
    decoder = _Decoder(arrays, like, random)
    try:
        return decoder.decode(structure, 0)
    except (TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(f"its structure is not that of a state: {error}") from error


_DEEPEST = 16


class _Decoder:
    def __init__(self, arrays: Mapping[str, Stored], like: Any, random: Any) -> None:
        self._stored, self._like, self._random = arrays, like, random
        self._made: dict[str, Any] = {}

    def decode(self, value: Any, depth: int) -> Any:
        if depth > _DEEPEST:
            raise ValueError("its structure is nested too deeply")
        if value is None or isinstance(value, bool | int | str):
            return value
        if not isinstance(value, dict):
            raise ValueError("its structure holds what no state holds")
        if "array" in value:
            return self._array(value["array"], value["order"], value["host"])
        if "float" in value:
            return float.fromhex(value["float"])
        if "scalar" in value:
            if value["scalar"] not in _SCALARS:
                raise ValueError(f"it holds a number of type {value['scalar']!r:.20}")
            return np.frombuffer(bytes.fromhex(value["hex"]), dtype=value["scalar"])[0]
        if "random" in value:
            return self._random
        if "tuple" in value:
            return tuple(self.decode(v, depth + 1) for v in value["tuple"])
        if "dict" in value:
            return {str(k): self.decode(v, depth + 1) for k, v in value["dict"]}
        fields = [self.decode(v, depth + 1) for v in value["fields"]]
        return _CLASSES[value["class"]](*fields)

    def _array(self, name: str, order: list[int], host: bool) -> Any:
        if name not in self._made:
            dtype, shape, data = self._stored[name]
            if sorted(order) != list(range(len(shape))):
                raise ValueError("the axes of an array are not numbered")
            place = _HOST if host else self._like
            x = _arrays.from_bytes(data, dtype, shape, place)
            if order != sorted(order):
                inverse = tuple(sorted(range(len(order)), key=order.__getitem__))
                x = _arrays.namespace(x).permute_dims(x, inverse)
            self._made[name] = x
        return self._made[name]


def shapes(tree: Any) -> Any:
    """Return a tree with the shape and dtype in the place of each array."""
    if _arrays.is_array(tree):
        return tuple(tree.shape), _arrays.dtype_name(tree)
    if isinstance(tree, Mapping):
        return {name: shapes(value) for name, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(shapes(value) for value in tree)
    return type(tree).__name__ if not isinstance(tree, float) or math.isfinite(tree) else "float"
