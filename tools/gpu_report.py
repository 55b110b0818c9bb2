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


def captured(size, device):
    """Capture a step in a CUDA graph of Torch and compare with the driver's steps.

    Draws are written into a static buffer before each replay. Without a GPU the step is called
    instead of replayed.
    """
    import torch

    method = zo.zo_mopi(learning_rate=1e-3, rank=16, probes=4, refresh_every=10**6)
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(size, size, generator=generator).to(device)

    def loss(x):
        return torch.mean((x - target) ** 2)

    x = torch.zeros(size, size, device=device)
    state = method.init(x, 0)
    random, leaf = state.random, state.leaves[0]
    shape = (4, *leaf.momentum.shape)
    block = random.normal(zo.Draw("probe", 0, 0, None), shape, leaf.momentum)
    started = torch.zeros((), device=device)

    def body():
        probes = (Probe(leaf.frame, block, block),)
        points = zo.perturb(method, x, probes)
        losses = torch.stack([loss(p) for p in points])
        static = state._replace(step=1, started=started)
        new, step = method.update(static, losses, probes)
        moved = zo.apply_step(x, step)
        for old, fresh in (
            (x, moved), (started, new.started), (leaf.momentum, new.leaves[0].momentum),
            (leaf.right, new.leaves[0].right),
        ):  # fmt: skip
            old.copy_(fresh)

    replay = body
    if torch.device(device).type == "cuda":
        saved = [t.clone() for t in (x, started, leaf.momentum, leaf.right)]
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            body()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            body()
        for t, s in zip((x, started, leaf.momentum, leaf.right), saved, strict=True):
            t.copy_(s)
        replay = graph.replay
    optimizer = zo.Optimizer(torch.zeros(size, size, device=device), method=method, seed=0)

    def driver():
        optimizer.tell([loss(p) for p in optimizer.ask()])
        _arrays.synchronize(optimizer.x)

    steps = itertools.count()

    def static():
        block.copy_(random.normal(zo.Draw("probe", 0, next(steps), None), shape, leaf.momentum))
        replay()
        _arrays.synchronize(x)

    for _ in range(5):
        driver()
        static()
    off = float(torch.max(torch.abs(x - optimizer.x)) / torch.max(torch.abs(optimizer.x)))
    seconds = interleaved_seconds([driver, static], 9).min(axis=0)
    return [
        {"size": size, "driver_ms": 1e3 * seconds[0], "replay_ms": 1e3 * seconds[1],
         "largest_difference": off}
    ]  # fmt: skip


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
        "CUDA graph": lambda: captured(64 if small else 512, "cpu" if small else "cuda"),
        "phase mask": lambda: phase_mask(backends, 32 if small else 2048),
        "least squares": lambda: least_squares(backends, size),
    }
    if "torch" not in ",".join(backends):
        del parts["CUDA graph"]
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
