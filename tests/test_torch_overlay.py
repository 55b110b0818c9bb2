"""The overlay: equal to in place on every layer, weights untouched, quantised layers, batches."""

import copy
import dataclasses
import inspect
import io
import itertools
import shutil
import warnings

import pytest

import zomopi_core as zo

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from test_torch import (  # noqa: E402
    CLOSE,
    ZEROTH,
    assert_same,
    core_path,
    data,
    network,
    objective,
    options,
)
from zomopi_adapters._torch_overlay import Overlaid  # noqa: E402
from zomopi_adapters.torch import ZOMOPI, per_probe, tiled  # noqa: E402


class Positions(nn.Module):
    """Tokens and positions, a tied head: how language models use their embeddings."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(11, 6), nn.Embedding(5, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        places = torch.arange(ids.shape[1]).expand(ids.shape)
        return self.head(torch.tanh(self.tokens(ids) + self.positions(places)))


class RootMeanSquare(nn.Module):
    """A norm as language models write it."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Product(nn.Module):
    """A weight that meets its inputs by ``@``, and one that is used in another way."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.randn(6, 5) / 3)
        self.b = nn.Parameter(torch.randn(5, 4) / 3)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * torch.einsum("bi,ij->bj", x @ self.a, self.b)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        x = x[:, None, :] * torch.ones(3, 1, dtype=x.dtype)
        return self.inner(x, x, x)[0]


class Encoder(nn.Module):
    """A layer of a transformer, for which Torch has a fast path in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.inner = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.inner(x[:, None, :] * torch.ones(3, 1, dtype=x.dtype))


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.inner = kind(3, 4, batch_first=True, **options)

    def forward(self, x):
        return self.inner(x.view(-1, 2, 3))[0]


class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Bilinear(6, 6, 3)

    def forward(self, x):
        return self.inner(x, torch.tanh(x))


def conv1d():
    transformers = pytest.importorskip("transformers")
    return transformers.pytorch_utils.Conv1D(5, 6)


def images(layers):
    return nn.Sequential(nn.Unflatten(1, (6, 1, 1)), nn.Upsample((5, 5)), *layers)


LAYERS = {
    "linear": lambda: nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3, bias=False)),
    "norms": lambda: nn.Sequential(
        nn.Linear(6, 8), nn.LayerNorm(8), nn.GroupNorm(2, 8), RootMeanSquare(8), nn.Linear(8, 3)
    ),
    "batch norm, eval": lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)).eval(),
    "conv2d": lambda: images(
        [nn.Conv2d(6, 4, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(4, 3, (1, 2), bias=False)]
    ),
    "grouped conv2d": lambda: images(
        [nn.Conv2d(6, 4, 3, groups=2, dilation=2, padding="same", padding_mode="reflect")]
    ),
    "depthwise conv2d": lambda: images([nn.Conv2d(6, 12, 3, groups=6)]),
    "conv1d": lambda: nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3)),
    "conv3d": lambda: nn.Sequential(nn.Unflatten(1, (1, 1, 2, 3)), nn.Conv3d(1, 4, (1, 2, 2))),
    "transposed conv": lambda: nn.Sequential(nn.Unflatten(1, (1, 6)), nn.ConvTranspose1d(1, 4, 3)),
    "Conv1D": conv1d,
    "embeddings": Positions,
    "products": Product,
    "attention": Attention,
    "transformer": Encoder,
    "transformer, eval": lambda: Encoder().eval(),
    "lstm": lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True),
    "gru": lambda: Recurrent(nn.GRU),
    "bilinear": Pairs,
    "bags": lambda: nn.EmbeddingBag(11, 6),
}
# of which no part can go through the model for all probes at once
ONE_BY_ONE = {
    "transposed conv", "products", "attention", "transformer", "transformer, eval", "lstm", "gru",
    "bilinear", "bags",
}  # fmt: skip
TOKENS = {"embeddings", "bags"}


def made(name):
    torch.manual_seed(0)
    model = LAYERS[name]().double()
    x = torch.arange(60).reshape(12, 5) % 11 if name in TOKENS else data()[0][:12]
    return model, x


def rows_loss(model, x):
    """A loss with a part for each row."""
    return per_probe(torch.cos(model(tiled(x))).flatten(1).pow(2).mean(dim=1))


def run(name, steps=7, **extra):
    model, x = made(name)
    optimizer = ZOMOPI(model, lr=0.03, vector_lr=0.02, rank=3, probes=2, refresh_every=3, **extra)
    losses = [float(optimizer.step(lambda: rows_loss(model, x))) for _ in range(steps)]
    evaluated = model(x).detach()
    optimizer.detach()
    return model, losses, evaluated, optimizer


class TestEqualsInPlace:
    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("name", LAYERS)
    def test_on_every_layer(self, name, side):
        model, losses, evaluated, _ = run(name, binding="in_place", side=side)
        other, again, outside, _ = run(name, binding="overlay", side=side)
        assert_same(other, dict(model.named_parameters()))
        assert again == pytest.approx(losses, rel=1e-10)
        # the model is the trained one outside of steps, too, before it is merged
        torch.testing.assert_close(outside, evaluated, **CLOSE)

    @pytest.mark.parametrize("name", LAYERS)
    @pytest.mark.parametrize("extra", [{"weight_decay": 0.3}, {"difference": "forward"}], ids=str)
    def test_with_other_options(self, name, extra):
        model, losses, *_ = run(name, binding="in_place", **extra)
        other, again, *_ = run(name, binding="overlay", **extra)
        assert_same(other, dict(model.named_parameters()))
        assert again == pytest.approx(losses, rel=1e-10)

    @pytest.mark.parametrize("chunk", [None, 1, 3])
    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("name", sorted(set(LAYERS) - ONE_BY_ONE))
    def test_all_probes_at_once(self, name, side, chunk):
        model, losses, *_ = run(name, binding="in_place", side=side)
        other, again, _, optimizer = run(
            name, binding="overlay", batched=True, side=side, chunk=chunk
        )
        assert optimizer.batched
        assert_same(other, dict(model.named_parameters()))
        assert again == pytest.approx(losses, rel=1e-10)

    @pytest.mark.parametrize("name", sorted(set(LAYERS) - ONE_BY_ONE))
    def test_all_probes_at_once_with_other_options(self, name):
        extra = {"weight_decay": 0.3, "difference": "forward"}
        model, losses, *_ = run(name, binding="in_place", **extra)
        other, again, *_ = run(name, binding="overlay", batched=True, **extra)
        assert_same(other, dict(model.named_parameters()))
        assert again == pytest.approx(losses, rel=1e-10)

    @pytest.mark.parametrize("name", sorted(ONE_BY_ONE))
    def test_what_cannot_be_batched_runs_one_by_one(self, name):
        model, losses, *_ = run(name, binding="in_place")
        with pytest.warns(UserWarning, match="the probes run one by one from now on") as record:
            other, again, _, optimizer = run(name, binding="overlay", batched=True)
        assert [one.filename for one in record] == [__file__]  # where `step` is called
        assert not optimizer.batched
        assert_same(other, dict(model.named_parameters()))
        assert again == pytest.approx(losses, rel=1e-10)

    @pytest.mark.parametrize("name", ZEROTH)
    @pytest.mark.parametrize("batched", [False, True])
    def test_every_method_follows_the_core(self, name, batched):
        model = network()
        expected = core_path(model, getattr(zo, name)(learning_rate=0.02, **options(name)), 9)
        optimizer = ZOMOPI(model, 0.02, method=name, binding="overlay", **options(name))
        full = {n for n, b in optimizer.bindings.items() if b == "in_place"}
        matrices = {"0.weight", "3.weight"}
        assert full == (matrices if name.startswith(("mezo", "hizoo")) else set())
        if batched and full:
            with pytest.raises(ValueError, match=r"batched=True needs .* in place are 0.weight"):
                ZOMOPI(model, 0.02, method=name, binding="overlay", batched=True)
            return
        optimizer.batched = batched
        x, y = data()
        for _ in range(9):
            optimizer.step(
                lambda: per_probe(F.cross_entropy(model(tiled(x)), tiled(y), reduction="none"))
            )
        optimizer.merge()
        assert_same(model, expected)


class TestNoOverlay:
    """Weights that a function uses for which no overlay is known."""

    def make(self, dtype=torch.float64, **extra):
        torch.manual_seed(0)
        model = Product().to(dtype)
        options = {"lr": 0.03, "vector_lr": 0.02, "rank": 3, "smoothing": 0.02, **extra}
        return model, ZOMOPI(model, refresh_every=4, binding="overlay", **options)

    @staticmethod
    def closure(model, dtype=torch.float64):
        x = data()[0][:12].to(dtype)
        return lambda: torch.cos(model(x).double()).square().mean()

    def test_are_moved_in_place_and_named(self, caplog):
        caplog.set_level("INFO", logger="zomopi")
        model, optimizer = self.make()
        assert set(optimizer.bindings.values()) == {"overlay"}
        for _ in range(3):
            optimizer.step(self.closure(model))
            assert optimizer.bindings == {"a": "overlay", "b": "in_place", "scale": "overlay"}
        assert caplog.text.count("b is used in a way that has no overlay") == 1
        assert "from now on: in_place" in caplog.text

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_are_made_for_no_call_from_then_on(self, dtype, monkeypatch):
        made = []
        materialised = Overlaid.materialised
        monkeypatch.setattr(
            Overlaid, "materialised", lambda leaf: made.append(leaf.name) or materialised(leaf)
        )
        model, optimizer = self.make(dtype)
        optimizer.step(self.closure(model, dtype))
        assert "b" in made
        made.clear()
        optimizer.step(self.closure(model, dtype))
        assert "b" not in made

    def test_16_bits_keep_their_coordinates(self):
        """Nothing is rounded away when the way to evaluate changes."""
        model, optimizer = self.make(torch.bfloat16, lr=1e-4)
        start = model.b.data.clone()
        optimizer.step(self.closure(model, torch.bfloat16))
        leaf = optimizer._leaves[1]
        assert optimizer.bindings["b"] == "in_place, reference on cpu"
        assert torch.equal(leaf.reference, start)
        assert float(leaf.total.abs().max()) > 1e-6
        optimizer.step(self.closure(model, torch.bfloat16))
        left, right = leaf.product(leaf.total)
        expected = (start.float() + left @ right).bfloat16()
        assert torch.equal(model.b.data, expected)

    @pytest.mark.parametrize("order", ["model first", "optimizer first"])
    @pytest.mark.parametrize("lr", [0.03, "auto"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_run_resumes_to_the_bit(self, dtype, lr, order):
        model, optimizer = self.make(dtype, lr=lr)
        for _ in range(6):
            optimizer.step(self.closure(model, dtype))
        file = io.BytesIO()
        torch.save([model.state_dict(), optimizer.state_dict()], file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        other, resumed = self.make(dtype, lr=lr)
        with torch.no_grad():
            other.b.add_(0.5)  # not where the run began
        pairs = [(other, saved[0]), (resumed, saved[1])]
        for owner, state in pairs if order == "model first" else reversed(pairs):
            owner.load_state_dict(state)
        for m, o in ((model, optimizer), (other, resumed)):
            for _ in range(7):
                o.step(self.closure(m, dtype))
            o.merge()
        assert resumed.bindings == optimizer.bindings
        assert all(map(torch.equal, model.parameters(), other.parameters()))

    @pytest.mark.filterwarnings("ignore:the probes run one by one")
    @pytest.mark.parametrize("batched", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_journal_leads_to_the_same_bits(self, dtype, batched, tmp_path):
        path, x = tmp_path / "run.zomopi", data()[0].to(dtype)
        model, optimizer = self.make(dtype, batched=batched, journal=path)
        for _ in range(6):
            optimizer.step(lambda: rows_loss(model, x).double())
        optimizer.close()
        other, resumed = self.make(dtype, batched=batched)
        resumed.resume(path)
        assert all(map(torch.equal, model.parameters(), other.parameters()))
        assert not resumed.batched
        for m, o in ((model, optimizer), (other, resumed)):
            for _ in range(3):
                o.step(lambda m=m: rows_loss(m, x).double())
            o.merge()
        assert resumed.bindings == optimizer.bindings
        assert all(map(torch.equal, model.parameters(), other.parameters()))

    def test_a_state_with_steps_beside_a_weight_needs_them_there(self):
        model, optimizer = self.make()
        optimizer.step(self.closure(model))
        torch.manual_seed(0)
        other = ZOMOPI(
            Product().double(), lr=0.03, vector_lr=0.02, rank=3, smoothing=0.02, refresh_every=4
        )
        with pytest.raises(ValueError, match="a has steps beside the weight there"):
            other.load_state_dict(optimizer.state_dict())


class TestWeights:
    def test_are_not_touched_between_refreshes(self):
        model = network(torch.bfloat16)
        start = {k: v.detach().clone() for k, v in model.named_parameters()}
        # other tensors of the same memory: the parameters themselves act as if they were moved
        memory = {k: v.data for k, v in model.named_parameters()}
        optimizer = ZOMOPI(model, lr=0.05, smoothing=0.02, binding="overlay", refresh_every=5)
        seen = []

        def closure():
            seen.extend(torch.equal(v, start[k]) for k, v in memory.items())
            seen_by_a_layer = F.linear(torch.eye(6, dtype=torch.bfloat16), model[0].weight)
            assert not torch.equal(seen_by_a_layer.T, start["0.weight"])
            return objective(model, torch.bfloat16)()

        for _ in range(5):
            optimizer.step(closure)
        with pytest.raises(RuntimeError, match="stop"):
            optimizer.step(lambda: (_ for _ in ()).throw(RuntimeError("stop")))
        assert all(seen)
        # the step that failed was the first after a refresh, which merged
        assert not torch.equal(model[0].weight, start["0.weight"])

    def test_small_steps_of_16_bit_weights_add_up(self):
        linear = nn.Linear(16, 16, bias=False).to(torch.bfloat16)
        start = linear.weight.detach().double()
        optimizer = ZOMOPI(
            linear, lr=1e-4, rank=16, probes=16, spectral_rank=1, momentum=0.99,
            smoothing=0.02, binding="overlay", refresh_every=50,
        )  # fmt: skip
        x = torch.eye(16, dtype=torch.bfloat16)
        for _ in range(200):
            optimizer.step(lambda: linear(x).double().sum())
        optimizer.merge()
        moved = float(torch.sum(linear.weight.detach().double() - start) / 16)
        # 200 steps of norm 1e-4, nearly all of it against the slope; a unit in the last place of
        # these weights is a hundred steps of an entry; measured -0.0154
        assert -1.01 * 0.02 < moved < -0.7 * 0.02

    def test_the_adapter_is_what_was_learned(self):
        model = network()
        optimizer = ZOMOPI(model, lr=0.1, rank=2, binding="overlay")
        before = {k: v.detach().clone() for k, v in model.named_parameters()}
        for _ in range(3):
            optimizer.step(objective(model))
        adapter = optimizer.adapter()
        optimizer.merge()
        assert optimizer.adapter() == {}
        for name, value in model.named_parameters():
            part = adapter[name]
            update = part["left"] @ part["right"] if "left" in part else part["update"]
            torch.testing.assert_close(value.detach(), before[name] + update)
        assert adapter["0.weight"]["left"].shape == (8, 2)

    def test_copies_of_the_model_are_plain(self):
        model = network()
        optimizer = ZOMOPI(model, lr=0.5, binding="overlay")
        optimizer.step(objective(model))
        x, before = data()[0], network()(data()[0])
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
            torch.testing.assert_close(other(x), before)  # what was learned is not merged yet
            with torch.no_grad():
                other[0].weight.zero_()
            assert not torch.equal(other(x), before)
        assert not torch.allclose(model(x), before, atol=1e-3)
        optimizer.merge()
        torch.testing.assert_close(copy.deepcopy(model)(x), model(x))
        assert list(inspect.signature(model.forward).parameters) == ["input"]

    def test_weights_that_are_loaded_take_the_place_of_what_was_learned(self):
        """Going back to the best weights, as early stopping does."""
        model = network()
        optimizer = ZOMOPI(model, lr=0.5, binding="overlay")
        optimizer.step(objective(model))
        optimizer.merge()
        x, best = data()[0], copy.deepcopy(model.state_dict())
        with torch.no_grad():
            expected = model(x)
            optimizer.step(objective(model))
            assert not torch.allclose(model(x), expected, atol=1e-3)
            copy.deepcopy(model).load_state_dict(best)  # of a copy
            assert not torch.allclose(model(x), expected, atol=1e-3)
            model.load_state_dict(best)
            assert torch.equal(model(x), expected)
        optimizer.step(objective(model))
        optimizer.detach()
        assert not model._load_state_dict_post_hooks

    def test_another_optimizer_of_the_same_model(self):
        """Made anew, as in a notebook: both act in the model until they are merged."""
        model = network()
        x, outputs = data()[0], []
        first = ZOMOPI(model, lr=0.5, binding="overlay", seed=1)
        first.step(objective(model))
        second = ZOMOPI(model, lr=0.5, binding="overlay", seed=2)
        with torch.no_grad():
            for optimizer in (None, second, second):
                if optimizer is not None:
                    optimizer.step(objective(model))
                outputs.append(model(x))
            for one, other in itertools.pairwise(outputs):
                assert not torch.allclose(one, other, atol=1e-3)
            second.detach()
            torch.testing.assert_close(model(x), outputs[-1])
            first.detach()
            torch.testing.assert_close(model(x), outputs[-1])
        assert "forward" not in model.__dict__

    def test_detached_models_are_plain_again(self):
        model = network()
        optimizer = ZOMOPI(model, lr=0.1, binding="overlay")
        assert "forward" in model.__dict__
        optimizer.step(objective(model))
        optimizer.detach()
        assert "forward" not in model.__dict__

    @pytest.mark.parametrize("order", ["model first", "optimizer first"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_run_resumes_to_the_bit(self, dtype, order):
        def make():
            model = network(dtype)
            options = {"rank": 2, "refresh_every": 4, "smoothing": 0.02}
            return model, ZOMOPI(model, 0.05, binding="overlay", **options)

        model, optimizer = make()
        for _ in range(6):
            optimizer.step(objective(model, dtype))
        file = io.BytesIO()
        torch.save([model.state_dict(), optimizer.state_dict()], file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        other, resumed = make()
        pairs = [(other, saved[0]), (resumed, saved[1])]
        for owner, state in pairs if order == "model first" else reversed(pairs):
            owner.load_state_dict(state)
        for m, o in ((model, optimizer), (other, resumed)):
            for _ in range(7):
                o.step(objective(m, dtype))
            o.merge()
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)


def loss_of(model, dtype=torch.float64):
    with torch.no_grad():
        return float(objective(model, dtype)())


class Int8Linear(nn.Module):
    """Weights in 8 bits with a scale for each row, as int8 weight-only layers have them."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


class Scaled8Bits(torch.Tensor):
    """A tensor of integers and scales that calls itself a float, as those of torchao do.

    Like them it has `linear` and next to nothing else.
    """

    @staticmethod
    def __new__(cls, integers, scale):
        return torch.Tensor._make_wrapper_subclass(cls, integers.shape, dtype=scale.dtype)

    def __init__(self, integers, scale):
        self.integers, self.scale = integers, scale

    @classmethod
    def of(cls, x):
        scale = x.detach().abs().amax(dim=1, keepdim=True) / 127
        return cls((x.detach() / scale).round().to(torch.int8), scale)

    def __tensor_flatten__(self):
        return ["integers", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, inner, context, size, stride):
        return cls(inner["integers"], inner["scale"])

    def value(self):
        return self.integers.to(self.scale.dtype) * self.scale

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            x, weight, *bias = args
            return F.linear(x, weight.value(), *bias)
        return super().__torch_function__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in {torch.ops.aten.detach.default, torch.ops.aten.clone.default}:
            return cls(args[0].integers.clone(), args[0].scale.clone())
        raise NotImplementedError(func)


class TestWrapperSubclasses:
    """Quantised weights that are tensor subclasses with the dtype of what they stand for."""

    def make(self, trainable):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        for i in (0, 2):
            weight = Scaled8Bits.of(model[i].weight)
            model[i].weight = nn.Parameter(weight, requires_grad=trainable)
        return model

    @pytest.mark.parametrize("binding", ["auto", "overlay"])
    @pytest.mark.parametrize("trainable", [False, True])
    def test_are_trained_beside(self, trainable, binding):
        model = self.make(trainable)
        before = model[0].weight.integers.clone()
        optimizer = ZOMOPI(model, lr=0.1, vector_lr=0.01, rank=3, binding=binding)
        assert optimizer.bindings["0.weight"] == optimizer.bindings["2.weight"] == "overlay"
        losses = [float(optimizer.step(objective(model))) for _ in range(8)]
        assert torch.equal(model[0].weight.integers, before)
        plain = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        start = self.make(False)
        for i in (0, 2):
            plain[i].weight.data = start[i].weight.value()
            plain[i].bias.data = start[i].bias.data
        optimizer = ZOMOPI(plain, lr=0.1, vector_lr=0.01, rank=3, binding="overlay")
        expected = [float(optimizer.step(objective(plain))) for _ in range(8)]
        assert losses == pytest.approx(expected, rel=1e-9)

    def test_two_of_one_shape_are_two(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)).double()
        for layer in model:
            layer.weight = nn.Parameter(Scaled8Bits.of(layer.weight), requires_grad=False)
        assert {"0.weight", "1.weight"} < set(ZOMOPI(model, lr=0.1).bindings)

    def test_their_parameters_alone_are_refused(self):
        message = r"0\.weight is a Scaled8Bits, which .* pass the model"
        with pytest.raises(TypeError, match=message):
            ZOMOPI(self.make(True).named_parameters(), lr=0.1)


class TestQuantised:
    def make(self, dtype=torch.float64):
        torch.manual_seed(0)
        first, second = (Int8Linear(nn.Linear(6, 8)), Int8Linear(nn.Linear(8, 3)))
        return nn.Sequential(first, nn.Tanh(), second).to(dtype)

    def test_learns_beside_a_weight_that_stays(self):
        model = self.make()
        before = [m.weight.clone() for m in model if hasattr(m, "weight")]
        optimizer = ZOMOPI(model, lr=0.1, vector_lr=0.02, rank=4, refresh_every=10)
        assert optimizer.bindings["0.weight"] == "overlay"
        assert optimizer.bindings["0.bias"] == "in_place"
        first = loss_of(model)
        for _ in range(80):
            optimizer.step(objective(model))
        assert loss_of(model) < 0.75 * first
        after = [m.weight for m in model if hasattr(m, "weight")]
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))

    def test_the_update_has_the_rank_of_the_frame_and_can_be_merged_elsewhere(self):
        model = self.make()
        optimizer = ZOMOPI(model, lr=0.1, rank=4, refresh_every=5, binding="overlay")
        for _ in range(23):
            optimizer.step(objective(model))
        optimizer.merge()  # of the biases; a weight of 8 bits cannot take it up
        adapter = optimizer.adapter()
        assert set(adapter) == {"0.weight", "2.weight"}
        plain = network()
        for i, j in ((0, 0), (2, 3)):
            part = adapter[f"{i}.weight"]
            assert part["left"].shape[1] <= 4
            base = model[i].weight.double() * model[i].scale
            plain[j].weight.data = base + part["left"] @ part["right"]
            plain[j].bias.data = model[i].bias.data
        plain[1] = nn.Identity()
        x = data()[0]
        torch.testing.assert_close(plain(x), model(x), **CLOSE)

    @pytest.mark.parametrize("batched", [False, True])
    def test_equals_a_weight_in_full_precision(self, batched):
        """Refreshes aside, which a weight of 8 bits does not have."""
        model = self.make()
        plain = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        for i in (0, 2):
            plain[i].weight.data = model[i].weight.double() * model[i].scale
            plain[i].bias.data = model[i].bias.data.clone()
        x, y = data()
        losses = []
        for m in (model, plain):
            optimizer = ZOMOPI(m, lr=0.1, vector_lr=0.01, rank=3, binding="overlay",
                               batched=batched)  # fmt: skip
            losses.append([
                float(optimizer.step(lambda m=m: per_probe(
                    F.cross_entropy(m(tiled(x)), tiled(y), reduction="none")
                )))
                for _ in range(8)
            ])  # fmt: skip
        # default rates of vectors aside, which are given; matrices have lr
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)

    @pytest.mark.parametrize("batched", [False, True])
    def test_copies_have_what_was_merged(self, batched):
        """As copies of other layers: plain before a merge, the trained model after it."""
        model, x = self.make(), data()[0]
        with torch.no_grad():
            plain = model(x)
        optimizer = ZOMOPI(model, lr=0.5, rank=4, binding="overlay", batched=batched)
        optimizer.step(lambda: rows_loss(model, x))

        def copies():
            file = io.BytesIO()
            torch.save(model, file)
            file.seek(0)
            return copy.deepcopy(model), torch.load(file, weights_only=False)

        with torch.no_grad():
            for other in copies():
                torch.testing.assert_close(other(x), plain)
            optimizer.merge()
            trained, merged = model(x), copies()
            assert not torch.allclose(trained, plain, atol=1e-3)
            optimizer.step(lambda: rows_loss(model, x))
            assert not torch.allclose(model(x), trained, atol=1e-3)
            for other in (*merged, *copies(), copy.deepcopy(merged[0])):
                torch.testing.assert_close(other(x), trained)
                torch.testing.assert_close(other.float()(x.float()), trained.float())
            optimizer.detach()
            for other in copies():
                torch.testing.assert_close(other(x), model(x))

    def test_a_layer_called_with_keywords(self):
        class Keywords(nn.Module):
            def __init__(self, layer):
                super().__init__()
                self.layer = layer

            def forward(self, x):
                return self.layer(x=x)

        model, x = self.make()[0], data()[0]
        losses = []
        for m in (model, Keywords(self.make()[0])):
            optimizer = ZOMOPI(m, lr=0.1, rank=4, binding="overlay")
            losses.append([float(optimizer.step(lambda m=m: rows_loss(m, x))) for _ in range(3)])
        assert losses[0] == losses[1]

    def test_methods_in_the_full_space_are_refused(self):
        with pytest.raises(ValueError, match=r"0.weight is quantised, and the steps of mezo"):
            ZOMOPI(self.make(), lr=1e-3, method="mezo")

    def test_dynamic_quantisation_of_torch(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of its move to another package
            model = torch.ao.quantization.quantize_dynamic(
                nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), dtype=torch.qint8
            )
        optimizer = ZOMOPI(model, lr=0.1, rank=4)
        assert optimizer.bindings == {"0.weight": "overlay", "2.weight": "overlay"}
        first = loss_of(model, torch.float32)
        for _ in range(80):
            optimizer.step(objective(model, torch.float32))
        assert loss_of(model, torch.float32) < 0.8 * first

    def test_resumes(self):
        def make():
            model = self.make()
            return model, ZOMOPI(model, lr=0.1, rank=4, refresh_every=3, binding="overlay")

        (model, optimizer), (other, resumed) = make(), make()
        for _ in range(5):
            optimizer.step(objective(model))
        other.load_state_dict(model.state_dict())
        resumed.load_state_dict(optimizer.state_dict())
        x, copies = data()[0], [copy.deepcopy(m) for m in (model, other)]
        assert torch.equal(copies[0](x), copies[1](x))  # as of the refresh before
        assert not torch.allclose(copies[0](x), self.make()(x), atol=1e-3)
        for m, o in ((model, optimizer), (other, resumed)):
            for _ in range(5):
                o.step(objective(m))
        assert torch.equal(model(x), other(x))


class TestLora:
    # of peft, which asks transformers for a name that it no longer uses
    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
    def test_adapters_of_peft(self):
        peft = pytest.importorskip("peft")
        transformers = pytest.importorskip("transformers")
        config = transformers.OPTConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=1, ffn_dim=32, num_attention_heads=2,
            max_position_embeddings=16, word_embed_proj_dim=16, dropout=0.0,
        )  # fmt: skip
        ends = []
        for extra in ({"binding": "in_place"}, {"binding": "overlay"},
                      {"binding": "overlay", "batched": True}):  # fmt: skip
            torch.manual_seed(0)
            model = peft.get_peft_model(
                transformers.OPTForCausalLM(config).double(),
                peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
            ).double()
            ids = torch.arange(24).reshape(3, 8)
            optimizer = ZOMOPI(model, lr=0.05, rank=2, probes=2, refresh_every=2, **extra)
            assert all("lora" in name for name in optimizer.bindings)

            def closure(model=model, ids=ids):
                out = model(input_ids=tiled(ids)).logits[:, :-1]
                losses = F.cross_entropy(out.transpose(1, 2), tiled(ids)[:, 1:], reduction="none")
                return per_probe(losses)

            losses = [float(optimizer.step(closure)) for _ in range(5)]
            optimizer.merge()
            kept = {k: v.detach() for k, v in model.named_parameters() if "lora" in k}
            ends.append((losses, kept))
        for losses, kept in ends[1:]:
            assert losses == pytest.approx(ends[0][0], rel=1e-10)
            for name, value in kept.items():
                torch.testing.assert_close(value, ends[0][1][name], **CLOSE)


class TestBatched:
    def test_dropout_is_shared_by_the_probes(self):
        ends = []
        for batched in (False, True):
            torch.manual_seed(0)
            model = nn.Sequential(
                nn.Linear(6, 40), nn.Dropout(0.3), nn.Linear(40, 3), nn.Dropout(0.2)
            ).double()
            optimizer = ZOMOPI(model, lr=0.05, binding="overlay", batched=batched, probes=3)
            x, y = data()
            losses = [
                float(
                    optimizer.step(
                        lambda: per_probe(
                            F.cross_entropy(model(tiled(x)), tiled(y), reduction="none")  # noqa: B023
                        )
                    )
                )
                for _ in range(4)
            ]
            ends.append((losses, float(torch.rand(()))))
        assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-10)
        assert ends[0][1] == ends[1][1]  # the generator is left in the same state

    def test_dropout_inside_of_attention_is_shared(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.make = nn.Linear(6, 24)

            def forward(self, x):
                q = k = v = self.make(x).view(x.shape[0], 2, 4, 3)
                return F.scaled_dot_product_attention(q, k, v, dropout_p=0.4).flatten(1)

        ends = []
        for batched in (False, True):
            torch.manual_seed(0)
            model = Model().double()
            optimizer = ZOMOPI(model, lr=0.05, binding="overlay", batched=batched, probes=2)
            x = data()[0]
            ends.append([
                float(optimizer.step(lambda m=model, x=x: rows_loss(m, x))) for _ in range(3)
            ])  # fmt: skip
            assert optimizer.batched == batched
        assert ends[0] == pytest.approx(ends[1], rel=1e-10)

    def test_batch_norm_in_training_mode_runs_one_by_one(self):
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
        optimizer = ZOMOPI(model, lr=0.05, binding="overlay", batched=True)
        x = data()[0]
        with pytest.warns(UserWarning, match="one by one from now on: batch norm in training"):
            optimizer.step(lambda: rows_loss(model, x))
        assert int(model[1].num_batches_tracked) == 1

    @pytest.mark.parametrize(
        "noise",
        [torch.rand_like, torch.bernoulli, lambda x: F.dropout1d(x[:, None])[:, 0],
         lambda x: torch.rand(x.shape, dtype=x.dtype)],
    )  # fmt: skip
    def test_other_random_functions_run_one_by_one(self, noise):
        model = nn.Linear(6, 8).double()
        optimizer = ZOMOPI(model, lr=0.05, binding="overlay", batched=True)
        x = data()[0]

        def closure():
            out = torch.sigmoid(model(tiled(x)))
            return per_probe((out + noise(out)).mean(dim=1))

        with pytest.warns(UserWarning, match="one by one from now on: .* draws random numbers"):
            optimizer.step(closure)

    def test_closures_that_do_not_tile(self):
        model = nn.Linear(6, 8).double()
        x = data()[0]
        optimizer = ZOMOPI(model, lr=0.05, binding="overlay", batched=True, probes=2)
        before = model(x).detach().clone()
        with pytest.raises(ValueError, match=r"asked for 4 losses at once, got shape \(\)"):
            optimizer.step(lambda: model(tiled(x)).mean())
        with pytest.raises(ValueError, match="per_probe got 15 losses for 4 probes"):
            optimizer.step(lambda: per_probe(model(tiled(x))[:15].mean(dim=1)))
        assert torch.equal(model(x), before)

    def test_a_batch_that_is_not_the_first_axis_is_noticed(self):
        class Transposed(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(6, 6)

            def forward(self, x):
                return self.layer(x[:, None].expand(-1, 8, -1).transpose(0, 1)).transpose(0, 1)

        ends = []
        for batched in (False, True):
            torch.manual_seed(0)
            model, x = Transposed().double(), data()[0]
            optimizer = ZOMOPI(model, lr=0.05, probes=2, binding="overlay", batched=batched)
            closure = lambda m=model, x=x: rows_loss(m, x)  # noqa: E731
            if batched:
                with pytest.warns(UserWarning, match="is the batch the first axis throughout"):
                    losses = [float(optimizer.step(closure))]
            else:
                losses = [float(optimizer.step(closure))]
            ends.append(losses + [float(optimizer.step(closure)) for _ in range(2)])
        assert ends[0] == pytest.approx(ends[1], rel=1e-10)

    @pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8, 100, None])
    def test_a_chunk_bounds_the_rows_of_a_forward_pass(self, chunk):
        model, x = made("linear")
        optimizer = ZOMOPI(model, lr=0.05, probes=4, binding="overlay", batched=True, chunk=chunk)
        optimizer.step(lambda: rows_loss(model, x))  # which compares two losses one by one
        seen = []
        model[0].register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
        optimizer.step(lambda: rows_loss(model, x))
        at_once = min(chunk or 8, 8)
        assert sum(seen) == 8 * len(x)
        assert max(seen) == at_once * len(x)
        assert len(seen) == -(-8 // at_once)

    def test_a_compiled_model(self):
        ends = []
        for batched in (False, True):
            model, x = made("linear")
            run = torch.compile(model, backend="eager")
            optimizer = ZOMOPI(model, lr=0.05, rank=2, binding="overlay", batched=batched)
            ends.append([float(optimizer.step(lambda: rows_loss(run, x))) for _ in range(4)])  # noqa: B023
            assert optimizer.batched == batched
        assert ends[0] == pytest.approx(ends[1], rel=1e-10)

    @pytest.mark.parametrize("chunk", [None, 3])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_resumes_to_the_bit(self, dtype, chunk):
        def run():
            model = network(dtype)
            options = {"binding": "overlay", "batched": True, "chunk": chunk, "smoothing": 0.05}
            optimizer = ZOMOPI(model, 0.05, rank=2, refresh_every=4, **options)
            x, y = data(dtype)

            def closure():
                out = model(tiled(x)).float()
                return per_probe(F.cross_entropy(out, tiled(y), reduction="none"))

            return model, optimizer, closure

        (model, optimizer, closure), (other, resumed, again) = run(), run()
        for _ in range(6):
            optimizer.step(closure)
        other.load_state_dict(model.state_dict())
        resumed.load_state_dict(optimizer.state_dict())
        for _ in range(7):
            assert float(optimizer.step(closure)) == float(resumed.step(again))
        for o in (optimizer, resumed):
            o.merge()
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_micro_batches(self):
        ends = []
        for batched in (False, True):
            model, x = made("linear")
            optimizer = ZOMOPI(model, lr=0.05, binding="overlay", batched=batched)
            closures = [lambda s=s, m=model, x=x: rows_loss(m, x[s::2]) for s in range(2)]
            ends.append([float(optimizer.step(closures)) for _ in range(3)])
        assert ends[0] == pytest.approx(ends[1], rel=1e-10)

    def test_tiled_takes_what_batches_are_made_of(self):
        from typing import NamedTuple

        from zomopi_adapters._torch_slices import evaluating

        class Pair(NamedTuple):
            x: object
            y: object

        batch = {"a": torch.arange(2), "b": [torch.ones(1, 3), 7], "c": Pair(torch.ones(2), None)}
        with evaluating(3):
            result = tiled(batch)
        assert result["a"].tolist() == [0, 1] * 3
        assert result["b"][0].shape == (3, 3)
        assert result["b"][1] == 7
        assert result["c"] == Pair(result["c"].x, None)
        assert result["c"].x.shape == (6,)
        assert tiled(batch) is batch


class TestSurroundings:
    def test_autocast(self):
        """Under autocast the overlay computes in 16 bits, and the probes still differ."""
        model, losses = network(torch.float32), []
        x, y = data(torch.float32)

        def closure():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                losses.append(F.cross_entropy(model(x).float(), y))
            return losses[-1]

        optimizer = ZOMOPI(model, lr=0.1, smoothing=0.1, binding="overlay")
        for _ in range(3):
            optimizer.step(closure)
        assert len({float(loss) for loss in losses}) == len(losses)

    @pytest.mark.parametrize("binding", ["in_place", "overlay"])
    def test_compiled_models(self, binding):
        """What is compiled sees the weights as they are; under an overlay it runs eagerly."""
        expected, model = network(), network()
        for m, run in ((expected, expected), (model, torch.compile(model, backend="eager"))):
            optimizer = ZOMOPI(m, lr=0.05, rank=2, binding=binding, refresh_every=3)
            for _ in range(5):
                optimizer.step(objective(run))
            optimizer.detach()
        assert_same(model, dict(expected.named_parameters()))

    @pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
    @pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
    def test_machine_code_sees_the_weights_move(self, tmp_path, monkeypatch):
        """The default backend: one graph for all probes and steps, as weights are its inputs."""
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
        torch._dynamo.reset()
        expected, model, graphs = network(), network(), []

        def backend(graph, inputs):
            from torch._inductor.compile_fx import compile_fx

            graphs.append(graph)
            return compile_fx(graph, inputs)

        for m, run in ((expected, expected), (model, torch.compile(model, backend=backend))):
            optimizer = ZOMOPI(m, lr=0.05, rank=2, refresh_every=3)
            for _ in range(5):
                optimizer.step(objective(run))
        assert_same(model, dict(expected.named_parameters()))
        assert len(graphs) == 1
        optimizer = ZOMOPI(model, lr=0.05, rank=2, binding="overlay")
        optimizer.step(objective(run))  # runs eagerly
        assert len(graphs) == 1

    def test_compiled_models_whose_parameters_alone_are_known(self):
        expected, model = network(), network()
        for m, run in ((expected, expected), (model, torch.compile(model, backend="eager"))):
            optimizer = ZOMOPI(m.named_parameters(), lr=0.05, rank=2, refresh_every=3)
            for _ in range(5):
                optimizer.step(objective(run))
        assert_same(model, dict(expected.named_parameters()))

    def test_auto_takes_in_place_for_what_is_compiled(self):
        compiled = torch.compile(network(torch.bfloat16), backend="eager")
        optimizer = ZOMOPI(compiled, lr=0.1, smoothing=0.05)
        assert set(optimizer.bindings.values()) == {"in_place, reference on cpu"}

    def test_auto(self, caplog):
        caplog.set_level("INFO", logger="zomopi")
        assert set(ZOMOPI(network(), lr=0.1).bindings.values()) == {"in_place"}
        half = ZOMOPI(network(torch.bfloat16), lr=0.1)
        assert set(half.bindings.values()) == {"overlay"}
        params = network(torch.bfloat16).named_parameters()
        assert set(ZOMOPI(params, lr=0.1).bindings.values()) == {"in_place, reference on cpu"}
        assert "overlay: 6 parameters (0.bias, 0.weight, 1.bias, ...)" in caplog.text
        assert "overlay: 6 parameters" in repr(half)

    def test_auto_moves_in_place_what_no_overlay_is_known_for(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.inner = nn.Linear(6, 3), nn.GRU(3, 4)
                self.last = nn.Linear(4, 3)

            def forward(self, x):
                return self.last(self.inner(self.first(x))[0])

        model = Model().to(torch.bfloat16)
        optimizer = ZOMOPI(model, lr=0.05, rank=2, smoothing=0.05)
        assert {n for n, b in optimizer.bindings.items() if b.startswith("in_place")} == {
            "inner.weight_ih_l0", "inner.weight_hh_l0"
        }  # fmt: skip
        x, y = data(torch.bfloat16)
        before = model(x).detach()
        for _ in range(3):
            optimizer.step(lambda: F.cross_entropy(model(x).float(), y))
        assert sum(b == "overlay" for b in optimizer.bindings.values()) == 6
        assert not torch.equal(model(x), before)
        with torch.no_grad():
            now = model(x)
        with pytest.raises(RuntimeError, match="stop"):
            optimizer.step(lambda: (_ for _ in ()).throw(RuntimeError("stop")))
        assert torch.equal(model(x), now)

    def test_16_bits_keep_a_probe_beside_large_steps(self):
        """In 16 bits a probe that is added to the coordinates would be rounded away."""
        linear = nn.Linear(8, 8, bias=False).to(torch.bfloat16)
        optimizer = ZOMOPI(linear, lr=1.0, rank=4, smoothing=1e-3, binding="overlay")
        (leaf,) = optimizer._leaves
        optimizer.step(lambda: torch.linalg.norm(linear.weight.float() - 1))
        leaf.total = torch.full_like(leaf.total, 1.0)
        source_probe = []
        from zomopi_adapters._torch_leaf import Source

        source = Source(optimizer._stepper.random, 1)
        for scale in (1e-3, -1e-3):
            leaf.move(source, 0, scale)
            left, right = leaf.factors(torch.bfloat16)
            source_probe.append(left.double() @ right.double())
        difference = (source_probe[0] - source_probe[1]) / 2e-3
        exact = (leaf.shared @ leaf.varying(source, 0)).double()
        error = torch.linalg.norm(difference - exact) / torch.linalg.norm(exact)
        assert error < 2.0**-8  # both factors are rounded to 8 bits


def test_methods_with_own_draws_agree_with_blocks():
    """`block=False` changes the numbers, not the method: both minimise."""
    method = dataclasses.replace(zo.zo_mopi(learning_rate=0.05), block=False)
    start = torch.ones(4, 4, dtype=torch.float64)
    result = zo.minimize(lambda x: torch.sum(x**2), start, method=method, max_queries=800)
    assert result.fun < 0.2
