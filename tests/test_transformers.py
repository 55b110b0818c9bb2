"""The Trainer with zeroth-order steps, and the examples, end to end on tiny models."""

import argparse
import functools
import importlib.util
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import zomopi_core as zo

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import safetensors.torch as safetensors  # noqa: E402

from zomopi_adapters.torch import ZOMOPI  # noqa: E402
from zomopi_adapters.transformers import ZeroOrderTrainer  # noqa: E402

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"

SIZES = {
    "vocab_size": 60, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32,
    "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2,
}  # fmt: skip


def tiny(dtype=torch.float32, dropout=0.0):
    torch.manual_seed(0)
    config = transformers.OPTConfig(**SIZES, dropout=dropout, attention_dropout=dropout)
    return transformers.OPTForCausalLM(config).to(dtype)


def rows(count=24, width=8):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 60, (count, width), generator=generator)
    return [{"input_ids": row, "labels": row} for row in ids]


def trainer(
    folder,
    model=None,
    data=None,
    zero_order=None,
    dropout=False,
    groups=None,
    held_out=None,
    **more,
):
    arguments = transformers.TrainingArguments(
        str(folder), use_cpu=True, report_to=[], dataloader_pin_memory=False,
        **{"disable_tqdm": True, "max_steps": 6, "learning_rate": 0.02, "save_strategy": "no",
           "per_device_train_batch_size": 4, **more},
    )  # fmt: skip
    return ZeroOrderTrainer(
        model or tiny(), arguments, train_dataset=data or rows(), eval_dataset=held_out,
        dropout=dropout, groups=groups,
        zero_order={"rank": 4, "probes": 2, **(zero_order or {})},
    )  # fmt: skip


class TestTrainer:
    def test_losses_that_fail_by_accident_are_computed_again(self, tmp_path):
        ends, calls = [], []
        for fails in (set(), {2, 5, 11}):
            made = trainer(tmp_path, max_steps=3, zero_order={"on_failure": "auto"})
            compute, count = made.compute_loss, []

            def flaky(model, inputs, compute=compute, count=count, fails=fails, **kwargs):
                count.append(1)
                loss = compute(model, inputs, **kwargs)
                return loss * torch.nan if len(count) in fails else loss

            made.compute_loss = flaky
            made.train()
            calls.append(len(count))
            ends.append([p.detach() for p in made.model.parameters()])
        assert calls == [12, 15]
        for x, y in zip(*ends, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)

    def test_is_the_optimizer_in_the_usual_loop(self, tmp_path):
        made = trainer(tmp_path, max_steps=3, lr_scheduler_type="constant")
        model = made.model
        batches = []
        compute = made.compute_loss

        def watched(model, inputs, **kwargs):
            batches.append(inputs)
            return compute(model, inputs, **kwargs)

        made.compute_loss = watched
        made.train()
        assert len(batches) == 3 * 4
        assert not any(p.grad is not None for p in model.parameters())
        other = tiny().eval()
        optimizer = ZOMOPI(other, lr=0.02, rank=4, probes=2, seed=42)
        for batch in batches[::4]:
            optimizer.step(lambda batch=batch: other(**batch).loss)
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)

    def test_logs_losses_and_rates(self, tmp_path):
        made = trainer(tmp_path, logging_steps=2, lr_scheduler_type="linear")
        made.train()
        logs = [entry for entry in made.state.log_history if "loss" in entry]
        assert [entry["step"] for entry in logs] == [2, 4, 6]
        assert all(3 < entry["loss"] < 6 for entry in logs)  # log 60 is 4.1
        rates = [entry["learning_rate"] for entry in logs]
        assert rates == sorted(rates, reverse=True)
        assert rates[0] > rates[-1]

    def test_shows_the_usual_progress_bar(self, tmp_path, capsys):
        trainer(tmp_path, max_steps=3, logging_steps=1, disable_tqdm=False).train()
        shown = capsys.readouterr()
        assert "0/3" in shown.err
        assert "3/3" in shown.err
        assert shown.out.count("'loss'") == 3

    def test_learns(self, tmp_path):
        data = rows(4)
        made = trainer(
            tmp_path, data=data, max_steps=200, learning_rate=0.1,
            zero_order={"probes": 4, "vector_lr": 0.02, "smoothing": 0.01},
        )  # fmt: skip
        first = made.evaluate(data)["eval_loss"]
        made.train()
        assert made.evaluate(data)["eval_loss"] < 0.9 * first

    def test_micro_batches(self, tmp_path):
        """Accumulated or not, the same rows give the same step."""
        ends = []
        for size, parts in ((8, 1), (2, 4)):
            made = trainer(
                tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=parts,
                max_steps=3, zero_order={"smoothing": 0.05},
            )  # fmt: skip
            start = made.model.model.decoder.layers[0].fc1.weight.detach().clone()
            result = made.train()
            ends.append(
                (made.model.model.decoder.layers[0].fc1.weight.detach(), result.training_loss)
            )
        torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-3, atol=1e-4)
        assert torch.max((ends[0][0] - start).abs()) > 3e-3
        assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-4)

    @pytest.mark.parametrize(
        ("binding", "dtype", "rate"),
        [
            ("in_place", torch.float32, {}), ("overlay", torch.bfloat16, {}),
            ("in_place", torch.float32, {"lr": "auto"}),
        ],
    )  # fmt: skip
    def test_resumes_to_the_bit(self, tmp_path, binding, dtype, rate):
        own = {"binding": binding, "refresh_every": 4, "smoothing": 0.05, **rate}
        options = {"save_strategy": "steps", "save_steps": 3, "zero_order": own}
        whole = trainer(tmp_path / "whole", tiny(dtype, 0.1), dropout=True, **options)
        whole.train()
        again = trainer(tmp_path / "whole", tiny(dtype, 0.1), dropout=True, **options)
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
        assert again.state.global_step == 6
        for made in (whole, again):
            made.zero_order_optimizer.merge()
        for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_what_is_saved_is_what_was_learned(self, tmp_path):
        made = trainer(tmp_path, zero_order={"binding": "overlay"})
        made.train()
        ids = torch.arange(3, 11)[None]
        made.model.eval()
        trained = made.model(ids).logits.detach()
        made.save_model()
        saved = transformers.OPTForCausalLM.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(saved(ids).logits.detach(), trained, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(saved(ids).logits, tiny().eval()(ids).logits, atol=1e-3)

    def test_the_best_model_is_loaded_at_the_end(self, tmp_path):
        made = trainer(
            tmp_path, held_out=rows(4), zero_order={"binding": "overlay"}, max_steps=4,
            save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2,
            load_best_model_at_end=True, learning_rate=3.0,
        )  # fmt: skip
        made.train()
        losses = [e["eval_loss"] for e in made.state.log_history if "eval_loss" in e]
        assert made.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)
        assert max(losses) > 1.01 * min(losses)

    def test_groups_and_dropout(self, tmp_path):
        modes = []

        def groups(model):
            model.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
            return [{"params": model.model.decoder.layers[0].named_parameters()}]

        made = trainer(tmp_path, groups=groups, dropout=True, max_steps=2)
        before = made.model.model.decoder.layers[1].fc1.weight.detach().clone()
        made.train()
        assert all(modes)
        assert torch.equal(made.model.model.decoder.layers[1].fc1.weight, before)
        assert all(not name.startswith("model") for name in made.zero_order_optimizer.bindings)

    def test_weight_decay_and_seed_are_passed_on(self, tmp_path):
        made = trainer(tmp_path, weight_decay=0.5, seed=7)
        optimizer = made.create_optimizer()
        assert optimizer._leaves[0].rule.update.weight_decay == 0.5
        assert optimizer._stepper.seed == 7

    def test_what_has_no_meaning_is_refused(self, tmp_path, monkeypatch):
        arguments = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
        arguments.fp16 = True
        with pytest.raises(ValueError, match="fp16=True scales gradients"):
            ZeroOrderTrainer(tiny(), arguments)
        arguments.fp16 = False
        monkeypatch.setattr(type(arguments), "world_size", 2)
        with pytest.raises(ValueError, match="runs in one process"):
            ZeroOrderTrainer(tiny(), arguments)


@functools.cache
def load(name, folder=EXAMPLES):
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def word_tokenizer(folder, texts):
    """A tokenizer of whole words, made on the spot."""
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = ["<unk>", "<pad>", "</s>"]
    train = tokenizers.trainers.WordLevelTrainer(special_tokens=special, vocab_size=400)
    model.train_from_iterator(texts, train)
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", 2)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="</s>", bos_token="</s>",
        unk_token="<unk>",
    )  # fmt: skip
    if folder is not None:
        fast.save_pretrained(folder)
    return fast


ROWS = {
    "RTE": {"premise": "A cat sat.", "hypothesis": "A cat sat.", "label": "entailment"},
    "CB": {"premise": "It rains.", "hypothesis": "It is dry.", "label": "contradiction"},
    "BoolQ": {"passage": "Ice is cold.", "question": "is ice cold", "label": True},
    "WiC": {"word": "bank", "sentence1": "A bank.", "sentence2": "A river bank.", "label": False},
    "WSC": {"text": "Ann saw Bo and she left.", "label": True,
            "target": {"span1_text": "Ann", "span2_text": "she"}},
    "COPA": {"premise": "It rained.", "question": "effect", "choice1": "Roads were wet.",
             "choice2": "The sun rose.", "label": 0},
    "MultiRC": {"passage": {"text": "Bo ate.", "questions": [
        {"question": "Who ate?", "answers": [{"text": "Bo", "label": 1},
                                             {"text": "Ann", "label": 0}]}]}},
}  # fmt: skip


def prepared(folder):
    """Write a model, and rows of a task in the format of the benchmark; return where they are."""
    model, data = folder / "model", folder / "RTE"
    data.mkdir()
    kinds = ("entailment", "not_entailment")
    rows = [
        {"premise": f"word{i % 7} here.", "hypothesis": f"word{i % 5} there.",
         "label": kinds[i % 2], "idx": i}
        for i in range(20)
    ]  # fmt: skip
    for name in ("train", "val"):
        (data / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    texts = [json.dumps(row) for row in rows]
    texts.append('Does this mean that is true? Yes or No? " .')
    words = len(word_tokenizer(model, texts))
    torch.manual_seed(0)
    config = transformers.OPTConfig(**SIZES | {"vocab_size": words})
    transformers.OPTForCausalLM(config).save_pretrained(model)
    return model, data


class TestSuperGlue:
    @pytest.mark.parametrize("task", sorted(ROWS))
    def test_prompts(self, task):
        examples = load("finetune_superglue").TASKS[task](ROWS[task])
        assert len(examples) == (2 if task == "MultiRC" else 1)
        for example in examples:
            assert 0 <= example.label < len(example.answers)
            assert "{" not in example.prompt
        expected = {"CB": " No", "WiC": " No", "COPA": " roads were wet."}.get(task, " Yes")
        assert examples[0].answers[examples[0].label] == expected

    def test_long_prompts_lose_their_beginning(self):
        module = load("finetune_superglue")
        tokenizer = word_tokenizer(None, ["one two three four Yes No"])
        row = module.encode(tokenizer, "one two three four", " Yes", 4)
        words = tokenizer.convert_ids_to_tokens(row["input_ids"])
        assert words == ["</s>", "three", "four", "Yes"]
        assert row["labels"][:3] == [-100] * 3

    def test_likelihoods_and_accuracy_of_a_known_model(self):
        """A model that gives each word the same probability wherever it stands."""
        module = load("finetune_superglue")
        tokenizer = word_tokenizer(None, ["one two three four"])
        words = tokenizer.convert_tokens_to_ids(["one", "two", "three", "four"])
        table = torch.full((len(tokenizer),), -30.0)
        table[words] = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()  # of which the sum is 1

        class Known:
            device = torch.device("cpu")

            def eval(self):
                return self

            def __call__(self, input_ids, attention_mask):
                assert input_ids.shape == attention_mask.shape
                return SimpleNamespace(logits=table.expand(*input_ids.shape, -1))

        collate = module.Collator(tokenizer.pad_token_id)
        answers = [" two", " one four one", " three"]
        rows = [module.encode(tokenizer, "four three", a, 32) for a in answers]
        found = module.likelihoods(Known(), collate(rows))
        log = math.log
        expected = [log(0.3), (log(0.5) + log(0.05) + log(0.5)) / 3, log(0.15)]
        assert found.tolist() == pytest.approx(expected, abs=1e-6)
        # the mean of the second is the second largest, its sum the least
        example = module.Example
        examples = [
            example("four three", (" two", " one four one"), 0),  # right
            example("one", (" three", " one four one"), 1),  # right
            example("two four", (" two", " three", " one"), 0),  # wrong: " one" is likelier
            example("two four one", (" four", " one"), 0),  # wrong
        ]
        for batch in (1, 3, 100):
            options = SimpleNamespace(batch=batch, width=32)
            assert module.accuracy(Known(), tokenizer, examples, collate, options) == 0.5
            first = module.accuracy(Known(), tokenizer, examples[:3], collate, options)
            assert first == pytest.approx(2 / 3)

    def test_all_hyperparameters_reach_the_optimizer(self):
        module = load("finetune_superglue")
        needed = ["--model", "m", "--task", "RTE", "--data", "d"]
        plain = module.optimizer_options(module.parse(needed))
        assert plain == {"lr": 1e-2, "method": "zo-mopi", "binding": "auto"}
        given = {
            "learning-rate": 0.03, "vector-learning-rate": 0.01, "weight-decay": 0.2, "rank": 4,
            "spectral-rank": 2, "refresh-every": 7, "refresh": "haar", "side": "right",
            "smoothing": 0.02, "probes": 3, "momentum": 0.8, "difference": "forward",
            "binding": "overlay",
        }  # fmt: skip
        line = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        optimizer = ZOMOPI(tiny(), **module.optimizer_options(module.parse([*needed, *line])))
        (group, *_) = optimizer.param_groups
        assert group["method"] == zo.zo_mopi(
            learning_rate=0.03, vector_learning_rate=0.01, weight_decay=0.2, rank=4,
            spectral_rank=2, refresh_every=7, refresh="haar", side="right", smoothing=0.02,
            probes=3, momentum=0.8, difference="forward",
        )  # fmt: skip
        line = ["--learning-rate", "auto", "--smoothing", "auto", "--spectral-rank", "auto"]
        auto = module.optimizer_options(module.parse([*needed, *line]))
        assert ZOMOPI(tiny(), **auto)._stepper.tuner.tuning.search.tuned

    def test_resumes_to_the_bit(self, tmp_path):
        model, data = prepared(tmp_path)
        module, ends = load("finetune_superglue"), []
        stages = {
            "whole": [["--steps", "4"]],
            "parts": [["--steps", "2"], ["--steps", "4", "--resume"]],
        }
        start = safetensors.load_file(model / "model.safetensors")
        for name, runs in stages.items():
            for run in runs:
                module.main([
                    "--model", str(model), "--task", "RTE", "--data", str(data), "--batch", "4",
                    "--output", str(tmp_path / name), "--save-steps", "2", "--width", "32",
                    "--rank", "4", "--probes", "2", "--eval-examples", "2", *run,
                ])  # fmt: skip
                if run[-1] == "2":  # what is resumed begins at the checkpoint, not at the model
                    other = transformers.OPTForCausalLM.from_pretrained(model)
                    torch.nn.init.ones_(other.model.decoder.layers[0].fc1.weight)
                    other.save_pretrained(model)
            ends.append(safetensors.load_file(tmp_path / name / "model.safetensors"))
        assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])
        assert any(not torch.equal(ends[0][k], start[k]) for k in start)

    @pytest.mark.parametrize(
        "extra",
        [
            [],
            ["--binding", "overlay", "--dtype", "bfloat16", "--learning-rate", "auto"],
            ["--sketch", "activation", "--difference", "forward", "--dropout"],
        ],
        ids=["plain", "overlay", "activation"],
    )
    def test_runs_end_to_end(self, tmp_path, extra, capsys):
        model, data = prepared(tmp_path)
        before, after = load("finetune_superglue").main([
            "--model", str(model), "--task", "RTE", "--data", str(data), "--steps", "3",
            "--output", str(tmp_path / "run"), "--batch", "4", "--width", "32", "--rank", "4",
            "--spectral-rank", "2", "--refresh-every", "2", "--smoothing", "1e-2",
            "--learning-rate", "1e-2", "--probes", "2", "--momentum", "0.5", *extra,
        ])  # fmt: skip
        assert 0 <= before <= 1
        assert 0 <= after <= 1
        assert "accuracy" in capsys.readouterr().out
        assert (tmp_path / "run" / "model.safetensors").exists()


def tiny_encoder():
    """Stand for the pretrained MiniLM."""
    _, pairs = load("finetune_minilm").docstrings("package", 3, 40)
    tokenizer = word_tokenizer(None, [text for text, _ in pairs])
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=64, max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.BertModel(config), tokenizer


class TestMiniLM:
    def test_kinds_are_told_by_the_syntax_tree(self):
        docstrings = load("finetune_minilm").docstrings
        names, pairs = docstrings("kind", 12, 10**6)
        assert names == ["class", "function", "module"]
        for thing, kind in (
            (argparse, "module"),
            (argparse.HelpFormatter, "class"),
            (json.dumps, "function"),
        ):
            assert (" ".join(thing.__doc__.split()), names.index(kind)) in pairs
        assert {i for _, i in docstrings("kind", 12, 7)[1]} == {0, 1, 2}
        assert len(docstrings("kind", 12, 7)[1]) == 21

    @pytest.mark.parametrize("task", ["package", "kind"])
    def test_runs_end_to_end(self, task, tmp_path, capsys):
        """The example with a tiny encoder in the place of the pretrained one."""
        pytest.importorskip("matplotlib")
        module = load("finetune_minilm")
        curves = module.main(
            ["--forwards", "24", "--classes", "3", "--batch", "8", "--task", task, "--methods",
             *module.METHODS, "--plot", str(tmp_path / "curve.png")],
            load=tiny_encoder,
        )  # fmt: skip
        assert set(curves) == set(module.METHODS)
        for curve in curves.values():
            assert curve[0].forwards == 0
            assert curve[-1].forwards >= 24
            assert curve[0] == next(iter(curves.values()))[0]
        assert (tmp_path / "curve.png").stat().st_size > 1000
        assert "held-out accuracy" in capsys.readouterr().out

    @pytest.mark.parametrize(("sketch", "scaling"), [("activation", "layer"), ("random", "joint")])
    def test_screening_with_exact_slopes(self, sketch, scaling, capsys):
        """With many probes and texts a step is nearly one along the gradient in the frame."""
        rate = {"joint": "2.0", "layer": "0.05"}[scaling]
        found = load("minilm_slopes", EXAMPLES.parents[1] / "tools").main(
            ["--scaling", scaling, "--sketch", sketch, "--classes", "3", "--batch", "64",
             "--rank", "8", "--directions", "4", "--probes", "512", "--forwards", "3072",
             "--lr", rate],
            load=tiny_encoder,
        )  # fmt: skip
        assert len(found) == 4
        assert found[-1][0] < found[0][0] - 0.01
        assert "loss / accuracy" in capsys.readouterr().out
