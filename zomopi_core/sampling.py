"""Keyed normal draws: a draw is a pure function of its key, there is no generator to advance.

A step can therefore be drawn again instead of stored: replayed, resumed, or computed elsewhere.
Nothing here reads or changes a global generator.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from . import _arrays, errors
from ._arrays import Array, Namespace

#: the purposes of a draw; their positions are part of the key and never change
STREAMS = ("sketch", "probe", "right", "key")
_STREAM_NUMBER = {name: i for i, name in enumerate(STREAMS)}
_SEED_BITS = 64


class Draw(NamedTuple):
    """The key of one block of standard normal numbers.

    Attributes
    ----------
    stream : str
        What the numbers are for: ``"sketch"`` (the Gaussian from which a frame is made),
        ``"probe"`` (directions to evaluate along) or ``"right"`` (initial right vectors).
    leaf : int
        Position of the parameter array in `x0`.
    step : int
        Step t for which the numbers are drawn.
    probe : int or None
        Index of the probe, or None for the block of all probes of the leaf (or for draws that
        belong to no probe).
    """

    stream: str
    leaf: int
    step: int
    probe: int | None


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


@dataclass(frozen=True)
class NumpySampler:
    """NumPy's Philox generator, keyed by the seed and counting from the draw.

    It also serves the libraries that have no generator of their own, given as `xp`.
    """

    seed: int
    xp: Namespace = field(default=np, compare=False)

    def normal(
        self, draw: Draw, shape: tuple[int, ...], *, dtype: Any, device: Any = None
    ) -> Array:
        """Return the numbers of `draw` as an array of the library `xp`."""
        generator = np.random.Generator(_philox(self.seed, draw))
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
            generator.manual_seed(int.from_bytes(_digest(self.seed, draw, 8), "little"))
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

        key, stream = struct.unpack("<QQ", _digest(self.seed, draw, 16))
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
        stream, probe = _STREAM_NUMBER[draw.stream], -1 if draw.probe is None else draw.probe
        folded = (stream, draw.leaf, draw.step, probe + 1)
        return _jax_normal()(words, folded, shape, jax.numpy.dtype(dtype))


@dataclass(frozen=True)
class HostSampler:
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
        bits = _philox(self.seed, draw).random_raw(count)
        # the 2^53 midpoints of equal cells of (0, 1): never 0, never 1, symmetric about 1/2
        uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        values = _inverse_normal(uniform).reshape(shape)
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
        elif not callable(getattr(seed, "normal", None)):
            raise errors.wrong_sampler(seed)
        self.sampler: Sampler = seed  # type: ignore[assignment]
        _arrays.register_static(Randomness, like)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Randomness) and self.sampler is other.sampler

    def __hash__(self) -> int:
        return id(self.sampler)

    def normal(self, draw: Draw, shape: tuple[int, ...], like: Array) -> Array:
        """Return the numbers of `draw` in the library, device and working dtype of `like`."""
        values = self.sampler.normal(
            draw, shape, dtype=_arrays.working_dtype(like), device=_arrays.device(like)
        )
        if tuple(values.shape) != shape:
            raise ValueError(
                f"the sampler returned shape {tuple(values.shape)} for {draw}, asked for {shape}"
            )
        return _arrays.to_like(values, like)


def step_key(seed: int, step: int) -> int:
    """Return the integer below 2**31 that is the same for all evaluations of `step`.

    It suits every generator's seed: those of NumPy, Torch, JAX and the standard library.
    """
    bits = _digest(seed, Draw("key", 0, step, None), 4)
    return int.from_bytes(bits, "little") >> 1


def _check_seed(seed: int) -> None:
    if not isinstance(seed, int) or not 0 <= seed < 2**_SEED_BITS:
        raise errors.not_a_number("seed", seed, f"an integer from 0 to 2**{_SEED_BITS} - 1")


def _words(draw: Draw) -> tuple[int, int, int, int]:
    probe = 0 if draw.probe is None else draw.probe + 1
    return _STREAM_NUMBER[draw.stream], int(draw.leaf), int(draw.step), probe


def _philox(seed: int, draw: Draw) -> np.random.Philox:
    stream, leaf, step, probe = _words(draw)
    # The lowest word of the counter counts the blocks of a draw, the key fills all others.
    counter = np.asarray([0, step, leaf, probe], dtype=np.uint64)
    return np.random.Philox(key=np.asarray([seed, stream], dtype=np.uint64), counter=counter)


def _digest(seed: int, draw: Draw, length: int) -> bytes:
    return hashlib.shake_128(struct.pack("<5Q", seed, *_words(draw))).digest(length)


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
    words[:] = np.frombuffer(_digest(seed, draw, 4 * _MERSENNE_WORDS), dtype="<u4")
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
    double u = ((((unsigned long long)c[0] << 21) ^ (c[1] >> 11)) + 0.5) * 0x1p-53;
    double v = (((unsigned long long)c[2] << 21) ^ (c[3] >> 11)) * 0x1p-53;
    return sqrt(-2.0 * log(u)) * cospi(2.0 * v);
}
__device__ float box_muller(const unsigned int c[4], float) {
    float u = (c[0] + 0.5f) * 0x1p-32f;
    float v = c[2] * 0x1p-32f;
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


# AS 241, routine PPND16: numerators and denominators of the three rational approximations,
# lowest power first, for |p - 1/2| <= 0.425, for a tail of up to e^-25, and beyond.
_CENTRE = (
    (
        3.3871328727963666080e0,
        1.3314166789178437745e2,
        1.9715909503065514427e3,
        1.3731693765509461125e4,
        4.5921953931549871457e4,
        6.7265770927008700853e4,
        3.3430575583588128105e4,
        2.5090809287301226727e3,
    ),
    (
        1.0,
        4.2313330701600911252e1,
        6.8718700749205790830e2,
        5.3941960214247511077e3,
        2.1213794301586595867e4,
        3.9307895800092710610e4,
        2.8729085735721942674e4,
        5.2264952788528545610e3,
    ),
)
_TAIL = (
    (
        1.42343711074968357734e0,
        4.63033784615654529590e0,
        5.76949722146069140550e0,
        3.64784832476320460504e0,
        1.27045825245236838258e0,
        2.41780725177450611770e-1,
        2.27238449892691845833e-2,
        7.74545014278341407640e-4,
    ),
    (
        1.0,
        2.05319162663775882187e0,
        1.67638483018380384940e0,
        6.89767334985100004550e-1,
        1.48103976427480074590e-1,
        1.51986665636164571966e-2,
        5.47593808499534494600e-4,
        1.05075007164441684324e-9,
    ),
)
_FAR_TAIL = (
    (
        6.65790464350110377720e0,
        5.46378491116411436990e0,
        1.78482653991729133580e0,
        2.96560571828504891230e-1,
        2.65321895265761230930e-2,
        1.24266094738807843860e-3,
        2.71155556874348757815e-5,
        2.01033439929228813265e-7,
    ),
    (
        1.0,
        5.99832206555887937690e-1,
        1.36929880922735805310e-1,
        1.48753612908506148525e-2,
        7.86869131145613259100e-4,
        1.84631831751005468180e-5,
        1.42151175831644588870e-7,
        2.04426310338993978564e-15,
    ),
)
_LOG_SERIES = tuple(1.0 / (2 * j + 1) for j in range(12))
_LOG_2 = 0.6931471805599453
_SQRT_HALF = 0.7071067811865476


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    result = np.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result *= x
        result += c
    return result


def _exact_log(x: Array) -> Array:
    """Return the logarithm from sums, products and quotients alone.

    The logarithm of a C library differs in its last bit between machines; this one does not.
    """
    mantissa, exponent = np.frexp(x)
    low = mantissa < _SQRT_HALF
    mantissa = np.where(low, 2.0 * mantissa, mantissa)
    exponent = exponent - low
    s = (mantissa - 1.0) / (mantissa + 1.0)  # |s| <= 0.172: twelve terms reach 1e-18
    return exponent * _LOG_2 + 2.0 * s * _polynomial(_LOG_SERIES, s * s)


def _inverse_normal(p: Array) -> Array:
    """Return the quantiles of the standard normal distribution at `p`, strictly inside (0, 1)."""
    q = p - 0.5
    centre = np.abs(q) <= 0.425
    r = np.where(centre, 0.180625 - q * q, 0.0)
    result = q * _polynomial(_CENTRE[0], r) / _polynomial(_CENTRE[1], r)
    tail = np.flatnonzero(~centre)
    if tail.size:
        q = q[tail]
        r = np.sqrt(-_exact_log(np.where(q < 0.0, p[tail], 1.0 - p[tail])))
        near, far = r - 1.6, r - 5.0
        value = np.where(
            r <= 5.0,
            _polynomial(_TAIL[0], near) / _polynomial(_TAIL[1], near),
            _polynomial(_FAR_TAIL[0], far) / _polynomial(_FAR_TAIL[1], far),
        )
        result[tail] = np.where(q < 0.0, -value, value)
    return result
