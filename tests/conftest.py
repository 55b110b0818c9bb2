"""Fixtures: one array library after the other, golden data, samplers that inject their draws."""

from __future__ import annotations

import importlib.util
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DATA = Path(__file__).parent / "data"

# A shell without job control starts what runs in the background with Ctrl-C ignored.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Backend:
    """An array library on a device, with the way in and out for tests."""

    name: str
    xp: Any
    device: Any = None
    read_only: bool = False

    def array(self, values: Any, dtype: str = "float64") -> Any:
        values = np.array(values, dtype=dtype)
        if self.read_only:
            values.flags.writeable = False
            return values
        return self.xp.asarray(values, device=self.device)

    def dtype(self, name: str) -> Any:
        return getattr(self.xp, name)

    @staticmethod
    def numpy(x: Any) -> np.ndarray:
        if isinstance(x, np.ndarray | np.generic | float):
            return np.asarray(x)
        if hasattr(x, "get"):  # cupy
            return x.get()
        if hasattr(x, "detach"):  # torch
            return x.detach().cpu().numpy()
        if type(x).__module__.startswith("array_api_strict"):
            import array_api_strict

            x = x.to_device(array_api_strict.Device("CPU_DEVICE"))
        return np.asarray(x)


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def _make(name: str) -> Backend:
    if name.startswith("numpy"):
        return Backend(name, np, read_only=name.endswith("read_only"))
    library, _, device = name.partition(":")
    _need(library)
    if library == "array_api_strict":
        import array_api_strict

        # a device that is not the default one finds every array made without naming its device
        return Backend(name, array_api_strict, array_api_strict.Device(device) if device else None)
    if library == "torch":
        import array_api_compat.torch as xp
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            pytest.skip("torch finds no GPU")
        return Backend(name, xp, torch.device(device or "cpu"))
    if library == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
        if device == "cuda":
            if jax.default_backend() != "gpu":
                pytest.skip("jax finds no GPU")
            return Backend(name, jax.numpy, jax.devices("gpu")[0])
        return Backend(name, jax.numpy, jax.devices("cpu")[0])
    import array_api_compat.cupy as xp
    import cupy

    if not cupy.cuda.is_available():
        pytest.skip("cupy finds no GPU")
    return Backend(name, xp)


BACKENDS = (
    "numpy",
    "numpy:read_only",
    "array_api_strict",
    "array_api_strict:device1",
    "torch",
    "jax",
    "cupy",
    "torch:cuda",
    "jax:cuda",
)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each array library that is installed, with a device for which there is a machine."""
    return _make(request.param)


@pytest.fixture
def make_backend() -> Any:
    """A function from a backend's name to the backend, for tests of a single one."""
    return _make


class GoldenSampler:
    """Returns the draws that a golden file was computed with."""

    def __init__(self, data: dict[str, np.ndarray], refresh_every: int, backend: Backend) -> None:
        self.data, self.refresh_every, self.backend = data, refresh_every, backend

    def normal(self, draw: Any, shape: tuple[int, ...], *, dtype: Any, device: Any) -> Any:
        if draw.stream == "right":
            values = self.data["V0"]
        elif draw.stream == "sketch":
            values = self.data["gauss"][draw.step // self.refresh_every][:, : shape[1]]
        else:
            values = self.data["B"][draw.step]
            values = values if draw.probe is None else values[draw.probe]
        return self.backend.xp.asarray(np.array(values), dtype=dtype, device=device)


@pytest.fixture
def golden() -> Any:
    """A function from the name of a golden file to its arrays."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(DATA / f"{name}.npz") as file:
            return dict(file)

    return load
