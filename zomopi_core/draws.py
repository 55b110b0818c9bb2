"""The keys of draws, and the streams of bits that they stand for.

There is no generator to advance: a step can be drawn again instead of stored, replayed, resumed,
or computed elsewhere.
"""

from __future__ import annotations

import functools
import hashlib
import struct
import threading
from typing import NamedTuple

import numpy as np

#: the purposes of a draw; their positions are part of the key and never change
STREAMS = ("sketch", "probe", "right", "key")
STREAM_NUMBERS = {name: i for i, name in enumerate(STREAMS)}


class Draw(NamedTuple):
    """The key of one block of standard normal numbers.

    Attributes
    ----------
    stream : str
        What the numbers are for: ``"sketch"`` (the Gaussian from which a frame is made),
        ``"probe"`` (directions to evaluate along) or ``"right"`` (initial right vectors).
    leaf : int
        Position of the parameter array among the sorted names of `x0`; 0 for a single array.
    step : int
        Step t for which the numbers are drawn.
    probe : int or None
        Index of the probe, or None for the block of all probes of the leaf and for draws that
        belong to no probe. In the stream ``"sketch"``, 0 stands for the columns that replace
        directions which an anchored refresh does not find in the momentum.
    """

    stream: str
    leaf: int
    step: int
    probe: int | None


def words(draw: Draw) -> tuple[int, int, int, int]:
    """Return a draw as numbers: stream, leaf, step, and probe plus one, 0 where there is none."""
    probe = 0 if draw.probe is None else draw.probe + 1
    return STREAM_NUMBERS[draw.stream], int(draw.leaf), int(draw.step), probe


class _Philox(threading.local):
    """NumPy's Philox generator, one in each thread, and the state of a fresh one.

    Setting the state of a generator takes a tenth of the time of making one.
    """

    def __init__(self) -> None:
        self.bits = np.random.Philox(key=0)
        self.generator = np.random.Generator(self.bits)
        self.state = self.bits.state
        self.counter, self.key = self.state["state"]["counter"], self.state["state"]["key"]


@functools.cache
def _own_philox() -> _Philox:
    return _Philox()  # not before the first draw: it imports NumPy's random numbers


def philox(seed: int, draw: Draw) -> np.random.Generator:
    """Return NumPy's Philox generator at the start of a draw.

    It belongs to the thread, and its next draw takes it from here.
    """
    stream, leaf, step, probe = words(draw)
    own = _own_philox()
    own.key[0], own.key[1] = seed, stream
    # The lowest word of the counter counts the blocks of a draw, the key fills all others.
    own.counter[1], own.counter[2], own.counter[3] = step, leaf, probe
    own.bits.state = own.state
    return own.generator


def digest(seed: int, draw: Draw, length: int) -> bytes:
    """Return bytes that the whole key goes into."""
    return hashlib.shake_128(struct.pack("<5Q", seed, *words(draw))).digest(length)


def step_key(seed: int, step: int) -> int:
    """Return the integer below 2**31 that is the same for all evaluations of `step`.

    It suits every generator's seed: those of NumPy, Torch, JAX and the standard library.
    """
    bits = digest(seed, Draw("key", 0, step, None), 4)
    return int.from_bytes(bits, "little") >> 1
