"""The backends that can be chosen by name, what is installed of them, and the machine."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import platform
import sys
from typing import Any

import array_api_compat as compat
import numpy as np

from .. import errors
from .namespaces import Array, Namespace, library, namespace, on_gpu

#: name of a backend -> package that must be importable for it
LIBRARIES = {"numpy": "numpy", "torch": "torch", "cupy": "cupy", "jax": "jax"}


def installed(name: str) -> bool:
    """Tell whether the library of backend `name` can be imported, without importing it."""
    return importlib.util.find_spec(LIBRARIES[name]) is not None


def backend_of(x: Array) -> tuple[str, str | None]:
    """Return the name of the library of `x` and its device's, as `backend` takes them."""
    name = library(namespace(x))
    if not on_gpu(x):
        return name, None
    return name, str(x.device) if name == "torch" else "cuda"


def backend(name: str, device: str | None = None) -> tuple[Namespace, Any]:
    """Return the namespace of a backend and the device object of its library for a device's name.

    Parameters
    ----------
    name : str
        ``"numpy"``, ``"torch"``, ``"cupy"`` or ``"jax"``.
    device : str, optional
        ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; by default the library's own choice.

    Raises
    ------
    ValueError
        If the backend is unknown or the device cannot be used.
    ImportError
        If the library is not installed; the message names the extra that brings it.
    """
    if name not in LIBRARIES:
        raise errors.unknown_name("backend", name, LIBRARIES)
    if not installed(name):
        raise errors.missing_extra(LIBRARIES[name], name)
    importlib.import_module(LIBRARIES[name])
    if name == "jax":
        xp = importlib.import_module("jax.numpy")
    elif name == "numpy":
        xp = np
    else:
        xp = importlib.import_module(f"array_api_compat.{name}")
    try:
        found = _device_of(name, device)
        xp.ones((1,), device=found) + 1
    except Exception as error:
        cause = str(error).strip().splitlines() or [type(error).__name__]
        raise errors.device_not_found(name, device or "default", cause[0]) from error
    return xp, found


def _device_of(name: str, device: str | None) -> Any:
    kind, _, index = (device or "").partition(":")
    if device is not None and (kind not in {"cpu", "cuda"} or not (index or "0").isdigit()):
        raise ValueError("the names are cpu, cuda, cuda:0, cuda:1, ...")
    if name == "numpy":
        if kind == "cuda":
            raise ValueError("it computes on the CPU only")
        return None
    if name == "torch":
        return None if device is None else sys.modules["torch"].device(device)
    if name == "cupy":
        if kind == "cpu":
            raise ValueError("it computes on GPUs only")
        return sys.modules["cupy"].cuda.Device(int(index or 0))
    if device is None:
        return None
    return sys.modules["jax"].devices("gpu" if kind == "cuda" else "cpu")[int(index or 0)]


def describe_backends() -> list[tuple[str, str, str]]:
    """Return (name, version, devices) of every backend, found or not, for people to read."""
    rows = []
    for name, package in LIBRARIES.items():
        if not installed(name):
            rows.append((name, "not installed", f"pip install 'zomopi[{name}]'"))
            continue
        try:
            module = importlib.import_module(package)
            rows.append((name, str(module.__version__), ", ".join(_devices(name, module))))
        except Exception as error:  # a broken installation is a finding, not a crash
            rows.append((name, "cannot be imported", str(error).splitlines()[0]))
    return rows


def _devices(name: str, module: Any) -> list[str]:
    if name == "numpy":
        return ["cpu"]
    if name == "torch":
        count = module.cuda.device_count() if module.cuda.is_available() else 0
        names = [module.cuda.get_device_name(i) for i in range(count)]
        return ["cpu", *(f"cuda:{i} ({n})" for i, n in enumerate(names))]
    if name == "cupy":
        if not module.cuda.is_available():
            return ["no GPU found"]
        count = module.cuda.runtime.getDeviceCount()
        names = [module.cuda.runtime.getDeviceProperties(i)["name"].decode() for i in range(count)]
        return [f"cuda:{i} ({n})" for i, n in enumerate(names)]
    return [f"{d.platform}:{d.id} ({d.device_kind})" for d in module.devices()]


def surroundings(x: Array) -> dict[str, str]:
    """Return what the bits of a computation on `x` depend on, beside the program.

    Returns
    -------
    dict of str to str
        ``"library"``, ``"version"``, ``"device"`` (a CPU's or GPU's model), ``"threads"``, and
        for NumPy ``"scipy"``, its version.
    """
    name = library(namespace(x))
    version = str(getattr(sys.modules.get(name), "__version__", "unknown"))
    threads = os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or ""
    if name == "torch":
        threads = str(sys.modules["torch"].get_num_threads())
    elif not threads.isdigit():
        threads = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else "")
    result = {"library": name, "version": version, "device": _model(x), "threads": threads}
    if name == "numpy":  # whose products are added by SciPy's BLAS where there is one
        result["scipy"] = installed_version("scipy") or "none"
    return result


@functools.cache
def installed_version(package: str) -> str | None:
    """Return the version of an installed package, None for one that is not installed."""
    # Half of the time that the import of this package would take is this module's.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _model(x: Array) -> str:
    if compat.is_torch_array(x) and x.device.type == "cuda":
        return str(sys.modules["torch"].cuda.get_device_name(x.device))
    if compat.is_cupy_array(x):
        properties = sys.modules["cupy"].cuda.runtime.getDeviceProperties(x.device.id)
        return str(properties["name"].decode())
    if on_gpu(x):
        return str(next(iter(x.devices())).device_kind)
    return _cpu()


@functools.cache
def _cpu() -> str:
    """Return the model of the CPU, or its architecture where the system does not tell."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
