"""What benchmarks share: a base class over backends, and clocks for ratios."""

from __future__ import annotations

import os
import timeit
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from zomopi_core import _arrays

#: whether benchmarks shall only show that they work: `make bench-quick` sets the variable
QUICK = os.environ.get("ZOMOPI_BENCH") == "quick"

#: library, or library:device; the library alone stands for its own choice of device
BACKENDS = ["numpy", "torch:cpu", "torch:cuda", "cupy", "jax"][: 1 if QUICK else None]

#: sizes of square matrices above it are for GPUs
LARGEST_ON_HOST = 4096


def sizes(*values: Any) -> list[Any]:
    """Return the values of a parameter; in a quick run the first, which is the smallest."""
    return list(values[: 1 if QUICK else None])


def turns(count: int) -> int:
    """Return how often something is repeated; once in a quick run."""
    return 1 if QUICK else count


class BackendBenchmark:
    """Base class of benchmarks that run on every backend found; the others show as n/a.

    A subclass has methods ``time_*``, ``peakmem_*`` or ``track_*`` that take the parameters in
    the order of `params`, and a `setup` that calls this one first. A method whose result may
    still be under way on a device ends with `synchronize`, or its clock stops too early.

    Attributes
    ----------
    xp : namespace
        Array-API namespace of the backend; set by `setup`.
    device : device or None
        Device object of the library, None for its own choice; set by `setup`.
    seed : int
        Seed of `normal`.

    Examples
    --------
    A project tracks its own objective with a class in its benchmarks:

    >>> import zomopi_core as zo
    >>> class Distance(BackendBenchmark):
    ...     params = [BACKENDS, [16, 64]]
    ...     param_names = ["backend", "size"]
    ...
    ...     def setup(self, backend, size):
    ...         super().setup(backend)
    ...         self.target = self.normal((size, size))
    ...         self.x0 = self.xp.zeros_like(self.target)
    ...
    ...     def loss(self, x):
    ...         return self.xp.mean((x - self.target) ** 2)
    ...
    ...     def time_minimize(self, backend, size):
    ...         result = zo.minimize(self.loss, self.x0, max_queries=80)
    ...         self.synchronize(result.x_last)
    ...
    ...     def track_loss(self, backend, size):
    ...         return zo.minimize(self.loss, self.x0, max_queries=800).fun

    asv calls it like this:

    >>> distance = Distance()
    >>> distance.setup("numpy", 16)
    >>> distance.time_minimize("numpy", 16)
    >>> distance.track_loss("numpy", 16) < 1.0
    True
    """

    params: ClassVar[list[Any]] = [BACKENDS]
    param_names: ClassVar[list[str]] = ["backend"]
    seed = 0

    def setup(self, backend: str, *parameters: Any) -> None:
        """Set `xp` and `device`.

        Parameters
        ----------
        backend : str
            ``"numpy"``, ``"torch"``, ``"cupy"`` or ``"jax"``, alone or with a device as in
            ``"torch:cuda"``.
        *parameters
            Left to subclasses.

        Raises
        ------
        NotImplementedError
            If the library or the device is not there; asv shows n/a.
        ValueError
            If there is no such backend.
        """
        library, _, device = backend.partition(":")
        if library not in _arrays.LIBRARIES:
            # n/a would hide a misspelt name for ever
            raise ValueError(f"no backend {backend!r}; there are {', '.join(_arrays.LIBRARIES)}")
        try:
            self.xp, self.device = _arrays.backend(library, device or None)
        except (ImportError, ValueError) as error:
            raise NotImplementedError(str(error)) from error
        self._generator = np.random.default_rng(self.seed)

    def normal(self, shape: tuple[int, ...], dtype: str = "float32") -> Any:
        """Return standard normal numbers on the backend, the same on all of them.

        Parameters
        ----------
        shape : tuple of int
        dtype : {"float32", "float64"}

        Returns
        -------
        array of the backend
            Each call returns other numbers; `setup` starts anew.
        """
        values = self._generator.standard_normal(shape).astype(dtype)
        return self.xp.asarray(values, device=self.device)

    def require_gpu_for(self, n: int) -> None:
        """Raise NotImplementedError for matrices of n x n that are measured on GPUs only."""
        if n > LARGEST_ON_HOST and not _arrays.on_gpu(self.normal((1,))):
            raise NotImplementedError(f"{n} x {n} is measured on GPUs")

    @staticmethod
    def synchronize(*arrays: Any) -> None:
        """Wait until the devices of `arrays` have computed them."""
        for x in arrays:
            _arrays.synchronize(x)


def generator(x: Any) -> Callable[[tuple[int, ...]], Any]:
    """Return a function from a shape to normal numbers of the own generator of the library of `x`.

    They have the dtype of `x` and are made on its device.
    """
    library = _arrays.library(_arrays.namespace(x))
    if library == "torch":
        import torch

        return lambda shape: torch.randn(shape, dtype=x.dtype, device=x.device)
    if library == "cupy":
        import cupy

        on_device = cupy.random.default_rng(0)
        return lambda shape: on_device.standard_normal(shape, dtype=x.dtype)
    if library == "jax":
        import jax

        draw, key = jax.jit(jax.random.normal, static_argnums=(1, 2)), jax.random.key(0)
        return lambda shape: draw(key, shape, x.dtype)
    own = np.random.Generator(np.random.Philox(0))
    return lambda shape: own.standard_normal(shape, dtype=x.dtype)


def interleaved_seconds(
    functions: Sequence[Callable[[], Any]], rounds: int
) -> np.ndarray[Any, Any]:
    """Return the seconds (rounds, functions) of calls that take turns.

    What slows the machine for a while then slows all of them, and their ratio stays. Each is
    called once before.
    """
    timers = [timeit.Timer(function) for function in functions]
    for timer in timers:
        timer.timeit(1)
    return np.asarray([[timer.timeit(1) for timer in timers] for _ in range(rounds)])


def median_ratio(seconds: np.ndarray[Any, Any]) -> float:
    """Return the median over rounds of the first function's time over the second's."""
    return float(np.median(seconds[:, 0] / seconds[:, 1]))
