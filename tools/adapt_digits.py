"""Adapt a small vision transformer to changed digits from forward passes alone.

    python tools/adapt_digits.py
    python tools/adapt_digits.py --settings "zo-sgd, activation" --set '{"rank": 4}'

The second model beside MiniLM on which settings are compared: seconds a run, so that rates can be
tuned for each setting and seeds repeated. It is trained by backpropagation on scikit-learn's
digits. Then its hidden matrices are trained by the losses of batches of the same digits, moved by
a pixel, noisy or rotated by 30 degrees. The learning rate falls linearly to zero; the passes that
frames are taken from are counted.
"""

import argparse
import json
import math
import time

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from zomopi_adapters.torch import ZOMOPI

LEAVE_ONE_OUT = {"rank": 16, "probes": 8, "difference": "leave-one-out"}
ACTIVATION = LEAVE_ONE_OUT | {"sketch": "activation"}
# Setting -> options and the learning rates of which the best is told.
SETTINGS = {
    "zo-mopi, activation": (ACTIVATION, (0.015, 0.03, 0.06)),
    "zo-mopi, random": (LEAVE_ONE_OUT, (0.03, 0.06, 0.12)),
    "zo-sgd, activation": (ACTIVATION | {"method": "zo-sgd"}, (2e-3, 4e-3, 8e-3)),
    "zo-sgd, random": (LEAVE_ONE_OUT | {"method": "zo-sgd"}, (4e-3, 8e-3, 16e-3)),
    "mezo": ({"method": "mezo"}, (2e-4, 4e-4, 8e-4)),
    "zo-muon": ({"method": "zo-muon", "rank": 16, "probes": 4}, (0.01, 0.03, 0.1)),
}


class Block(nn.Module):
    """Attention and a layer of hidden units, each on what is normalised."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        """Return tokens (b, 16, width) for tokens."""
        batch, tokens, width = x.shape
        parts = self.attend(self.before(x)).view(batch, tokens, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        joined = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = x + self.join(joined.reshape(batch, tokens, width))
        return x + self.down(F.gelu(self.up(self.between(x))))


class Transformer(nn.Module):
    """Classifier of images (b, 8, 8) by their 16 patches."""

    def __init__(self, width=64, layers=3):
        super().__init__()
        self.patch, self.head = nn.Linear(4, width), nn.Linear(width, 10)
        self.place = nn.Parameter(0.1 * torch.randn(16, width))
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)

    def forward(self, images):
        """Return logits (b, 10)."""
        patches = images.view(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)
        return self.head(self.norm(self.blocks(self.patch(patches) + self.place)).mean(dim=1))


def moved(x):
    """Return images whose content is one pixel farther to the right."""
    return F.pad(x, (1, 0), value=-1.0)[..., :8].contiguous()


def noisy(x):
    """Return images with noise."""
    return x + 0.7 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def rotated(x, degrees=30):
    """Return images that are rotated."""
    a = math.radians(degrees)
    turn = torch.tensor([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0]])
    grid = F.affine_grid(turn.expand(len(x), 2, 3), (len(x), 1, 8, 8), align_corners=False)
    return F.grid_sample(x[:, None] + 1, grid, align_corners=False)[:, 0].contiguous() - 1


TASKS = {"moved": moved, "noisy": noisy, "rotated": rotated}


def digits():
    """Return images in -1..1 and labels, 1,200 to train on and 597 held out."""
    data = load_digits()
    x, y = torch.tensor(data.images, dtype=torch.float32) / 8 - 1, torch.tensor(data.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return (x[order[:1200]], y[order[:1200]]), (x[order[1200:]], y[order[1200:]])


def pretrained(data, steps):
    """Return a transformer that reads the digits as they are."""
    torch.manual_seed(0)
    model, generator = Transformer(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        rows = torch.randint(len(data[1]), (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(data[0][rows]), data[1][rows]).backward()
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def measure(model, x, y):
    """Return loss and accuracy."""
    logits = model(x)
    return float(F.cross_entropy(logits, y)), float((logits.argmax(dim=1) == y).float().mean())


def run(model, data, settings, lr, options, seed):
    """Train the hidden matrices by `options.forwards` losses."""
    x, y = data
    weights = [(n, p) for n, p in model.blocks.named_parameters() if p.ndim == 2]
    optimizer = ZOMOPI(weights, lr=lr, seed=seed, **settings)
    generator, count = torch.Generator().manual_seed(seed), 0

    def closure():
        nonlocal count
        count += 1
        return F.cross_entropy(model(x[rows]), y[rows])

    while count < options.forwards:
        for group in optimizer.param_groups:
            group["lr"] = lr * max(1.0 - count / options.forwards, 0.02)
        rows = torch.randint(len(y), (options.batch,), generator=generator)
        optimizer.step(closure)


def main(arguments=None):
    """Compare settings, each at the best of its rates, and return what they reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--set", default="{}", help="JSON with options in place of the settings'")
    parser.add_argument("--rates", nargs="*", type=float, help="in place of the settings'")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--forwards", type=int, default=752)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pretraining", type=int, default=600, help="steps of backpropagation")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    options = parser.parse_args(arguments)
    train, test = digits()
    model = pretrained(train, options.pretraining)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    tasks = {t: [(TASKS[t](x), y) for x, y in (train, test)] for t in options.tasks}
    show = lambda points: "  ".join(f"{loss:.3f} / {hits:.3f}" for loss, hits in points)  # noqa: E731
    print(f"loss / accuracy, held out, of {', '.join(tasks)}")
    print(f"before: {show([measure(model, *test) for _, test in tasks.values()])}")
    found = {}
    for name in options.settings:
        settings = SETTINGS[name][0] | json.loads(options.set)
        begin, by_rate = time.perf_counter(), {}
        for lr in options.rates or SETTINGS[name][1]:
            by_rate[lr] = []
            for data, held_out in tasks.values():
                ends = []
                for seed in options.seeds:
                    model.load_state_dict(start)
                    run(model, data, settings, lr, options, seed)
                    ends.append(measure(model, *held_out))
                by_rate[lr].append(tuple(sum(v) / len(v) for v in zip(*ends, strict=True)))
        means = {lr: sum(loss for loss, _ in ends) / len(ends) for lr, ends in by_rate.items()}
        best = min(means, key=means.get)
        found[name] = by_rate[best]
        print(
            f"{name} {settings}: {show(found[name])}\n  mean loss "
            + ", ".join(f"{mean:.3f} at {lr:g}" for lr, mean in means.items())
            + f"; {time.perf_counter() - begin:.0f} s",
            flush=True,
        )
    return found


if __name__ == "__main__":
    main()
