"""Measure what docs/performance.md shows: ``cd asv_benches; python -m performance``.

Every figure of that page comes from here, in one run; ratios are of times that took turns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import sys
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import zomopi_core as zo
from benchmarks import floor, overhead
from benchmarks.common import interleaved_seconds, median_ratio


def table(head: list[str], rows: list[list[Any]]) -> str:
    """Return rows as a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def have(backend: str) -> bool:
    """Tell whether a backend can be used here."""
    try:
        floor.Floor().setup(backend, 64)
    except NotImplementedError:
        return False
    return True


def ceilings_and_floors(backends: list[str], n: int, dtypes: list[str]) -> list[dict[str, Any]]:
    """Return the ceilings, and a step of each binding over its floor."""
    found = []
    for backend, dtype, buffers in itertools.product(backends, dtypes, ("fresh", "reused")):
        bench = floor.Floor()
        try:
            bench.setup(backend, n, buffers, dtype=dtype)
        except AttributeError:  # a dtype that the library does not have
            continue
        step, ceilings = bench.seconds()
        size = n * n * bench.x.dtype.itemsize
        found.append(
            {
                "backend": backend,
                "dtype": dtype,
                "buffers": buffers,
                "step_ms": 1e3 * step,
                "floor_ms": 1e3 * bench.floor(ceilings),
                "ratio": step / bench.floor(ceilings),
                "addition_ms": 1e3 * ceilings.addition,
                "copy_GB_per_s": 2e-9 * size / ceilings.copy,
                "gemm_GFLOP_per_s": 2e-9 * min(n, 2048) ** 3 / ceilings.product,
                "normals_ms": 1e3 * ceilings.normals,
            }
        )
        del bench
    return found


def structured(backends: list[str]) -> list[dict[str, Any]]:
    """Return a structured step over one evaluation."""
    found = []
    for backend in backends:
        bench = floor.Structured()
        bench.setup(backend, (2048, 8192, 512))
        ratio = bench.track_step_over_one_evaluation(backend, None)
        found.append({"backend": backend, "ratio": ratio})
    return found


#: r and k of the matrices whose stacks are measured
RANKS = ((16, 8), (32, 16), (64, 8), (64, 32))


def stacked(
    backends: list[str], choices: Sequence[tuple[int, int]] = RANKS
) -> list[dict[str, Any]]:
    """Return the gain of stacks."""
    found = []
    for backend, ranks in itertools.product(backends, choices):
        bench = floor.StackedLeaves()
        bench.setup(backend, ranks)
        gain = 1.0 / bench.track_stacked_over_one_by_one(backend, ranks)
        found.append({"backend": backend, "r": ranks[0], "k": ranks[1], "gain": gain})
    return found


def refreshed(backends: list[str]) -> list[dict[str, Any]]:
    """Return the time of a refresh one by one over that of a stack."""
    found = []
    for backend, rank in itertools.product(backends, (16, 64)):
        bench = floor.StackedRefresh()
        bench.setup(backend, rank)
        gain = 1.0 / bench.track_stacked_over_one_by_one(backend, rank)
        found.append({"backend": backend, "r": rank, "gain": gain})
    return found


def small_steps() -> list[dict[str, Any]]:
    """Return a small step over bare NumPy, and minimize over the step."""
    return [
        {
            "dtype": dtype,
            "step_over_bare_numpy": median_ratio(
                overhead.step_and_bare_numpy_seconds(dtype, 9, 200)
            ),
            "minimize_over_step": median_ratio(overhead.minimize_and_step_seconds(dtype, 9, 200)),
        }
        for dtype in ("float64", "float32")
    ]


def memory() -> list[dict[str, Any]]:
    """Return the peak of NumPy's arrays in `minimize`, in sizes of X beyond its own copy."""
    x0 = np.ones((4096, 1024), dtype=np.float32)
    given = zo.zo_mopi(rank=3, learning_rate=0.1, probes=3)
    tuned = zo.zo_mopi(rank=3)
    cases = {"given": (given, 0.0, 200), "tuned": (tuned, 0.0, 200), "noisy": (tuned, 1e3, 500)}
    found = []
    for (name, (method, noise, queries)), reuse in itertools.product(cases.items(), (True, False)):
        generator = np.random.default_rng(0)

        def fun(x: Any, noise: float = noise, generator: Any = generator) -> float:
            noise = noise * generator.standard_normal() if noise else 0.0
            return float(np.sum((x[::64, 0] - 2) ** 2)) + noise

        zo.minimize(fun, x0[:64], method=method, max_queries=20, reuse_buffers=reuse)
        tracemalloc.start()
        zo.minimize(fun, x0, method=method, max_queries=queries, reuse_buffers=reuse)
        peak = tracemalloc.get_traced_memory()[1] / x0.nbytes
        tracemalloc.stop()
        found.append({"run": name, "reuse_buffers": reuse, "beyond_X": peak - 1.0})
    return found


# What is varied, and its values. All X together take 64 MiB at least, more than the cache of a
# processor: from there on no size has an advantage.
VARIED = {
    "m": [16384, 32768, 65536, 131072],
    "n": [16384, 32768, 65536, 131072],
    "r": [64, 128, 256, 512],
    "N": [2, 4, 8, 16],
    "leaves": [16, 32, 64, 128],
}


def one_step(m: int, n: int, r: int, N: int, leaves: int) -> Any:
    """Return a function that takes a step on NumPy."""
    x0 = {f"W{i}": np.zeros((m, n), dtype=np.float32) for i in range(leaves)}
    method = zo.zo_mopi(learning_rate=1e-3, rank=r, spectral_rank=4, probes=N, refresh_every=10**6)
    optimizer = zo.Optimizer(x0, method=method, reuse_buffers=True)
    losses = np.random.default_rng(0).standard_normal(2 * N).tolist()

    def step() -> None:
        for _ in optimizer.ask():
            pass
        optimizer.tell(losses)

    return step


def exponents() -> list[dict[str, Any]]:
    """Return the exponent of a step's cost against each size, from a straight line in logs."""
    found = []
    for name, values in VARIED.items():
        sizes = {"m": 1024, "n": 1024, "r": 32, "N": 4, "leaves": 1}
        if name in ("r", "N"):
            sizes.update(m=4096, n=4096)
        steps = [one_step(**(sizes | {name: value})) for value in values]
        seconds = interleaved_seconds(steps, 7).min(axis=0)
        slope = np.polyfit(np.log(values), np.log(seconds), 1)[0]
        # The points and the next iterate make 2N + 1 passes; all else is in proportion.
        passes = [2 * v + 1 if name == "N" else v for v in values]
        theory = np.polyfit(np.log(values), np.log(passes), 1)[0]
        found.append(
            {
                "varied": name,
                "values": values,
                "ms": [round(1e3 * float(s), 2) for s in seconds],
                "exponent": float(slope),
                "theory": float(theory),
            }
        )
        del steps
    return found


def rounded(rows: list[dict[str, Any]]) -> list[list[Any]]:
    """Return rows with three digits of their numbers."""

    def text(value: Any) -> Any:
        if isinstance(value, float):
            digits = 2 - math.floor(math.log10(abs(value))) if value else 0
            return f"{value:.{max(digits, 0)}f}"
        return ", ".join(map(str, value)) if isinstance(value, list) else value

    return [[text(value) for value in row.values()] for row in rows]


def machine() -> dict[str, str]:
    """Return what the figures depend on."""
    model = platform.machine()
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    cache = " ".join(_lines("/sys/devices/system/cpu/cpu0/cache/index3/size")) or "unknown"
    load = f"{os.getloadavg()[0]:.1f}"
    return {"processor": model, "last cache": cache, "threads": threads, "load": load}


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def main() -> None:
    """Print the tables, and write the figures to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backends", default="numpy,torch:cpu,torch:cuda,cupy,jax")
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--dtypes", default="float32")
    parser.add_argument("--only", default="", help="parts, separated by commas")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    backends = [b for b in chosen.backends.split(",") if have(b)]
    dtypes = chosen.dtypes.split(",")
    parts = {
        "floor": lambda: ceilings_and_floors(backends, chosen.size, dtypes),
        "structured": lambda: structured(backends),
        "stacked": lambda: stacked(backends),
        "refreshed": lambda: refreshed(backends),
        "small": small_steps,
        "memory": memory,
        "exponents": exponents,
    }
    wanted = chosen.only.split(",") if chosen.only else list(parts)
    result: dict[str, Any] = {"machine": machine(), "time": time.strftime("%Y-%m-%d")}
    sys.stdout.write(json.dumps(result) + "\n")
    for name in wanted:
        rows = result[name] = parts[name]()
        sys.stdout.write(f"\n{name}\n\n{table(list(rows[0]), rounded(rows))}\n")
        sys.stdout.flush()
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
