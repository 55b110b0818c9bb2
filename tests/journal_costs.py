"""What a journal costs.

``python tests/journal_costs.py`` prints it, tests/test_costs.py bounds it.
"""

from __future__ import annotations

import functools
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np

import zomopi_core as zo
from zomopi_core.journal import Recorder

X0 = np.zeros((6, 4))


def loss(x):
    return float(np.mean((x - 1.0) ** 2))


def seconds(clock, fun, steps, journal=None):
    began = clock()
    method = zo.mezo(learning_rate=1e-3)
    zo.minimize(fun, X0, method=method, max_steps=steps, journal=journal)
    return clock() - began


def per_step(fun, steps, repeats, clock=time.perf_counter, **options):
    """Return the seconds a step with and without a journal: the least of interleaved repeats."""
    with tempfile.TemporaryDirectory() as folder:
        plain, kept = [], []
        for i in range(repeats):
            plain.append(seconds(clock, fun, steps) / steps)
            journal = zo.Journal(Path(folder) / f"{i}.zomopi", snapshots=False, **options)
            kept.append(seconds(clock, fun, steps, journal) / steps)
    return min(plain), min(kept)


class Busy:
    """Takes a time by the clock, whatever else the machine does meanwhile."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, x):
        end = time.perf_counter() + self.seconds
        value = loss(x)
        while time.perf_counter() < end:
            pass
        return value


def writing_time(fun, steps):
    """Return the median seconds, by the clock, that a step spends in recording.

    What else a machine does between two readings of the clock seldom falls into this short time.
    """
    spent, marks = [0.0], []

    def timed(function):
        @functools.wraps(function)
        def call(*arguments):
            began = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                spent[0] += time.perf_counter() - began

        return call

    verbs = ("take", "known", "native", "write", "write_probe", "after_step")
    originals = {name: getattr(Recorder, name) for name in verbs}
    method = zo.mezo(learning_rate=1e-3)
    with tempfile.TemporaryDirectory() as folder:
        journal = zo.Journal(Path(folder) / "a.zomopi", snapshots=False)
        try:
            for name, function in originals.items():
                setattr(Recorder, name, timed(function))
            options = {"method": method, "max_steps": steps, "journal": journal}
            zo.minimize(fun, X0, callback=lambda i: marks.append(spent[0]), **options)
        finally:
            for name, function in originals.items():
                setattr(Recorder, name, function)
    return float(np.median(np.diff(marks)))


def growth(steps):
    """Return the bytes that a long run allocates per step, and how much its steps slow down.

    The history of a run has one row a step, which is what remains.
    """
    times, sizes = [], []

    def watch(iteration):
        if iteration.step % (steps // 4) == 0:
            times.append(iteration.elapsed)
            sizes.append(tracemalloc.get_traced_memory()[0] if tracemalloc.is_tracing() else 0)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.zomopi"
        method = zo.mezo(learning_rate=1e-3)
        options = {"method": method, "max_steps": steps, "callback": watch}
        zo.minimize(loss, X0, journal=path, **options)
        size = path.stat().st_size
    quarters = np.diff([0.0, *times])
    return (sizes[-1] - sizes[0]) / (steps * 0.75), quarters, size


if __name__ == "__main__":
    for name, fun, steps, repeats, options in (
        ("a fast function", loss, 1000, 5, {}),
        ("a fast function, durable", loss, 200, 3, {"durable": True}),
    ):
        plain, kept = per_step(fun, steps, repeats, **options)
        print(f"{name}: {1e6 * (kept - plain):.0f} us a step more than {1e6 * plain:.0f} us")
    for name, fun, part in (
        ("a fast function", loss, None),
        ("9 ms twice a step", Busy(0.009), 0.018),
        ("10 ms twice a step", Busy(0.010), 0.020),
        ("20 ms twice a step", Busy(0.020), 0.040),
    ):
        took = writing_time(fun, 100)
        share = "" if part is None else f", {took / part:.2%} of it"
        print(f"{name}, by the clock: {1e6 * took:.0f} us a step are spent in recording{share}")
    _, quarters, size = growth(100_000)
    print(f"100,000 steps: quarters take {np.round(quarters, 1)} s, the journal {size:,} bytes")
    tracemalloc.start()
    print(f"memory: {growth(4000)[0]:.0f} bytes a step")
