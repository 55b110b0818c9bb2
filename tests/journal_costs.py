"""What a journal costs.

``python tests/journal_costs.py`` prints it, tests/test_costs.py bounds it.
"""

from __future__ import annotations

import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np

import zomopi_core as zo

X0 = np.zeros((6, 4))


def loss(x):
    return float(np.mean((x - 1.0) ** 2))


class Sleepy:
    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, x):
        time.sleep(self.seconds)
        return loss(x)


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
        ("10 ms twice a step", Sleepy(0.01), 20, 5, {}),
        ("a fast function, durable", loss, 200, 3, {"durable": True}),
    ):
        plain, kept = per_step(fun, steps, repeats, **options)
        print(f"{name}: {1e6 * (kept - plain):.0f} us a step more than {1e6 * plain:.0f} us")
    _, quarters, size = growth(100_000)
    print(f"100,000 steps: quarters take {np.round(quarters, 1)} s, the journal {size:,} bytes")
    tracemalloc.start()
    print(f"memory: {growth(4000)[0]:.0f} bytes a step")
