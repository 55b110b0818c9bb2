"""The header of a journal: what a run was made of, and whether it can be repeated here."""

from __future__ import annotations

import hashlib
import time
import uuid
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import _arrays, errors
from ._arrays import Array
from ._method_json import UnknownPartError, method_from_json, method_to_json
from .constraints import Projection
from .method import Method, leaves_of
from .sampling import (
    CupySampler,
    HostSampler,
    JaxSampler,
    NumpySampler,
    Sampler,
    TorchSampler,
    native_sampler,
)

_SAMPLERS: dict[str, Any] = {
    cls.__name__: cls for cls in (NumpySampler, TorchSampler, CupySampler, JaxSampler, HostSampler)
}
_MOST_LEAVES = 10**6
_LONGEST = 2**40


def describe(
    driver: str,
    x0: Any,
    method: Method,
    sampler: Sampler,
    bounds: Any,
    project: Projection | None,
    rules: dict[str, Any],
) -> dict[str, Any]:
    """Return the header of a run that begins: numbers and strings alone."""
    arrays = leaves_of(x0)
    names = sorted(x0) if isinstance(x0, Mapping) else None
    try:
        described, unknown = method_to_json(method), None
    except UnknownPartError as error:
        described, unknown = None, str(error)
    return {
        "run": uuid.uuid4().hex,
        "driver": driver,
        "created": time.strftime("%Y-%m-%d %H:%M:%S%z"),
        "zomopi": own_version(),
        "surroundings": _arrays.surroundings(arrays[0]),
        "backend": list(_arrays.backend_of(arrays[0])),
        "sampler": _sampler(sampler),
        "method": described,
        "method_name": method.name,
        "unknown_part": unknown,
        "names": names,
        "order": list(x0) if isinstance(x0, Mapping) else None,
        "shapes": [list(map(int, x.shape)) for x in arrays],
        "dtypes": [_arrays.dtype_name(x) for x in arrays],
        "x0": digest(x0),
        "bounds": bounds_digest(bounds),
        "project": project is not None,
        "rules": rules,
    }


def own_version() -> str:
    """Return the release of zomopi."""
    # none where it is run from a source tree that was not installed
    return _arrays.installed_version("zomopi") or "unknown"


def _sampler(sampler: Sampler) -> dict[str, Any]:
    name = type(sampler).__name__
    if _SAMPLERS.get(name) is type(sampler):
        return {"name": name, "seed": str(sampler.seed)}  # type: ignore[attr-defined]
    return {"name": f"{type(sampler).__module__}.{type(sampler).__qualname__}", "seed": None}


def digest(params: Any) -> str:
    """Return a hash of parameters: names, shapes, dtypes and every bit."""
    hashed = hashlib.sha256()
    names = sorted(params) if isinstance(params, Mapping) else [""]
    for name, x in zip(names, leaves_of(params), strict=True):
        hashed.update(f"{name}\0{tuple(x.shape)}\0{_arrays.dtype_name(x)}\0".encode())
        hashed.update(_arrays.to_bytes(x).data)
    return hashed.hexdigest()


def bounds_digest(bounds: Any) -> str | None:
    """Return a hash of `bounds=`, None where there are none."""
    if bounds is None:
        return None
    hashed = hashlib.sha256()
    for bound in bounds:
        table = bound if isinstance(bound, Mapping) else {"": bound}
        for name in sorted(table):
            value = table[name]
            hashed.update(f"{name}\0{value is None}\0".encode())
            if value is not None:
                array = _arrays.to_host(value) if _arrays.is_array(value) else value
                host = np.asarray(array, dtype=np.float64)
                hashed.update(f"{host.shape}\0".encode() + np.ascontiguousarray(host).tobytes())
    return hashed.hexdigest()


def recorded_method(header: dict[str, Any], given: Method | None) -> Method:
    """Return the method of a run; `given` where it has parts that no file can hold."""
    described = header.get("method")
    if described is None:
        if given is None:
            raise errors.needs_again(
                "method", f"it has a part of your own, {header['unknown_part']}"
            )
        if given.name != header["method_name"]:
            raise errors.other_run(f"its method was {header['method_name']}, not {given.name}")
        return given
    if given is not None:
        raise errors.given_twice("method")
    return method_from_json(described)


def recorded_sampler(header: dict[str, Any], given: Sampler | None, like: Array) -> Sampler:
    """Return the sampler of a run; `given` where it was one of the user's own."""
    name, seed = header["sampler"]["name"], header["sampler"]["seed"]
    if seed is None:
        if given is None:
            raise errors.needs_again("seed", f"it was a sampler of your own, {name}")
        return given
    if given is not None:
        raise errors.given_twice("seed")
    number = int(seed)
    if name == HostSampler.__name__:
        return HostSampler(
            number, None if isinstance(like, np.ndarray) else _arrays.namespace(like)
        )
    return native_sampler(number, like)


def recorded_like(header: dict[str, Any]) -> Array:
    """Return an array in the library and place of a run's parameters."""
    name, place = header["backend"]
    if name not in _arrays.LIBRARIES:
        raise errors.needs_again("x0", f"its arrays were those of {name!r:.40}")
    xp, device = _arrays.backend(name, place)
    return xp.zeros((1,), device=device)


def check_start(header: dict[str, Any], x0: Any) -> None:
    """Raise unless `x0` is the start of the recorded run, to the bit."""
    names = sorted(x0) if isinstance(x0, Mapping) else None
    arrays = leaves_of(x0)
    found = [list(map(int, x.shape)) for x in arrays]
    if names != header["names"] or found != header["shapes"]:
        raise errors.other_run(
            f"its parameters have the names {header['names']} and shapes {header['shapes']}, "
            f"x0 has {names} and {found}"
        )
    dtypes = [_arrays.dtype_name(x) for x in arrays]
    if dtypes != header["dtypes"]:
        raise errors.other_run(f"its parameters are {header['dtypes']}, x0 is {dtypes}")
    if digest(x0) != header["x0"]:
        raise errors.other_run("it started from other numbers than this x0")


def in_order(header: dict[str, Any], x0: Any) -> Any:
    """Return parameters with their names in the order in which they were given."""
    order = header["order"]
    return x0 if order is None else {name: x0[name] for name in order}


def check_surroundings(header: dict[str, Any], like: Array, *, exact: bool) -> None:
    """Raise, or warn, if a run would not have the same bits here as where it was recorded.

    Parameters
    ----------
    header : dict
    like : array
        One of the parameters.
    exact : bool
        Whether what only rounds otherwise is refused, too.
    """
    here = {**_arrays.surroundings(like), "zomopi": own_version()}
    there = {**header["surroundings"], "zomopi": header["zomopi"]}
    differs = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if not differs:
        return
    detail = ", ".join(f"{n} {there.get(n)} there, {here.get(n)} here" for n in differs)
    portable = header["sampler"]["name"] in ("HostSampler",) or header["sampler"]["seed"] is None
    on_gpu = header["backend"][1] is not None or _arrays.on_gpu(like)
    draws = {"library", "version"} | ({"device"} if on_gpu else set())
    if not portable and draws & set(differs):
        raise errors.other_draws(detail)
    if exact:
        raise errors.other_rounding(detail)
    warnings.warn(errors.rounds_otherwise(detail), errors.JournalWarning, stacklevel=3)


_FIELDS = {
    "run": str, "driver": str, "created": str, "zomopi": str, "surroundings": dict,
    "backend": list, "sampler": dict, "method": dict | None, "method_name": str,
    "unknown_part": str | None, "names": list | None, "order": list | None, "shapes": list,
    "dtypes": list, "x0": str, "bounds": str | None, "project": bool, "rules": dict,
}  # fmt: skip


def check_header(header: dict[str, Any]) -> None:
    """Raise unless a header has the form that `describe` gives it."""
    complete = set(header) == set(_FIELDS)
    if not complete or not all(isinstance(header[k], t) for k, t in _FIELDS.items()):
        raise errors.other_run("its header is not that of a run")
    texts = [*header["dtypes"], *header["surroundings"].values(), *(header["names"] or ())]
    sampler, shapes = header["sampler"], header["shapes"]
    fits = (
        len(header["run"]) == 32
        and set(header["run"]) <= set("0123456789abcdef")
        and all(isinstance(text, str) for text in texts)
        and len(header["backend"]) == 2
        and all(isinstance(part, str | None) for part in header["backend"])
        and set(sampler) == {"name", "seed"}
        and isinstance(sampler["name"], str)
        and (sampler["seed"] is None or str(sampler["seed"]).isdigit())
        and 0 < len(shapes) <= _MOST_LEAVES
        and all(isinstance(s, list) and all(type(n) is int and n > 0 for n in s) for s in shapes)
        and all(np.prod([float(n) for n in s]) <= _LONGEST for s in shapes)
        and sorted(header["order"] or ()) == (header["names"] or [])
        and len(header["dtypes"]) == len(shapes)
    )
    if not fits:
        raise errors.other_run("its header is not that of a run")


def check_driver(header: dict[str, Any], driver: str) -> None:
    """Raise unless a run was driven as it is about to be driven again."""
    check_header(header)
    if header["driver"] != driver:
        raise errors.other_driver(str(header["driver"]))
