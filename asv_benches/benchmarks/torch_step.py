"""The Torch optimizer: a step without its forward passes, its memory, batched forward passes."""

from __future__ import annotations

import copy
import itertools
from typing import Any, ClassVar

import numpy as np

from zomopi_core import _arrays

from .common import interleaved_seconds, median_ratio, sizes, turns

RANK, PROBES = 64, 4

#: name -> shapes of the weights
SHAPES: dict[str, list[tuple[int, int]]] = {
    "768 x 768": [(768, 768)],
    "8192 x 2048": [(8192, 2048)],
    "a layer of 125M": [(768, 768)] * 4 + [(3072, 768), (768, 3072)],
}


def torch_or_skip() -> Any:
    """Return torch; without it asv shows n/a."""
    if not _arrays.installed("torch"):
        raise NotImplementedError("torch is not installed")
    import torch

    return torch


class NaiveStep:
    """What peers do: draw the probe again at each pass, and add a full product.

    For each probe three passes, there, to the other side and back, or two with forward
    differences, and one that updates: the step ``X <- X - eta P sign`` of a Newton-Schulz
    iteration on the averaged coordinates.
    """

    def __init__(self, params: list[Any], difference: str, smoothing: float = 1e-3) -> None:
        self.torch = torch_or_skip()
        self.params, self.smoothing = params, smoothing
        self.scales = {"central": (1.0, -2.0, 1.0), "forward": (1.0, -1.0)}[difference]
        self.frames = [
            self.torch.linalg.qr(self.torch.randn(p.shape[0], RANK))[0].contiguous()
            for p in params
        ]

    def add(self, seed: int, scale: float) -> None:
        """Draw a probe and add it."""
        self.torch.manual_seed(seed)
        for p, frame in zip(self.params, self.frames, strict=True):
            p.add_((frame @ self.torch.randn(RANK, p.shape[1])) * scale)

    def run(self) -> None:
        """Take a step with losses that cost nothing."""
        from zomopi_core import newton_schulz

        with self.torch.no_grad():
            for probe in range(PROBES):
                for scale in self.scales:
                    self.add(probe, scale * self.smoothing)
            for p, frame in zip(self.params, self.frames, strict=True):
                self.torch.manual_seed(0)
                mean = sum(self.torch.randn(RANK, p.shape[1]) for _ in range(PROBES))
                p.add_((frame @ newton_schulz(mean)) * -1e-3)


def weights(
    shapes: list[tuple[int, int]], dtype: str = "float32", device: str = "cpu"
) -> list[Any]:
    """Return parameters of these shapes."""
    torch = torch_or_skip()
    kind = getattr(torch, dtype)
    return [torch.nn.Parameter((0.02 * torch.randn(s, device=device)).to(kind)) for s in shapes]


def ours(params: list[Any], **options: Any) -> Any:
    """Return a function that takes a step with losses that cost nothing."""
    from zomopi_adapters.torch import ZOMOPI

    settings = {"lr": 1e-3, "rank": RANK, "probes": PROBES, "refresh_every": 10_000, **options}
    optimizer = ZOMOPI(params, **settings)
    # Not drawn in the closure: generators are put back for each evaluation, and losses that are
    # all equal would make a step of zero.
    losses = itertools.cycle(np.random.default_rng(0).standard_normal(1009).tolist())

    def run() -> None:
        optimizer.step(lambda: next(losses))

    return run


class StepOutsideForwards:
    """In place, r = 64, N = 4, against `NaiveStep`, float32 on the CPU."""

    params: ClassVar[list[Any]] = [sizes(*SHAPES), ["central", "forward"]]
    param_names: ClassVar[list[str]] = ["weights", "difference"]
    timeout = 600

    def setup(self, shapes: str, difference: str) -> None:
        """Make both."""
        self.ours = ours(weights(SHAPES[shapes]), difference=difference)
        self.naive = NaiveStep(weights(SHAPES[shapes]), difference).run

    def time_step(self, shapes: str, difference: str) -> None:
        """Record a step of ours."""
        self.ours()

    def track_ours_over_naive(self, shapes: str, difference: str) -> float:
        """Return our step over the naive one."""
        return median_ratio(interleaved_seconds([self.ours, self.naive], turns(5)))

    track_ours_over_naive.unit = "x"  # type: ignore[attr-defined]

    def track_step_over_fused_passes(self, shapes: str, difference: str) -> float:
        """Return a step's time over that of its bare fused additions, 2N + 1 or N + 1."""
        torch = torch_or_skip()
        params = weights(SHAPES[shapes])
        factors = [(torch.randn(p.shape[0], RANK), torch.randn(RANK, p.shape[1])) for p in params]
        passes = {"central": 2 * PROBES + 1, "forward": PROBES + 1}[difference]

        def fused() -> None:
            with torch.no_grad():
                for _ in range(passes):
                    for p, (left, right) in zip(params, factors, strict=True):
                        p.addmm_(left, right, alpha=1e-6)

        return median_ratio(interleaved_seconds([self.ours, fused], turns(5)))

    track_step_over_fused_passes.unit = "x"  # type: ignore[attr-defined]


class HalfPrecision:
    """In place from a reference, 16-bit weights."""

    params: ClassVar[list[Any]] = [["bfloat16", "float16"], sizes(*SHAPES)]
    param_names: ClassVar[list[str]] = ["dtype", "weights"]

    def setup(self, dtype: str, shapes: str) -> None:
        """Make the optimizer."""
        self.step = ours(weights(SHAPES[shapes], dtype), smoothing=0.05)

    def time_step(self, dtype: str, shapes: str) -> None:
        """Record a step."""
        self.step()


class Restore:
    """How far weights are from where they were after steps that change nothing."""

    params: ClassVar[list[Any]] = [["float32", "bfloat16", "float16"]]
    param_names: ClassVar[list[str]] = ["dtype"]

    def track_restore_error(self, dtype: str) -> float:
        """Return the largest deviation after 20 steps, in units of the largest weight."""
        from zomopi_adapters.torch import ZOMOPI

        torch = torch_or_skip()
        (weight,) = weights([(256, 256)], dtype)
        before = weight.detach().clone()
        optimizer = ZOMOPI([weight], lr=1e-3, rank=16, probes=PROBES, smoothing=0.02)
        for _ in range(20):
            optimizer.step(lambda: 1.0)
        off = torch.max(torch.abs(weight.detach().double() - before.double()))
        return float(off / torch.max(torch.abs(before.double())))

    track_restore_error.unit = "largest weight"  # type: ignore[attr-defined]


class Memory:
    """What a step needs beside the weights: 32 MiB of them, r = 64."""

    params: ClassVar[list[Any]] = [["cpu", "cuda"]]
    param_names: ClassVar[list[str]] = ["device"]

    def setup(self, device: str) -> None:
        """Make the weights."""
        torch = torch_or_skip()
        if device == "cuda" and not torch.cuda.is_available():
            raise NotImplementedError("torch finds no GPU")
        self.weights = weights([(2048, 2048)] * 2, device=device)

    def peakmem_steps(self, device: str) -> None:
        """Record the peak of the process in two steps."""
        step = ours(self.weights)
        step()
        step()

    def peakmem_weights_alone(self, device: str) -> None:
        """Record what the weights and the libraries take."""

    def track_peak_over_weights(self, device: str) -> float:
        """Return the largest sum of what a run allocates, over the weights; state included."""
        torch = torch_or_skip()
        size = sum(p.numel() * p.element_size() for p in self.weights)
        if device == "cuda":
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            step = ours(self.weights)
            step()
            step()
            return float((torch.cuda.max_memory_allocated() - before) / size)
        ours(self.weights)()  # what libraries allocate once
        with torch.profiler.profile(profile_memory=True) as profile:
            step = ours(self.weights)
            step()
            step()
        now = peak = 0
        for event in profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                now += event.nbytes()
                peak = max(peak, now)
        return float(peak / size)

    track_peak_over_weights.unit = "x"  # type: ignore[attr-defined]


class BatchedForward:
    """Steps under an overlay against bare forward passes of 16 tokens a row, on a GPU or CPU."""

    params: ClassVar[list[Any]] = [["cpu", "cuda"], sizes(2, 32)]
    param_names: ClassVar[list[str]] = ["device", "batch"]
    timeout = 600

    def setup(self, device: str, batch: int) -> None:
        """Make four layers of a transformer's size."""
        torch = torch_or_skip()
        if device == "cuda" and not torch.cuda.is_available():
            raise NotImplementedError("torch finds no GPU")
        width, depth, dtype = (2048, 8, "bfloat16") if device == "cuda" else (256, 4, "float32")
        layers = [torch.nn.Linear(width, width, bias=False) for _ in range(depth)]
        model = torch.nn.Sequential(*layers).to(device, getattr(torch, dtype))
        self.model, self.x = model, torch.randn(batch, 16, width).to(device, getattr(torch, dtype))

    def _runs(self) -> tuple[Any, Any, Any, Any]:
        from zomopi_adapters.torch import ZOMOPI, per_probe, tiled

        torch, plain, x = torch_or_skip(), self.model, self.x

        def optimizer(batched: bool) -> Any:
            model = copy.deepcopy(plain)  # overlays of several optimizers would all act in one
            made = ZOMOPI(model, lr=1e-4, rank=RANK, binding="overlay", batched=batched,
                          refresh_every=10_000)  # fmt: skip

            def run() -> None:
                loss = made.step(
                    lambda: per_probe(model(tiled(x)).float().pow(2).flatten(1).mean(dim=1))
                )
                _arrays.synchronize(loss)

            return run

        rows = x.repeat(2 * PROBES, 1, 1)

        def inference() -> None:
            with torch.no_grad():
                _arrays.synchronize(plain(rows))

        def bare_passes() -> None:
            with torch.no_grad():
                for _ in range(2 * PROBES):
                    out = plain(x)
                _arrays.synchronize(out)

        return optimizer(True), optimizer(False), inference, bare_passes

    def track_batched_over_one_by_one(self, device: str, batch: int) -> float:
        """Return a batched step over one whose probes come one by one."""
        batched, single, _, _ = self._runs()
        return median_ratio(interleaved_seconds([batched, single], turns(5)))

    track_batched_over_one_by_one.unit = "x"  # type: ignore[attr-defined]

    def track_batched_over_inference(self, device: str, batch: int) -> float:
        """Return a batched step over pure inference on as many rows."""
        batched, _, inference, _ = self._runs()
        return median_ratio(interleaved_seconds([batched, inference], turns(5)))

    track_batched_over_inference.unit = "x"  # type: ignore[attr-defined]

    def track_one_by_one_over_bare_passes(self, device: str, batch: int) -> float:
        """Return an overlaid step whose probes come one by one over its 2N bare passes."""
        _, single, _, bare_passes = self._runs()
        return median_ratio(interleaved_seconds([single, bare_passes], turns(5)))

    track_one_by_one_over_bare_passes.unit = "x"  # type: ignore[attr-defined]
