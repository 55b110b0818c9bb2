"""Subspaces from what layers are fed."""

import importlib.util
import io
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from zomopi_adapters.torch import ZOMOPI, per_probe, tiled  # noqa: E402


def low_rank_inputs(rows=40, width=24, rank=3):
    generator = torch.Generator().manual_seed(2)
    left = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    return left @ torch.randn(rank, width, generator=generator, dtype=torch.float64)


def spans(frame, x):
    """The part of the rows of x that a frame holds."""
    return float(torch.linalg.norm(x @ frame) ** 2 / torch.linalg.norm(x) ** 2)


class TestFrames:
    @pytest.mark.parametrize("binding", ["in_place", "overlay"])
    def test_hold_the_inputs(self, binding):
        model, x = nn.Linear(24, 10).double(), low_rank_inputs()
        optimizer = ZOMOPI(model, lr=0.1, rank=4, sketch="activation", binding=binding)
        optimizer.step(lambda: model(x).pow(2).mean())
        bias, weight = optimizer._leaves
        assert weight.state.frame.shape == (24, 4)
        assert spans(weight.state.frame, x) > 1 - 1e-12
        assert weight.rule.subspace.side == "right"
        torch.testing.assert_close(
            weight.state.frame.T @ weight.state.frame, torch.eye(4, dtype=torch.float64)
        )
        assert bias.state.frame is None
        control = ZOMOPI(model, lr=0.1, rank=4, side="right")
        assert spans(control._leaves[1].state.frame, x) < 0.6

    def test_lead_with_the_largest_directions(self):
        generator = torch.Generator().manual_seed(2)
        scales = 0.5 ** torch.arange(24, dtype=torch.float64)
        x = torch.randn(200, 24, generator=generator, dtype=torch.float64) * scales
        model = nn.Linear(24, 10).double()
        optimizer = ZOMOPI(model, lr=0.1, rank=2, sketch="activation")
        optimizer.step(lambda: model(x).pow(2).mean())
        # of 0.75 + 0.1875 that the two leading axes hold, but for sampling
        assert spans(optimizer._leaves[1].state.frame, x) > 0.9

    def test_are_refreshed_from_what_comes_then_and_momentum_is_carried_over(self):
        model = nn.Linear(24, 10, bias=False).double()
        optimizer = ZOMOPI(
            model, lr=0.1, rank=4, sketch="activation", refresh_every=2, refresh="haar"
        )
        (leaf,) = optimizer._leaves
        carried, refresh = [], leaf.refresh

        def watched(*arguments):
            before = leaf.state
            refresh(*arguments)
            carried.append((before, leaf.state))

        leaf.refresh = watched
        for scale in (1, 1, 2, 2):
            x = low_rank_inputs() ** scale
            optimizer.step(lambda x=x: model(x).pow(2).mean())
        ((old, new),) = carried
        x = low_rank_inputs() ** 2
        # the frame of the first inputs holds all of those, and less of their squares
        assert spans(old.frame, low_rank_inputs()) > 1 - 1e-12
        assert spans(new.frame, x) > spans(old.frame, x) + 0.05
        # on the right side the transposed momentum is that of a column sketch
        expected = (new.frame.T @ old.frame) @ old.momentum
        torch.testing.assert_close(new.momentum, expected, rtol=1e-12, atol=1e-15)
        assert torch.linalg.norm(expected - old.momentum) > 0.05 * torch.linalg.norm(old.momentum)

    def test_of_a_transposed_weight_are_on_the_left(self):
        transformers = pytest.importorskip("transformers")
        model, x = transformers.pytorch_utils.Conv1D(10, 24).double(), low_rank_inputs()
        optimizer = ZOMOPI(model, lr=0.1, rank=4, sketch="activation")
        optimizer.step(lambda: model(x).pow(2).mean())
        weight = optimizer._leaves[1]
        assert weight.rule.subspace.side == "left"
        assert spans(weight.state.frame, x) > 1 - 1e-12

    @pytest.mark.parametrize("product", [torch.mm, torch.matmul, torch.Tensor.mm])
    def test_of_a_plain_product_are_on_the_left(self, product):
        weight, x = nn.Parameter(torch.ones(24, 5, dtype=torch.float64)), low_rank_inputs()
        optimizer = ZOMOPI([weight], lr=0.1, rank=4, sketch="activation")
        optimizer.step(lambda: product(x, weight).pow(2).mean())
        assert spans(optimizer._leaves[0].state.frame, x) > 1 - 1e-12

    def test_other_layers_keep_their_subspaces(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.table, self.conv = nn.Embedding(9, 6), nn.Conv1d(6, 4, 2)

            def forward(self, ids):
                return self.conv(self.table(ids).mT)

        model = Model().double()
        optimizer = ZOMOPI(model, lr=0.1, rank=2, sketch="activation")
        frames = [leaf.state.frame for leaf in optimizer._leaves]
        optimizer.step(lambda: model(torch.arange(8).view(2, 4)).pow(2).mean())
        assert all(
            leaf.state.frame is frame or torch.equal(leaf.state.frame, frame)
            for leaf, frame in zip(optimizer._leaves, frames, strict=True)
            if frame is not None
        )

    @pytest.mark.parametrize("batched", [False, True])
    def test_statistics_and_generators_are_those_of_one_pass(self, batched):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(24, 10), nn.Dropout(0.5))
        x = low_rank_inputs().float()
        optimizer = ZOMOPI(
            model, lr=0.1, sketch="activation", rank=2, binding="overlay", batched=batched
        )
        torch.manual_seed(3)
        model(x)
        expected = torch.rand(())
        torch.manual_seed(3)
        optimizer.step(lambda: per_probe(model(tiled(x)).pow(2).mean(dim=1)))
        assert torch.equal(torch.rand(()), expected)


class TestRuns:
    def run(self, steps=40, **options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(24, 16, bias=False), nn.Tanh(), nn.Linear(16, 2)).double()
        x = low_rank_inputs()
        y = (x[:, 0] > 0).long()
        options = {"lr": 0.05, "vector_lr": 0.01, "rank": 3, "refresh_every": 10, **options}
        optimizer = ZOMOPI(model, sketch="activation", **options)

        def closure():
            return per_probe(F.cross_entropy(model(tiled(x)), tiled(y), reduction="none"))

        losses = [float(optimizer.step(closure)) for _ in range(steps)]
        return model, optimizer, closure, losses[-1] if losses else None

    def test_bindings_agree(self):
        ends = [
            self.run(binding=binding, batched=batched)[3]
            for binding, batched in (("in_place", False), ("overlay", False), ("overlay", True))
        ]
        assert ends[1] == pytest.approx(ends[0], rel=1e-9)
        assert ends[2] == pytest.approx(ends[0], rel=1e-9)

    def test_learns_more_than_a_random_frame(self):
        """The same queries, rank and rates; only the first layer's inputs have low rank."""
        *_, ours = self.run()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(24, 16, bias=False), nn.Tanh(), nn.Linear(16, 2)).double()
        x = low_rank_inputs()
        y = (x[:, 0] > 0).long()
        optimizer = ZOMOPI(model, lr=0.05, vector_lr=0.01, rank=3, refresh_every=10, side="right")
        for _ in range(40):
            random = float(optimizer.step(lambda: F.cross_entropy(model(x), y)))
        assert ours < 0.8 * random

    def test_resumes_to_the_bit(self):
        model, optimizer, closure, _ = self.run(13)
        file = io.BytesIO()
        torch.save([model.state_dict(), optimizer.state_dict()], file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        other, resumed, again, _ = self.run(0)
        other.load_state_dict(saved[0])
        resumed.load_state_dict(saved[1])
        for _ in range(12):
            optimizer.step(closure)
            resumed.step(again)
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_a_state_without_it_is_refused(self):
        model, optimizer, *_ = self.run(1)
        plain = ZOMOPI(model, lr=0.05, vector_lr=0.01, rank=3, refresh_every=10)
        with pytest.raises(ValueError, match="saved with sketch='activation'"):
            plain.load_state_dict(optimizer.state_dict())


def test_settings_are_compared_on_digits(capsys):
    """The tool behind the figures: what it tells falls, and is that of the best rate."""
    pytest.importorskip("sklearn", reason="the extra cli is not installed")
    path = Path(__file__).parents[1] / "tools" / "adapt_digits.py"
    spec = importlib.util.spec_from_file_location("adapt_digits", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    found = tool.main(
        ["--settings", "zo-sgd, activation", "--tasks", "rotated", "--pretraining", "80",
         "--forwards", "120", "--rates", "4e-3", "1e-9"]
    )  # fmt: skip
    told = capsys.readouterr().out
    before = float(told.split("before: ")[1].split()[0])
    assert found["zo-sgd, activation"][0][0] < before - 0.1
    assert f"{before:.3f} at 1e-09" in told
