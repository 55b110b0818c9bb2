"""How far slopes measured in bfloat16 are from exact ones, by smoothing and binding.

Prints the error of the c_i of one step, as a norm relative to that of the exact slopes, which
come from the gradient in float64: in place, under an overlay, and in place with each c_i divided
by the part of its probe that the weights took up, <X+ - X-, P> / (2 mu <P, P>). Where weights
took up nearly all of the probe, that part is 1, and what rounding added is across the probe. Then
in place and under an overlay for float32 weights under autocast to bfloat16.

    python tools/half_slopes.py
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

import zomopi_core as zo
from zomopi_adapters._torch_leaf import Leaf, Source
from zomopi_adapters.torch import ZOMOPI

PROBES, RANK, TOKENS = 24, 16, 100

Loss = Callable[[nn.Module], Tensor]


class Language(nn.Module):
    """A small transformer for tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(TOKENS, width)
        self.blocks = nn.Sequential(*[
            nn.TransformerEncoderLayer(
                width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(3)
        ])  # fmt: skip
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, TOKENS, bias=False)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits of the tokens."""
        return self.head(self.norm(self.blocks(self.table(ids))))


def problem(name: str) -> tuple[nn.Module, Loss]:
    """Return a model in bfloat16 and its loss, which is computed in float64 from the outputs."""
    torch.manual_seed(0)
    if name == "layers":
        widths = (64, 128), (128, 128), (128, 10)
        model = nn.Sequential(*[m for a, b in widths for m in (nn.Linear(a, b), nn.Tanh())][:-1])
        x, y = torch.randn(64, 64).to(torch.bfloat16), torch.arange(64) % 10
        dtype = lambda m: next(m.parameters()).dtype  # noqa: E731
        return model.to(torch.bfloat16), lambda m: F.cross_entropy(m(x.to(dtype(m))).double(), y)
    ids = torch.randint(TOKENS, (8, 32))
    model = Language(64).to(torch.bfloat16)
    return model, lambda m: F.cross_entropy(m(ids[:, :-1]).double().mT, ids[:, 1:])


def dense(leaf: Leaf, source: Source, number: int) -> Tensor:
    """Return a probe as a matrix."""
    varying = leaf.varying(source, number)
    if leaf.kind != "full":
        left, right = leaf.product(varying)
        varying = left @ right
    return varying.reshape(leaf.param.shape).double()


def slopes(
    name: str, smoothing: float, binding: str, autocast: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return measured and exact slopes, and the part of each probe that bfloat16 takes up."""
    model, loss = problem(name)
    exact = copy.deepcopy(model).double()
    loss(exact).backward()
    wide = dict(exact.named_parameters())
    model = model.float() if autocast else model
    optimizer = ZOMOPI(
        model, lr=1e-3, rank=RANK, probes=PROBES, smoothing=smoothing, binding=binding
    )
    source, found, parts = Source(optimizer._stepper.random, 0), [], []
    for number in range(PROBES):
        slope = taken = size = 0.0
        for leaf in optimizer._leaves:
            probe, x = dense(leaf, source, number), wide[leaf.name].detach()
            ends = [(x + sign * smoothing * probe).bfloat16().double() for sign in (1, -1)]
            slope += float(torch.sum(wide[leaf.name].grad * probe))
            taken += float(torch.sum((ends[0] - ends[1]) * probe))
            size += float(torch.sum(probe * probe))
        found.append(slope)
        parts.append(taken / (2 * smoothing * size))
    losses: list[float] = []

    def closure() -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            losses.append(float(loss(model)))
        return losses[-1]

    optimizer.step(closure)
    plus, minus = torch.tensor(losses, dtype=torch.float64).view(PROBES, 2).T
    return (plus - minus) / (2 * smoothing), torch.tensor(found).double(), torch.tensor(parts)


def error(found: Tensor, exact: Tensor) -> float:
    """Return how far slopes are from the exact ones, relative to those."""
    return float(torch.linalg.norm(found - exact) / torch.linalg.norm(exact))


def main() -> None:
    """Print a table."""
    warnings.simplefilter("ignore", zo.PrecisionWarning)
    print(
        "model, smoothing: in place, overlay, in place divided by the part taken up (its mean); "
        "float32 weights under autocast, in place, overlay"
    )
    for name in ("layers", "transformer"):
        for smoothing in (1e-4, 1e-3, 1e-2, 3e-2):
            found, exact, parts = slopes(name, smoothing, "in_place")
            figures = [error(found, exact)]
            figures.append(error(*slopes(name, smoothing, "overlay")[:2]))
            figures.append(error(found / parts, exact))
            for binding in ("in_place", "overlay"):
                figures.append(error(*slopes(name, smoothing, binding, autocast=True)[:2]))
            first, last = (
                ", ".join(f"{x:.3f}" for x in part) for part in (figures[:3], figures[3:])
            )
            print(f"{name}, {smoothing:g}: {first} ({float(parts.mean()):.3f}); {last}")


if __name__ == "__main__":
    main()
