"""Fine-tune an OPT model on SuperGLUE with prompts, from forward passes alone.

    pip install "zomopi[transformers]"
    python docs/examples/finetune_superglue.py --model facebook/opt-1.3b --task RTE \\
        --data SuperGLUE/RTE --rank 64 --spectral-rank 32 --refresh-every 100 --smoothing 1e-3 \\
        --learning-rate 1e-2 --probes 4 --steps 2000

This is the experiment of the paper (arXiv 2605.09034): 1,000 examples to train on, prompts that
turn a task into the continuation of a text, accuracy by the likelihood of the answers. `--data` is
the folder of a task in the archive that the benchmark publishes (train.jsonl, val.jsonl);
`--model` is a name or a folder of Transformers. All hyperparameters are on the command line, and
what is not given is the method's own; `--learning-rate auto` measures the rate and tunes the rest.
The probes of a step run one by one, as the loss of a Trainer is the mean of a batch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from zomopi_adapters.transformers import ZeroOrderTrainer


class Example(NamedTuple):
    """A prompt, the answers that may follow it, and which one is right."""

    prompt: str
    answers: tuple[str, ...]
    label: int


def _yes_no(prompt: str, right: bool) -> Example:
    return Example(prompt, (" Yes", " No"), 0 if right else 1)


def rte(row: dict[str, Any]) -> list[Example]:
    """Textual entailment."""
    prompt = f'{row["premise"]}\nDoes this mean that "{row["hypothesis"]}" is true? Yes or No?\n'
    return [_yes_no(prompt, row["label"] == "entailment")]


def cb(row: dict[str, Any]) -> list[Example]:
    """Textual entailment with a third answer."""
    prompt = (
        f'Suppose {row["premise"]} Can we infer that "{row["hypothesis"]}"? Yes, No, or Maybe?\n'
    )
    kinds = ("entailment", "contradiction", "neutral")
    return [Example(prompt, (" Yes", " No", " Maybe"), kinds.index(row["label"]))]


def boolq(row: dict[str, Any]) -> list[Example]:
    """Questions about a passage."""
    question = row["question"].rstrip("?")
    return [_yes_no(f"{row['passage']} {question[:1].upper()}{question[1:]}?\n", row["label"])]


def wic(row: dict[str, Any]) -> list[Example]:
    """Whether a word means the same in two sentences."""
    prompt = (
        f'Does the word "{row["word"]}" have the same meaning in these two sentences? Yes, No?\n'
        f"{row['sentence1']}\n{row['sentence2']}\n"
    )
    return [_yes_no(prompt, row["label"])]


def wsc(row: dict[str, Any]) -> list[Example]:
    """To what a pronoun refers."""
    target = row["target"]
    prompt = (
        f'{row["text"]}\nIn the previous sentence, does the pronoun "{target["span2_text"]}" '
        f"refer to {target['span1_text']}? Yes or No?\n"
    )
    return [_yes_no(prompt, row["label"])]


def copa(row: dict[str, Any]) -> list[Example]:
    """Which of two is the cause, or the effect."""
    link = "so" if row["question"] == "effect" else "because"
    answers = (row["choice1"], row["choice2"])
    answers = tuple(f" {a[:1].lower()}{a[1:]}" for a in answers)
    return [Example(f"{row['premise'].rstrip('.')} {link}", answers, row["label"])]


def multirc(row: dict[str, Any]) -> list[Example]:
    """Whether answers to questions about a paragraph are right."""
    passage = row["passage"]
    return [
        _yes_no(
            f"{passage['text']}\nQuestion: {question['question']}\nI found this answer "
            f'"{answer["text"]}". Is that correct? Yes or No?\n',
            bool(answer["label"]),
        )
        for question in passage["questions"]
        for answer in question["answers"]
    ]


TASKS: dict[str, Callable[[dict[str, Any]], list[Example]]] = {
    "RTE": rte, "CB": cb, "BoolQ": boolq, "WiC": wic, "WSC": wsc, "COPA": copa, "MultiRC": multirc,
}  # fmt: skip


def read(path: Path, task: str, most: int, seed: int) -> list[Example]:
    """Return at most so many examples of a file with one JSON object a line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [e for line in lines if line.strip() for e in TASKS[task](json.loads(line))]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
    return [found[i] for i in order[:most].tolist()]


def encode(tokenizer: Any, prompt: str, answer: str, width: int) -> dict[str, list[int]]:
    """Return tokens, and labels for those of the answer; a long prompt loses its beginning."""
    start = tokenizer(prompt)["input_ids"]
    end = tokenizer(answer, add_special_tokens=False)["input_ids"]
    room = width - len(end)
    if len(start) > room:  # the first token marks the beginning of a text
        start = start[:1] + start[len(start) - room + 1 :]
    return {"input_ids": start + end, "labels": [-100] * len(start) + end}


class Collator:
    """Pads on the right."""

    def __init__(self, padding: int) -> None:
        self.padding = padding

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Return a batch."""
        width = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": self.padding, "labels": -100, "attention_mask": 0}
        rows = [row | {"attention_mask": [1] * len(row["input_ids"])} for row in rows]
        return {
            name: torch.tensor([r[name] + [value] * (width - len(r[name])) for r in rows])
            for name, value in fill.items()
        }


@torch.no_grad()
def likelihoods(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean log-likelihood of the tokens of each answer."""
    batch = {name: value.to(model.device) for name, value in batch.items()}
    labels = batch.pop("labels")[:, 1:]
    logits = model(**batch).logits[:, :-1].float().log_softmax(dim=-1)
    wanted = labels != -100
    chosen = logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return (chosen * wanted).sum(dim=1) / wanted.sum(dim=1)


def accuracy(model: Any, tokenizer: Any, examples: list[Example], collate: Collator, options: Any
             ) -> float:  # fmt: skip
    """Return the part of the examples whose right answer is the likeliest."""
    model.eval()
    pairs = [(i, answer) for i, e in enumerate(examples) for answer in e.answers]
    scores: list[list[float]] = [[] for _ in examples]
    for start in range(0, len(pairs), options.batch):
        part = pairs[start : start + options.batch]
        rows = [encode(tokenizer, examples[i].prompt, a, options.width) for i, a in part]
        for (i, _), value in zip(part, likelihoods(model, collate(rows)).tolist(), strict=True):
            scores[i].append(value)
    right = [s.index(max(s)) == e.label for s, e in zip(scores, examples, strict=True)]
    return sum(right) / len(right)


def number_or_auto(text: str) -> float | str:
    """Return a number, or "auto"."""
    return text if text == "auto" else float(text)


def count_or_auto(text: str) -> int | str:
    """Return an integer, or "auto"."""
    return text if text == "auto" else int(text)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description="Fine-tune on SuperGLUE by forward passes alone.")
    add = parser.add_argument
    add("--model", required=True, help="name or folder of a causal language model")
    add("--task", required=True, choices=sorted(TASKS))
    add("--data", required=True, type=Path, help="folder with train.jsonl and val.jsonl")
    add("--output", default="superglue-run", help="folder for checkpoints")
    add("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    add("--train-examples", type=int, default=1000)
    add("--eval-examples", type=int, default=1000)
    add("--width", type=int, default=512, help="most tokens of an example")
    add("--batch", type=int, default=16)
    add("--steps", type=int, default=2000)
    add("--save-steps", type=int, default=500)
    add("--resume", action="store_true", help="go on from the last checkpoint")
    add("--seed", type=int, default=0)
    add("--method", default="zo-mopi")
    add("--learning-rate", type=number_or_auto, default=1e-2, help="eta, or auto")
    add("--vector-learning-rate", type=number_or_auto, help="that of biases and norms, or auto")
    add("--schedule", default="constant", help="a learning-rate schedule of Transformers")
    add("--weight-decay", type=float, default=0.0, help="lambda")
    add("--rank", type=int, help="r")
    add("--spectral-rank", type=count_or_auto, help="k, or auto")
    add("--refresh-every", type=int, help="nu")
    add("--refresh", choices=["anchored", "haar"])
    add("--side", choices=["left", "right"])
    add("--smoothing", type=number_or_auto, help="mu, or auto")
    add("--probes", type=int, help="N")
    add("--momentum", type=float, help="beta")
    add("--difference", choices=["central", "forward", "leave-one-out"])
    add("--binding", default="auto", choices=["auto", "in_place", "overlay"])
    add("--sketch", choices=["activation"])
    add("--dropout", action="store_true", help="leave dropout on during a step")
    return parser.parse_args(arguments)


def optimizer_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the optimizer; those of the method that were given."""
    names = (
        "rank", "spectral_rank", "refresh_every", "refresh", "side", "smoothing", "probes",
        "momentum", "difference", "sketch",
    )  # fmt: skip
    found = {name: getattr(options, name) for name in names}
    found["vector_lr"] = options.vector_learning_rate
    found["weight_decay"] = options.weight_decay or None
    found = {name: value for name, value in found.items() if value is not None}
    return {
        "lr": options.learning_rate, "method": options.method, "binding": options.binding, **found
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> tuple[float, float]:
    """Run the experiment; return the accuracies before and after."""
    options = parse(arguments)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=options.dtype)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 1
    collate = Collator(padding)
    train, held_out = (
        read(options.data / f"{name}.jsonl", options.task, most, options.seed)
        for name, most in (("train", options.train_examples), ("val", options.eval_examples))
    )
    rows = [encode(tokenizer, e.prompt, e.answers[e.label], options.width) for e in train]
    settings = TrainingArguments(
        options.output, max_steps=options.steps, per_device_train_batch_size=options.batch,
        lr_scheduler_type=options.schedule,
        seed=options.seed, save_steps=options.save_steps, save_total_limit=1,
        logging_steps=min(50, options.steps), report_to=[],
        use_cpu=not torch.cuda.is_available(), dataloader_pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    trainer = ZeroOrderTrainer(
        model, settings, train_dataset=rows, data_collator=collate,
        zero_order=optimizer_options(options), dropout=options.dropout,
    )  # fmt: skip
    before = accuracy(model, tokenizer, held_out, collate, options)
    print(f"{options.task}: accuracy {before:.3f} before, {len(train)} examples to train on")
    trainer.train(resume_from_checkpoint=options.resume or None)
    print(trainer.zero_order_optimizer.describe())
    after = accuracy(model, tokenizer, held_out, collate, options)
    print(f"{options.task}: accuracy {after:.3f} after {options.steps} steps")
    trainer.save_model()
    return before, after


if __name__ == "__main__":
    main()
