"""Keyed normal draws in each library: a draw is a pure function of its key.

Nothing here reads or changes a global generator.
"""

from __future__ import annotations

import functools
import importlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from . import _arrays, errors
from ._arrays import Array, Namespace
from ._inverse_normal import inverse_normal
from .draws import STREAM_NUMBERS, Draw, digest, philox

_SEED_BITS = 64


@runtime_checkable
class Sampler(Protocol):
    """Anything that turns a `Draw` into standard normal numbers.

    A sampler may be passed wherever a seed is accepted. It must return the same numbers for the
    same key; a NumPy array is accepted for every library and is moved to where it is needed.
    """

    def normal(self, draw: Draw, shape: tuple[int, ...], *, dtype: Any, device: Any) -> Array:
        """Return independent standard normal numbers.

        Parameters
        ----------
        draw : Draw
            The key of the numbers.
        shape : tuple of int
            Shape of the result.
        dtype : dtype
            Of the library in use: its float32 or float64.
        device : device or None
            Where the numbers are needed, as the library names it.
        """
        ...


class _PicklesNamespace:
    """Lets a sampler that holds a namespace, a module, be copied and stored: by its name."""

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if state["xp"] is not None:
            state["xp"] = state["xp"].__name__
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["xp"] is not None:
            state["xp"] = importlib.import_module(state["xp"])
        self.__dict__.update(state)


@dataclass(frozen=True)
class NumpySampler(_PicklesNamespace):
    """NumPy's Philox generator, keyed by the seed and counting from the draw.

    It also serves the libraries that have no generator of their own, given as `xp`.
    """

    seed: int
    xp: Namespace = field(default=np, compare=False)

    def normal(
        self, draw: Draw, shape: tuple[int, ...], *, dtype: Any, device: Any = None
    ) -> Array:
        """Return the numbers of `draw` as an array of the library `xp`."""
        generator = philox(self.seed, draw)
        if self.xp is np:
            return generator.standard_normal(shape, dtype=dtype)
        own = np.float64 if dtype == self.xp.float64 else np.float32
        return self.xp.asarray(generator.standard_normal(shape, dtype=own), device=device)


@dataclass(frozen=True)
class TorchSampler:
    """Torch's generator of the device, its state filled from the whole key."""

    seed: int

    def normal(
        self, draw: Draw, shape: tuple[int, ...], *, dtype: Any, device: Any = None
    ) -> Array:
        """Return the numbers of `draw` as a torch tensor."""
        import torch

        device = torch.device("cpu") if device is None else torch.device(device)
        if device.type == "cpu":
            generator = torch.Generator()
            generator.set_state(torch.from_numpy(_mersenne_state(self.seed, draw)))
        else:
            generator = torch.Generator(device=device)
            # manual_seed takes the seed's two's complement and, on GPUs, all of its 64 bits
            generator.manual_seed(int.from_bytes(digest(self.seed, draw, 8), "little"))
        return torch.randn(shape, generator=generator, dtype=dtype, device=device)


@dataclass(frozen=True)
class CupySampler:
    """A counter-based generator (Philox 4x32-10, Box-Muller) in one kernel on the current device.

    CuPy's own bit generators set up hundreds of thousands of thread states for each new key and
    promise no stream between versions; this one has no state.
    """

    seed: int

    def normal(
        self, draw: Draw, shape: tuple[int, ...], *, dtype: Any, device: Any = None
    ) -> Array:
        """Return the numbers of `draw` as a CuPy array."""
        import cupy

        key, stream = struct.unpack("<QQ", digest(self.seed, draw, 16))
        with cupy.cuda.Device() if device is None else device:
            out = cupy.empty(shape, dtype=dtype)
            return _cupy_kernel()(np.uint64(key), np.uint64(stream), out)


@dataclass(frozen=True)
class JaxSampler:
    """JAX's threefry generator: the seed is its key, the draw is folded in; can be traced."""

    seed: int

    def normal(
        self, draw: Draw, shape: tuple[int, ...], *, dtype: Any, device: Any = None
    ) -> Array:
        """Return the numbers of `draw` as a JAX array; `draw.step` may be a traced integer."""
        import jax

        words: Array = np.asarray([self.seed >> 32, self.seed & 0xFFFFFFFF], dtype=np.uint32)
        if device is not None:
            words = jax.device_put(words, device)
        stream, probe = STREAM_NUMBERS[draw.stream], -1 if draw.probe is None else draw.probe
        folded = (stream, draw.leaf, draw.step, probe + 1)
        return _jax_normal()(words, folded, shape, jax.numpy.dtype(dtype))


@dataclass(frozen=True)
class HostSampler(_PicklesNamespace):
    """Identical numbers for every library, release and machine, made on the host.

    Raw Philox bits, which NumPy keeps stable, go through the inverse of the normal distribution
    (Wichura 1988, algorithm AS 241), written with operations that IEEE 754 rounds exactly, in
    float64; the result is then cast. It costs about four times NumPy's own generator.

    Parameters
    ----------
    seed : int
        Non-negative, below 2**64.
    xp : namespace, optional
        Library of the arrays returned; NumPy by default. In an optimisation any of them will do.

    Examples
    --------
    >>> import numpy as np
    >>> import zomopi_core as zo
    >>> draw = zo.Draw("probe", leaf=0, step=3, probe=None)
    >>> z = zo.HostSampler(0).normal(draw, (2, 3), dtype=np.float64)
    >>> z.shape
    (2, 3)
    """

    seed: int
    xp: Namespace = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _check_seed(self.seed)

    def normal(
        self, draw: Draw, shape: tuple[int, ...], *, dtype: Any, device: Any = None
    ) -> Array:
        """Return the numbers of `draw` as an array of the library `xp`."""
        count = functools.reduce(lambda a, b: a * b, shape, 1)
        bits = philox(self.seed, draw).bit_generator.random_raw(count)
        # the 2^53 midpoints of equal cells of (0, 1): never 0, never 1, symmetric about 1/2
        uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        values = inverse_normal(uniform).reshape(shape)
        if self.xp is None or _arrays.library(self.xp) == "numpy":
            return values if _is_foreign(dtype) else values.astype(dtype)
        return self.xp.asarray(values, dtype=dtype, device=device)


def _is_foreign(dtype: Any) -> bool:
    """Tell whether `dtype` is one that NumPy does not know; the caller casts to it then."""
    try:
        np.dtype(dtype)
    except TypeError:
        return True
    return False


def native_sampler(seed: int, like: Array) -> Sampler:
    """Return the fastest sampler for the library of `like`."""
    _check_seed(seed)
    samplers: dict[str, Any] = {"torch": TorchSampler, "cupy": CupySampler, "jax": JaxSampler}
    xp = _arrays.namespace(like)
    native = samplers.get(_arrays.library(xp))
    sampler: Sampler = NumpySampler(seed, xp) if native is None else native(seed)
    return sampler


class Randomness:
    """A sampler as the state of a method carries it: a constant under tracing, never a copy."""

    __slots__ = ("sampler",)

    def __init__(self, seed: int | Sampler, like: Array) -> None:
        if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
            seed = native_sampler(int(seed), like)
        elif isinstance(seed, np.random.Generator | np.random.RandomState | type) or not callable(
            getattr(seed, "normal", None)
        ):
            raise errors.wrong_sampler(seed)
        self.sampler: Sampler = seed  # type: ignore[assignment]
        _arrays.register_static(Randomness, like)

    def __getstate__(self) -> Sampler:
        return self.sampler

    def __setstate__(self, state: Sampler) -> None:
        self.sampler = state

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Randomness) and self.sampler == other.sampler

    def __hash__(self) -> int:
        return hash(self.sampler)

    @property
    def can_be_traced(self) -> bool:
        """Whether draws may be made inside compiled code, where the step is no number."""
        return isinstance(self.sampler, JaxSampler)

    def normal(self, draw: Draw, shape: tuple[int, ...], like: Array) -> Array:
        """Return the numbers of `draw` in the library, device and working dtype of `like`."""
        dtype = _arrays.working_dtype(like)
        values = self.sampler.normal(draw, shape, dtype=dtype, device=_arrays.device(like))
        if (
            type(values) is type(like)
            and values.dtype == dtype
            and values.shape == shape
            and _arrays.device(values) == _arrays.device(like)
        ):
            return values
        if not _arrays.is_array(values) or not _arrays.is_real_floating(values):
            what = getattr(values, "dtype", type(values).__name__)
            raise TypeError(f"the sampler returned {what} for {draw}, asked for a real array")
        if tuple(values.shape) != shape:
            raise ValueError(
                f"the sampler returned shape {tuple(values.shape)} for {draw}, asked for {shape}"
            )
        return _arrays.to_like(values, like)


class StackedRandomness:
    """The draws of several leaves as a stack; each leaf's are those that it would have alone.

    Parameters
    ----------
    random : Randomness
    leaves : sequence of int
    """

    def __init__(self, random: Randomness, leaves: Sequence[int]) -> None:
        self._random, self._leaves = random, leaves

    def normal(self, draw: Draw, shape: tuple[int, ...], like: Array) -> Array:
        """Return the numbers of `draw` for all leaves, of shape (leaves, ...)."""
        each = [self._random.normal(draw._replace(leaf=i), shape[1:], like) for i in self._leaves]
        return _arrays.namespace(like).stack(each)


def _check_seed(seed: int) -> None:
    if not isinstance(seed, int) or not 0 <= seed < 2**_SEED_BITS:
        raise errors.not_a_number("seed", seed, f"an integer from 0 to 2**{_SEED_BITS} - 1")


_MERSENNE_WORDS = 624
_MERSENNE_OFFSET = 24  # of the words in torch's state: after the seed, two ints and a position


@functools.cache
def _fresh_mersenne_state() -> np.ndarray[Any, Any]:
    """Return the state of a generator that was just seeded, after checking its layout.

    Torch's `manual_seed` keeps 32 bits of a seed on the CPU, so that seed 5 equals seed
    5 + 2**32; two steps of one long run would meet. The state holds all 19,937 bits.
    """
    import torch

    state = np.array(torch.Generator().manual_seed(1).get_state().numpy())
    words = state[_MERSENNE_OFFSET : _MERSENNE_OFFSET + 8 * _MERSENNE_WORDS].view(np.uint64)
    first = 1
    for i, word in enumerate(words[:4]):  # the generator's published initialisation from a seed
        if i:
            first = (1812433253 * (first ^ (first >> 30)) + i) % 2**32
        if int(word) != first:
            raise RuntimeError(
                f"torch {torch.__version__} stores its generator in a layout unknown to zomopi; "
                "pass seed=zo.HostSampler(...) until this is mended"
            )
    return state


def _mersenne_state(seed: int, draw: Draw) -> np.ndarray[Any, Any]:
    state = _fresh_mersenne_state().copy()
    words = state[_MERSENNE_OFFSET : _MERSENNE_OFFSET + 8 * _MERSENNE_WORDS].view(np.uint64)
    words[:] = np.frombuffer(digest(seed, draw, 4 * _MERSENNE_WORDS), dtype="<u4")
    return state


@functools.cache
def _jax_normal() -> Any:
    import jax

    @functools.partial(jax.jit, static_argnums=(2, 3))
    def normal(words: Array, folded: Any, shape: tuple[int, ...], dtype: Any) -> Array:
        key = jax.random.wrap_key_data(words, impl="threefry2x32")
        for number in folded:
            key = jax.random.fold_in(key, number)
        return jax.random.normal(key, shape, dtype)

    return normal


# Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3": ten rounds of Philox 4x32.
# Plain C but for the CUDA functions at the end, so that it can be checked without a GPU.
CUDA_PHILOX = r"""
__device__ void philox4x32(unsigned int c[4], unsigned int k0, unsigned int k1) {
    for (int round = 0; round < 10; ++round) {
        unsigned long long p0 = 0xD2511F53ull * c[0];
        unsigned long long p1 = 0xCD9E8D57ull * c[2];
        unsigned int d0 = (unsigned int)(p1 >> 32) ^ c[1] ^ k0;
        unsigned int d2 = (unsigned int)(p0 >> 32) ^ c[3] ^ k1;
        c[0] = d0; c[1] = (unsigned int)p1; c[2] = d2; c[3] = (unsigned int)p0;
        k0 += 0x9E3779B9u; k1 += 0xBB67AE85u;
    }
}
__device__ double box_muller(const unsigned int c[4], double) {
    double u = ((((unsigned long long)c[0] << 21) ^ (c[1] >> 11)) + 0.5) * 1.1102230246251565e-16;
    double v = (((unsigned long long)c[2] << 21) ^ (c[3] >> 11)) * 1.1102230246251565e-16;
    return sqrt(-2.0 * log(u)) * cospi(2.0 * v);
}
__device__ float box_muller(const unsigned int c[4], float) {
    float u = (c[0] + 0.5f) * 2.3283064365386963e-10f;
    float v = c[2] * 2.3283064365386963e-10f;
    return sqrtf(-2.0f * logf(u)) * cospif(2.0f * v);
}
"""


@functools.cache
def _cupy_kernel() -> Any:
    import cupy

    return cupy.ElementwiseKernel(
        "uint64 key, uint64 stream",
        "T z",
        """
        unsigned int c[4] = {(unsigned int)i, (unsigned int)((unsigned long long)i >> 32),
                             (unsigned int)stream, (unsigned int)(stream >> 32)};
        philox4x32(c, (unsigned int)key, (unsigned int)(key >> 32));
        z = box_muller(c, T());
        """,
        "zomopi_normal",
        preamble=CUDA_PHILOX,
    )
