"""What gpu_report.py measures on a GPU, one part a process: ``gpu_parts.py NAME --rows FILE``.

With ``--rehearse`` on the CPU with small sizes. Each part is a function of the backends and of
`small`, and returns rows; a row with the key ``failed`` says what is wrong.
"""

import argparse
import contextlib
import itertools
import json
import math
import sys
import time
import warnings
from pathlib import Path

import numpy as np

import performance
import zomopi_core as zo
from benchmarks.common import BackendBenchmark, generator, interleaved_seconds
from zomopi_core import _arrays, problems
from zomopi_core.losses import stack_losses
from zomopi_core.rule import Probe
from zomopi_core.sampling import native_sampler

GPU = ["torch:cuda", "cupy", "jax"]
HOST = ["numpy", "torch:cpu", "jax"]


def on(backend):
    """Return a benchmark that was set up on a backend: `xp`, `device`, `normal`."""
    bench = BackendBenchmark()
    bench.setup(backend)
    return bench


def machine(backends, small):
    """Return what is installed, and its devices."""
    rows = _arrays.describe_backends()
    found = [{"backend": name, "version": v, "devices": d} for name, v, d in rows]
    if not backends:
        found.append({"failed": "no backend can be used"})
    return found


def floors(backends, small):
    """Return a step over its floor, for each binding of arrays."""
    dtypes = ["float32"] if small else ["float32", "bfloat16"]
    return performance.ceilings_and_floors(backends, 128 if small else 16384, dtypes)


def samplers(backends, small):
    """Return the time of the keyed draws over that of the library's own generator."""
    found = []
    for backend in backends:
        bench = on(backend)
        like, shape = bench.normal((1, 1)), (8, 64, 1024 if small else 16384)
        sampler, own = native_sampler(0, like), generator(like)

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


def stacked(backends, small):
    """Return the gain of stacks."""
    return performance.stacked(backends, performance.RANKS[: 1 if small else None])


def least_squares(backends, small):
    """Return the time of steps on mean((X W - Y)^2), structured and not, and the loss's fall."""
    size, found = 128 if small else 16384, []
    for backend, structured in itertools.product(backends, (False, True)):
        bench = on(backend)
        w, y = bench.normal((size, 256)), bench.normal((size, 256))
        x0 = bench.xp.zeros((size, size), dtype=w.dtype, device=bench.device)

        def loss(matrix, w=w, y=y, xp=bench.xp):
            return xp.mean((matrix @ w - y) ** 2)

        began = time.perf_counter()
        result = zo.minimize(loss, x0, max_steps=40, structured=structured, reuse_buffers=True)
        found.append(
            {
                "backend": backend,
                "n": size,
                "structured": structured,
                "seconds": time.perf_counter() - began,
                "median_step_ms": median_step(result),
                "loss_over_first": result.fun / float(loss(x0)),
            }
        )
    return found


def median_step(result):
    """Return the milliseconds of a step of `minimize`."""
    return 1e3 * float(np.median(np.diff(result.history["elapsed"])))


def phase_mask(backends, small):
    """Return the time of steps on the phase mask, an FFT of size x size a query."""
    size, found = 64 if small else 2048, []
    for backend in backends:
        bench = on(backend)
        problem = problems.phase_mask(bench.xp, device=bench.device, size=size)
        first = float(problem.fun(problem.x0))
        result = zo.minimize(problem.fun, problem.x0, max_steps=40, reuse_buffers=True)
        found.append(
            {"backend": backend, "size": size, "median_step_ms": median_step(result),
             "loss": result.fun, "first": first}
        )  # fmt: skip
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


def captured(backends, small):
    """Replay a step from a CUDA graph and compare with the driver's steps.

    Draws are written into a static block before each replay.
    """
    size, found = 64 if small else 512, []
    for backend in backends:
        bench = on(backend)
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
        if not off < 0.01:  # draws that a replay does not see give other steps altogether
            found[-1]["failed"] = "a replayed step is not the driver's"
    return found


def torch_device(backends):
    """Return the device of the Torch backend that is chosen, None where none is."""
    names = [b for b in backends if b.startswith("torch")]
    return on(names[0]).device if names else None


def model_on(places, width=8):
    """Return a Torch model, one linear layer on each of the places, and its loss."""
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(0)

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(width, width).double() for _ in places)
            with torch.no_grad():
                for p in self.parameters():
                    p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) / width)
            for layer, place in zip(self.layers, places, strict=True):
                layer.to(place)

        def forward(self, x):
            for layer in self.layers:
                x = torch.tanh(layer(x.to(layer.weight.device)))
            return x

    model = Chain()
    x, y = (torch.randn(16, width, generator=generator, dtype=torch.float64) for _ in range(2))
    x, y = x.to(places[0]), y.to(places[-1])
    return model, lambda: torch.nn.functional.mse_loss(model(x), y)


@contextlib.contextmanager
def counted_waits(device):
    """Count in a list how often the host waits for numbers of a Torch device."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    found = []
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                yield found
            found += [w for w in seen if "synchronizing CUDA operation" in str(w.message)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            if function is torch.ops.aten._local_scalar_dense.default:
                found.append(function)
            return function(*arguments, **(options or {}))

    with Counting():
        yield found


def tuning(backends, small):
    """Return what a measured learning rate costs: `minimize` on arrays, ZOMOPI on a model."""
    size, found = 64 if small else 1024, []
    for backend in backends:
        bench = on(backend)
        target = bench.normal((size, size))

        def loss(x, target=target, xp=bench.xp):
            return xp.mean((x - target) ** 2)

        given, auto = (
            zo.minimize(loss, target * 0.0, max_steps=40, **rate)
            for rate in ({"learning_rate": 0.1}, {})
        )
        found.append(tuning_row(backend, "minimize", median_step(given), median_step(auto)))
        found[-1]["loss_over_first"] = auto.fun / float(loss(target * 0.0))
        if not auto.fun < float(loss(target * 0.0)):
            found[-1]["failed"] = "the loss did not fall"
    device = torch_device(backends)
    if device is not None:
        found.append(tuning_of_a_model(device, 16 if small else 512, 10 if small else 40))
    return found


def tuning_row(backend, driver, given, auto):
    """Return the milliseconds of a step with a learning rate that is given, and measured."""
    return {"backend": backend, "driver": driver, "given_ms": given, "auto_ms": auto}


def tuning_of_a_model(device, width, steps):
    """Return the row of ZOMOPI with ``lr="auto"``, and how often its steps wait."""
    from zomopi_adapters.torch import ZOMOPI

    milliseconds, waits = [], []
    for lr in (0.01, "auto"):
        model, closure = model_on([device] * 4, width)
        first = without_graph(closure)
        optimizer = ZOMOPI(model.named_parameters(), lr=lr, rank=4, seed=0)
        marks = []
        with counted_waits(device) as waited:
            for _ in range(steps):
                optimizer.step(closure)
                for p in model.parameters():
                    _arrays.synchronize(p)
                marks.append(time.perf_counter())
        milliseconds.append(1e3 * float(np.median(np.diff(marks))))
        waits.append(len(waited) / steps)
        optimizer.merge()
    row = tuning_row(str(device), "ZOMOPI", *milliseconds)
    row |= {"given_waits_a_step": waits[0], "auto_waits_a_step": waits[1]}
    row["loss_over_first"] = without_graph(closure) / first
    if not row["loss_over_first"] < 1.0:
        row["failed"] = "the loss did not fall"
    return row


def without_graph(closure):
    """Return a model's loss as a number."""
    import torch

    with torch.no_grad():
        return float(closure())


def devices(backends, small):
    """Compare a model over two devices with the same on one, and runs on each device.

    Where there is one GPU, the second device is the host.
    """
    device, found = torch_device(backends), []
    if device is not None:
        for lr in (0.05, "auto"):
            found.append(model_over_two(device, lr, small))
    for backend in backends:
        bench = on(backend)
        for place in devices_of(backend, bench):
            current = _arrays.library(bench.xp) == "cupy"
            with place if current else contextlib.nullcontext():
                x0 = bench.xp.zeros((16, 8), device=place)
                result = zo.minimize(
                    lambda x, xp=bench.xp: xp.mean((x - 1.0) ** 2), x0, max_steps=10
                )
            row = {"backend": backend, "places": str(place), "loss": result.fun}
            if str(_arrays.device(result.x)) != str(_arrays.device(x0)):
                row["failed"] = f"the result is on {_arrays.device(result.x)}"
            found.append(row)
    return found


def devices_of(backend, bench):
    """Return the device objects of a backend."""
    library, _, kind = backend.partition(":")
    if library == "torch" and kind == "cuda":
        return [bench.xp.device(i) for i in range(bench.xp.cuda.device_count())]
    if library == "jax":
        import jax

        return jax.devices()
    if library == "cupy":
        import cupy

        return [cupy.cuda.Device(i) for i in range(cupy.cuda.runtime.getDeviceCount())]
    return [_arrays.device(bench.normal((1,)))]


def model_over_two(device, lr, small):
    """Return how far a model over two devices ends from the same model on the host."""
    import torch

    from zomopi_adapters.torch import ZOMOPI

    several = device.type == "cuda" and torch.cuda.device_count() > 1
    second = torch.device("cuda", 1) if several else torch.device("cpu")
    ends = []
    for places in ([torch.device("cpu")] * 2, [device, second]):
        model, closure = model_on(places)
        # Both draw the same numbers, made on the host.
        optimizer = ZOMOPI(model.named_parameters(), lr=lr, rank=3, seed=zo.HostSampler(0))
        for _ in range(5 if small else 20):
            optimizer.step(closure)
        optimizer.merge()
        ends.append([p.detach().cpu() for p in model.parameters()])
    off = max(float((a - b).abs().max()) for a, b in zip(*ends, strict=True))
    row = {"backend": "torch", "places": f"{device}, {second}", "lr": lr}
    row["largest_difference"] = off
    # Sums in another order; a search may then take another of two equal ways.
    if not off < (1e-9 if lr != "auto" else 1e-3):
        row["failed"] = "the model over two devices ends elsewhere"
    return row


#: functions of the backends and of whether sizes shall be small
PARTS = {
    "machine": machine,
    "floor": floors,
    "samplers": samplers,
    "stacked": stacked,
    "CUDA graph": captured,
    "phase mask": phase_mask,
    "least squares": least_squares,
    "tuning": tuning,
    "devices": devices,
}


def main():
    """Measure one part and write its rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--backends", default="")
    chosen = parser.parse_args()
    known = HOST if chosen.rehearse else GPU
    known = chosen.backends.split(",") if chosen.backends else known
    rows = PARTS[chosen.part]([b for b in known if performance.have(b)], chosen.rehearse)
    chosen.rows.write_text(json.dumps(rows, default=float) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
