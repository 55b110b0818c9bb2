"""The work of gpu_check.sh: GPU tests and benchmarks to report.json and report.md.

``--rehearse`` runs all parts but the tests on the CPU with small sizes, to see that they work
where there is no GPU; its figures mean nothing.
"""

import argparse
import itertools
import json
import math
import subprocess
import sys
import time
import traceback
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np

import performance
import zomopi_core as zo
from benchmarks import floor
from benchmarks.common import BackendBenchmark, interleaved_seconds
from zomopi_core import _arrays, problems
from zomopi_core.losses import stack_losses
from zomopi_core.rule import Probe
from zomopi_core.sampling import native_sampler

ROOT = Path(__file__).resolve().parents[1]
GPU = ["torch:cuda", "cupy", "jax"]
HOST = ["numpy", "torch:cpu", "jax"]


def tests(out, limit):
    """Run the tests that have a GPU in their name, and those of tests/gpu."""
    log = out / "tests.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "cuda or cupy or gpu",
    ]
    command += [f"--junit-xml={log}", "-o", "addopts=--import-mode=importlib"]
    command += [str(ROOT / "tests" / name) for name in ("gpu", "test_arrays.py", "test_golden.py")]
    command += [
        str(ROOT / "tests" / f"test_{name}.py")
        for name in (
            "sampling",
            "orthogonalize",
            "subspace",
            "cholesky_qr",
            "optimizer",
            "binding",
        )
    ]
    try:
        done = subprocess.run(
            command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return [{"part": "tests", "result": f"stopped after {limit} s"}]
    suite = ET.parse(log).getroot().find("testsuite").attrib
    (out / "tests.txt").write_text(done.stdout[-20000:], encoding="utf-8")
    return [{k: suite[k] for k in ("tests", "failures", "errors", "skipped", "time")}]


def samplers(backends):
    """Return the time of the library's own generator over that of the keyed draws."""
    found = []
    for backend in backends:
        bench = BackendBenchmark()
        bench.setup(backend)
        like, shape = bench.normal((1, 1)), (8, 64, 16384 if backend in GPU else 1024)
        sampler, own = native_sampler(0, like), floor._generator(_arrays.library(bench.xp), like)

        def keyed(sampler=sampler, like=like, shape=shape, device=bench.device):
            draw = zo.Draw("probe", 0, 1, None)
            _arrays.synchronize(sampler.normal(draw, shape, dtype=like.dtype, device=device))

        def free(own=own, shape=shape):
            _arrays.synchronize(own(shape))

        seconds = interleaved_seconds([keyed, free], 9).min(axis=0)
        found.append(
            {
                "backend": backend,
                "numbers": math.prod(shape),
                "keyed_ms": 1e3 * seconds[0],
                "own_ms": 1e3 * seconds[1],
                "keyed_over_own": seconds[0] / seconds[1],
            }
        )
    return found


def least_squares(backends, size):
    """Return the time of steps on mean((X W - Y)^2), structured and not, and the loss's fall."""
    found = []
    for backend in backends:
        bench = BackendBenchmark()
        bench.setup(backend)
        w, y = bench.normal((size, 256)), bench.normal((size, 256))
        x0 = bench.normal((size, size)) * 0.0

        def loss(matrix, w=w, y=y, xp=bench.xp):
            return xp.mean((matrix @ w - y) ** 2)

        for structured in (False, True):
            began = time.perf_counter()
            result = zo.minimize(loss, x0, max_steps=40, structured=structured, reuse_buffers=True)
            found.append(
                {
                    "backend": backend,
                    "n": size,
                    "structured": structured,
                    "seconds": time.perf_counter() - began,
                    "median_step_ms": 1e3 * float(np.median(np.diff(result.history["elapsed"]))),
                    "loss_over_first": result.fun / float(loss(x0)),
                }
            )
    return found


def phase_mask(backends, size):
    """Return the time of steps on the phase mask, an FFT of size x size a query."""
    found = []
    for backend in backends:
        bench = BackendBenchmark()
        bench.setup(backend)
        problem = problems.phase_mask(bench.xp, device=bench.device, size=size)
        result = zo.minimize(problem.fun, problem.x0, max_steps=40, reuse_buffers=True)
        step = float(np.median(np.diff(result.history["elapsed"])))
        first = float(problem.fun(problem.x0))
        found.append(
            {"backend": backend, "size": size, "median_step_ms": 1e3 * step,
             "loss": result.fun, "first": first}
        )  # fmt: skip
    return found


def no_waiting(backends, size):
    """Take steps of `Optimizer` while the library raises where the host waits for the device."""
    found = []
    for backend in backends:
        bench = floor.Floor()
        bench.setup(backend, size, "reused")
        optimizer, library = bench.optimizer, _arrays.library(bench.xp)

        def steps(optimizer=optimizer):
            for _ in range(3):
                optimizer.tell([p[0, 0] * 1.0 for p in optimizer.ask()])

        steps()
        if library == "torch" and "cuda" in backend:
            import torch

            torch.cuda.set_sync_debug_mode("error")
            try:
                steps()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        elif library == "jax":
            import jax

            with jax.transfer_guard_device_to_host("disallow"):
                steps()
        else:
            continue
        found.append({"backend": backend, "result": "nothing waited"})
    return found


def replayed(library, body, arrays):
    """Return a function that does what `body` does, from a CUDA graph where there is a GPU.

    The arrays are left as they were.

    Parameters
    ----------
    library : str
    body : callable
        Reads and writes memory that stays where it is.
    arrays : sequence of arrays
        What it writes.
    """
    saved = [_arrays.copy(x) for x in arrays]
    if library == "torch" and arrays[0].device.type == "cuda":
        import torch

        with torch.cuda.stream(torch.cuda.Stream()):
            body()  # libraries set themselves up at the first call
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            body()
        replay = graph.replay
    elif library == "cupy":
        import cupy

        # Nobody else may be given the memory that the graph writes to between its nodes.
        pool, stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)
        _arrays.synchronize(arrays[0])
        with cupy.cuda.using_allocator(pool.malloc), stream:
            body()
            stream.synchronize()
            stream.begin_capture()
            body()
            graph = stream.end_capture()

        def replay(pool=pool):
            graph.launch()
    else:
        return body
    for x, old in zip(arrays, saved, strict=True):
        _arrays.copy(old, x)
    return replay


def captured(backends, size):
    """Replay a step from a CUDA graph and compare with the driver's steps.

    Draws are written into a static block before each replay.
    """
    found = []
    for backend in backends:
        bench = BackendBenchmark()
        bench.setup(backend)
        xp, library = bench.xp, _arrays.library(bench.xp)
        if library not in ("torch", "cupy", "numpy"):
            continue
        method = zo.zo_mopi(learning_rate=1e-3, rank=16, probes=4, refresh_every=10**6)
        target, x = bench.normal((size, size)), bench.normal((size, size)) * 0.0

        def loss(point, xp=xp, target=target):
            return xp.mean((point - target) ** 2)

        state = method.init(x, 0)
        random, leaf = state.random, state.leaves[0]
        shape = (4, *leaf.momentum.shape)
        block = random.normal(zo.Draw("probe", 0, 0, None), shape, leaf.momentum)
        written = [x, state.started, leaf.momentum, leaf.right]

        def body(method=method, state=state, leaf=leaf, block=block, written=written, loss=loss):
            x = written[0]
            probes = (Probe(leaf.frame, block, block),)
            losses = stack_losses([loss(p) for p in zo.perturb(method, x, probes)])
            new, step = method.update(state._replace(step=1), losses, probes)
            after = new.leaves[0]
            made = [zo.apply_step(x, step), new.started, after.momentum, after.right]
            for old, fresh in zip(written, made, strict=True):
                _arrays.copy(fresh, old)

        replay = replayed(library, body, written)
        optimizer, steps = zo.Optimizer(x, method=method, seed=0), itertools.count()

        def driver(optimizer=optimizer, loss=loss):
            optimizer.tell([loss(p) for p in optimizer.ask()])
            _arrays.synchronize(optimizer.x)

        def static(steps=steps, random=random, leaf=leaf, block=block, replay=replay, x=x):
            draw = zo.Draw("probe", 0, next(steps), None)
            _arrays.copy(random.normal(draw, tuple(block.shape), leaf.momentum), block)
            replay()
            _arrays.synchronize(x)

        for _ in range(5):
            driver()
            static()
        off = float(xp.max(xp.abs(x - optimizer.x)) / xp.max(xp.abs(optimizer.x)))
        seconds = interleaved_seconds([driver, static], 9).min(axis=0)
        found.append(
            {"backend": backend, "size": size, "driver_ms": 1e3 * seconds[0],
             "replay_ms": 1e3 * seconds[1], "largest_difference": off}
        )  # fmt: skip
    return found


def machine():
    """Return the GPU and the versions of what is installed."""
    rows = _arrays.describe_backends()
    return [{"backend": name, "version": v, "devices": d} for name, v, d in rows]


def main():
    """Run all parts, each of which may fail alone, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--backends", default="")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    small = chosen.rehearse
    known = chosen.backends.split(",") if chosen.backends else HOST if small else GPU
    backends = [b for b in known if performance.have(b)]
    size = 128 if small else 16384
    dtypes = ["float32"] if small else ["float32", "bfloat16"]
    parts = {
        "machine": machine,
        "floor": lambda: performance.ceilings_and_floors(backends, size, dtypes),
        "no waiting": lambda: no_waiting(backends, min(size, 2048)),
        "samplers": lambda: samplers(backends),
        "stacked": lambda: performance.stacked(backends),
        "CUDA graph": lambda: captured(backends, 64 if small else 512),
        "phase mask": lambda: phase_mask(backends, 32 if small else 2048),
        "least squares": lambda: least_squares(backends, size),
    }
    if not small:
        parts["tests"] = lambda: tests(chosen.out, 240)
    report, lines, failed = {}, [], 0
    for name, run in parts.items():
        began = time.perf_counter()
        try:
            rows = run()
        except Exception as error:
            failed += 1
            trace = traceback.format_exc()[-3000:]
            rows = [{"failed": f"{type(error).__name__}: {error}"[:300]}]
            sys.stderr.write(trace)
        report[name] = {"rows": rows, "seconds": time.perf_counter() - began}
        if rows:
            lines += ["", f"## {name}", ""]
            lines.append(performance.table(list(rows[0]), performance.rounded(rows)))
        text = json.dumps(report, indent=1, default=float)
        (chosen.out / "report.json").write_text(text + "\n", encoding="utf-8")
        (chosen.out / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.stdout.write("\n".join(lines) + "\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
