"""Speed and memory of steps at the shapes of OPT, with random weights: no download.

    python tools/opt_speed.py --size 1.3b --device cuda --out opt-1.3b.json

For each way to evaluate (in place, overlay, all probes in one forward pass) it prints seconds a
step, forward passes a second against pure inference at the same number of rows, and the peak of
the device's memory beyond the weights and the bare forward pass. The decoder is written out here,
so that nothing but Torch is needed; attention is causal, the loss is the cross-entropy of the last
token.
"""

import argparse
import json
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from zomopi_adapters.torch import ZOMOPI, per_probe, tiled

#: layers, width, heads, words
SIZES = {
    "tiny": (2, 32, 4, 64),
    "125m": (12, 768, 12, 50272),
    "1.3b": (24, 2048, 32, 50272),
    "2.7b": (32, 2560, 32, 50272),
    "6.7b": (32, 4096, 32, 50272),
    "13b": (40, 5120, 40, 50272),
}
POSITIONS = 2048
BINDINGS = ("in_place", "overlay", "batched")


class Block(nn.Module):
    """A layer of the decoder: attention and two linear layers, normalised before."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        """Return the states after this layer."""
        rows, tokens, width = x.shape
        y = self.norm(x)
        q, k, v = (
            f(y).view(rows, tokens, self.heads, -1).transpose(1, 2)
            for f in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(rows, tokens, width))
        return x + self.down(F.relu(self.up(self.second_norm(x))))


class Decoder(nn.Module):
    """A decoder of OPT's shapes; the head is the table of words."""

    def __init__(self, layers, width, heads, words):
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(POSITIONS, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for table in (self.words, self.places):
            nn.init.normal_(table.weight, std=0.02)  # as OPT's configuration has it

    def forward(self, ids):
        """Return the logits of the word after each row."""
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        x = self.words(ids) + self.places(places)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x[:, -1]), self.words.weight)


def synchronised(device):
    """Return the time after the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(function, device, repeats):
    """Return the median time of a call, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = synchronised(device)
        function()
        times.append(synchronised(device) - start)
    return statistics.median(times[1:])


def peak(function, device):
    """Return the largest memory in bytes during a call beyond that before it; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def measure(binding, options, device):
    """Return the figures of one way to evaluate, on a model of its own."""
    torch.manual_seed(0)
    with torch.device(device):
        default = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, options.dtype))
        try:
            model = Decoder(*SIZES[options.size]).eval()
        finally:
            torch.set_default_dtype(default)
        ids = torch.randint(SIZES[options.size][3], (options.rows, options.tokens))
    evaluations = options.probes + 1
    plain = model.forward

    def inference():
        with torch.no_grad():
            many = ids.repeat(evaluations, 1) if binding == "batched" else ids
            plain(many)

    bare = seconds(inference, device, options.repeats)
    bare_peak = peak(inference, device)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())

    def closure():
        targets = tiled(ids[:, -1])
        return per_probe(F.cross_entropy(model(tiled(ids)).float(), targets, reduction="none"))

    made = {}

    def make_and_step():
        made["optimizer"] = ZOMOPI(
            model, lr=1e-3, rank=options.rank, probes=options.probes, difference="forward",
            smoothing=options.smoothing, refresh_every=10_000,
            binding="in_place" if binding == "in_place" else "overlay",
            batched=binding == "batched", chunk=options.chunk if binding == "batched" else None,
        )  # fmt: skip
        made["optimizer"].step(closure)

    # All that the optimizer brings, its state included.
    memory = peak(make_and_step, device)
    if memory is None:
        make_and_step()
    step = seconds(lambda: made["optimizer"].step(closure), device, options.repeats)
    if binding == "batched" and not made["optimizer"].batched:
        raise RuntimeError("the probes ran one by one")
    passes = evaluations / step
    pure = evaluations / bare if binding == "batched" else 1.0 / bare
    return {
        "binding": binding,
        "seconds a step": step,
        "forward passes a second": passes,
        "of pure inference": passes / pure,
        "weights, GB": weights / 1e9,
        "bare forward pass, GB": None if bare_peak is None else bare_peak / 1e9,
        "peak beyond it, GB": None if memory is None else (memory - bare_peak) / 1e9,
    }


def main(arguments=None):
    """Measure, print and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="1.3b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="bfloat16")
    parser.add_argument("--bindings", nargs="*", choices=BINDINGS, default=BINDINGS)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--probes", type=int, default=4)
    parser.add_argument("--smoothing", type=float, default=0.02)
    parser.add_argument("--rows", type=int, default=4, help="texts of a batch")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--chunk", type=int, help="evaluations of one forward pass, if batched")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", help="file for the figures as JSON")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    found = []
    for binding in options.bindings:
        found.append(measure(binding, options, device))
        print(json.dumps(found[-1]), flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump({"options": vars(options), "figures": found}, file, indent=2)
    return found


if __name__ == "__main__":
    main()
