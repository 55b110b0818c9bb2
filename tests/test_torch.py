"""The Torch optimizer in place: the core's path, groups, schedules, randomness, failures."""

import dataclasses
import inspect
import io
import random
import signal

import numpy as np
import pytest

import zomopi_core as zo

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.func import functional_call  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from zomopi_adapters.torch import ZOMOPI, default_groups  # noqa: E402

ZEROTH = [
    name
    for name in zo.methods()
    if getattr(zo, name).__module__.split(".")[1] != "first_order" and name != "mezo_svrg"
]
# float64: sums are taken in another order than in the core; measured up to 3e-13 after 12 steps
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def network(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    layers = nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)
    return nn.Sequential(*layers).to(dtype)


def data(dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(16, 6, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.arange(16) % 3


def objective(model, dtype=torch.float64):
    x, y = data(dtype)
    return lambda: F.cross_entropy(model(x).double(), y)


def one_by_one(method):
    """The optimizer draws each probe by itself, so that it need not hold all of them."""
    return dataclasses.replace(method, block=False)


def core_path(model, method, steps, loss=None):
    """Return the parameters that the core's optimizer reaches."""
    x, y = data()
    loss = loss or (lambda params: F.cross_entropy(functional_call(model, params, (x,)), y))
    start = {k: v.detach().clone() for k, v in model.named_parameters()}
    core = zo.Optimizer(start, method=one_by_one(method))
    for _ in range(steps):
        core.tell([loss(p).detach() for p in core.ask()])
    return core.x


def assert_same(model, expected, **tolerance):
    for name, value in model.named_parameters():
        torch.testing.assert_close(
            value.detach(),
            expected[name],
            **(tolerance or CLOSE),
            msg=lambda m, n=name: f"{n}: {m}",
        )


def options(name):
    takes = inspect.signature(getattr(zo, name)).parameters
    wanted = {"rank": 3, "probes": 2, "refresh_every": 4, "spectral_rank": 2}
    if name == "hizoo":
        wanted["curvature_rate"] = 1e-3
    return {k: v for k, v in wanted.items() if k in takes}


class TestPath:
    """The same draws give the same path as `zomopi_core.Optimizer`."""

    @pytest.mark.parametrize("name", ZEROTH)
    def test_every_method(self, name):
        model, rate = network(), 0.02
        expected = core_path(model, getattr(zo, name)(learning_rate=rate, **options(name)), 12)
        start = model[0].weight.detach().clone()
        optimizer = ZOMOPI(model.named_parameters(), rate, method=name, **options(name))
        for _ in range(12):
            optimizer.step(objective(model))
        assert_same(model, expected)
        assert torch.max(torch.abs(model[0].weight - start)) > 1e-3

    @pytest.mark.parametrize(
        "extra",
        [
            {"difference": "forward"},
            {"difference": "leave-one-out"},
            {"side": "right"},
            {"weight_decay": 0.3},
            {"refresh": "haar", "momentum": 0.0},
            {"rank": 64},
        ],
        ids=str,
    )
    def test_options(self, extra):
        model = network()
        chosen = {"rank": 3, "probes": 3, "refresh_every": 4, **extra}
        expected = core_path(model, zo.zo_mopi(learning_rate=0.05, **chosen), 12)
        optimizer = ZOMOPI(model.named_parameters(), 0.05, **chosen)
        for _ in range(12):
            optimizer.step(objective(model))
        assert_same(model, expected)

    def test_default_learning_rate(self):
        model = network()
        expected = core_path(model, zo.zo_mopi(), 5)
        optimizer = ZOMOPI(model.named_parameters())
        assert optimizer.param_groups[0]["lr"] == 1.0
        for _ in range(5):
            optimizer.step(objective(model))
        assert_same(model, expected)

    def test_a_method_object_with_a_schedule(self):
        model = network()
        method = zo.zo_mopi(learning_rate=zo.linear_decay(0.1, 8), rank=2)
        expected = core_path(model, method, 6)
        optimizer = ZOMOPI(model, method=method)
        for _ in range(6):
            optimizer.step(objective(model))
        assert_same(model, expected)

    @pytest.mark.parametrize("stacked", [False, True])
    def test_three_axes(self, stacked):
        experts = nn.Module()
        experts.weight = nn.Parameter(torch.randn(4, 5, 6, dtype=torch.float64))
        method = zo.zo_mopi(learning_rate=0.05, rank=2, refresh_every=3, stacked=stacked)

        def loss(params):
            return torch.sum(torch.cos(params["weight"]) ** 2)

        expected = core_path(experts, method, 8, loss)
        optimizer = ZOMOPI(experts.named_parameters(), method=method)
        for _ in range(8):
            optimizer.step(lambda: loss({"weight": experts.weight}))
        assert_same(experts, expected)

    def test_memory_that_forbids_a_view(self):
        conv = nn.Conv2d(3, 4, 3).double().to(memory_format=torch.channels_last)
        assert not conv.weight.is_contiguous()
        x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
        method = zo.zo_mopi(learning_rate=0.05, rank=2, refresh_every=3, weight_decay=0.1)

        def loss(params):
            return functional_call(conv, params, (x,)).pow(2).mean()

        expected = core_path(conv, method, 6, loss)
        optimizer = ZOMOPI(conv.named_parameters(), method=method)
        for _ in range(6):
            optimizer.step(lambda: conv(x).pow(2).mean())
        assert_same(conv, expected)
        assert not conv.weight.is_contiguous()

    @pytest.mark.parametrize("name", ["zo_mopi", "mezo"])
    def test_what_a_sampler_keeps_is_not_changed(self, name):
        class Kept:
            def __init__(self):
                self.kept = {}

            def normal(self, draw, shape, *, dtype, device):
                if draw not in self.kept:
                    numbers = zo.HostSampler(0).normal(draw, shape, dtype=np.float64)
                    self.kept[draw] = torch.as_tensor(numbers, dtype=dtype)
                return self.kept[draw]

        sampler, model = Kept(), network()
        optimizer = ZOMOPI(model, 0.02, method=name, probes=2, seed=sampler)
        for _ in range(3):
            optimizer.step(objective(model))
        for draw, values in sampler.kept.items():
            fresh = zo.HostSampler(0).normal(draw, tuple(values.shape), dtype=np.float64)
            assert np.array_equal(values.numpy(), fresh)
        other = network()
        again = ZOMOPI(other, 0.02, method=name, probes=2, seed=zo.HostSampler(0))
        for _ in range(3):
            again.step(objective(other))
        assert_same(other, dict(model.named_parameters()))

    @pytest.mark.parametrize("rank", [3, 64])
    @pytest.mark.parametrize("scale", [1.0, 1e-6, 0.0])
    def test_float32_comes_back_to_the_stated_bound(self, scale, rank):
        """Also where entries are smaller than the probe, such as biases that begin at zero."""
        generator = torch.Generator().manual_seed(2)
        params = [(2, 5, 70), (70, 80), (9,)]
        params = [nn.Parameter(scale * torch.randn(s, generator=generator)) for s in params]
        start = [p.detach().double() for p in params]
        optimizer = ZOMOPI(params, 0.02, rank=rank, probes=2, smoothing=1e-3, refresh_every=1000)
        steps = 200
        for _ in range(steps):
            optimizer.step(lambda: 1.0)
        for p, x in zip(params, start, strict=True):
            # (2N + 1) additions a step, each off by half a unit in the last place of the larger
            # of entry and probe, whose entries are below 6 smoothing
            unit = torch.finfo(torch.float32).eps * (x.abs() + 6e-3)
            error = (p.detach().double() - x).abs() / (steps * 5 * 0.5 * unit)
            assert torch.all(error <= 1)
            # and, as errors are of both signs, far below it; measured up to 0.015
            assert torch.mean(error) < 0.05
            # the control: units of the entry alone would not hold
            if scale < 1:
                assert torch.any((p.detach().double() - x).abs() > 1e3 * 1e-7 * x.abs())


def step_size(weight, before, k):
    """The learning rate of a step of zo_mopi, whose k columns U are normalised."""
    return torch.linalg.matrix_norm(weight.detach() - before) / k**0.5


class TestGroups:
    def test_each_group_has_its_own_rate_rank_and_method(self):
        model = network()
        shared = {"probes": 2, "smoothing": 1e-3}
        groups = [
            {"params": [("0.weight", model[0].weight)], "lr": 0.1, "rank": 2},
            {"params": [("3.weight", model[3].weight)], "method": "mezo", "lr": 1e-3},
        ]
        optimizer = ZOMOPI(groups, lr=0.02, **shared)
        ranks = [leaf.state.momentum.shape for leaf in optimizer._leaves]
        assert ranks == [(2, 6), (3, 8)]
        assert [g["lr"] for g in optimizer.param_groups] == [0.1, 1e-3]
        before = model[0].weight.detach().clone()
        optimizer.step(objective(model))
        assert float(step_size(model[0].weight, before, 1)) == pytest.approx(0.1, rel=1e-9)

    def test_frozen_parameters_stay(self):
        model = network()
        model[1].requires_grad_(False)
        groups = default_groups(model)
        groups.append({"params": [("3.weight", model[3].weight)], "frozen": True})
        groups[0]["params"] = [("0.weight", model[0].weight)]
        start = {k: v.detach().clone() for k, v in model.named_parameters()}
        optimizer = ZOMOPI(groups, lr=0.05)
        for _ in range(3):
            optimizer.step(objective(model))
        moved = {k for k, v in model.named_parameters() if not torch.equal(v, start[k])}
        assert moved == {"0.weight", "0.bias", "3.bias"}

    def test_thawing_a_group(self):
        model = network()
        optimizer = ZOMOPI(
            [{"params": model[0].parameters(), "frozen": True}, {"params": model[3].parameters()}],
            lr=0.05,
        )
        start = model[0].weight.detach().clone()
        optimizer.step(objective(model))
        assert torch.equal(model[0].weight, start)
        optimizer.param_groups[0]["frozen"] = False
        optimizer.step(objective(model))
        assert not torch.equal(model[0].weight, start)

    def test_a_group_that_is_added_later(self):
        model = network()
        optimizer = ZOMOPI(model[3].named_parameters(), lr=0.05)
        optimizer.step(objective(model))
        start = model[0].weight.detach().clone()
        optimizer.add_param_group({"params": [("first", model[0].weight)], "lr": 0.5})
        optimizer.step(objective(model))
        assert float(step_size(model[0].weight, start, 4)) == pytest.approx(0.5, rel=1e-9)

    def test_a_group_that_is_refused_leaves_nothing_behind(self):
        model = network()
        optimizer = ZOMOPI(model[3].named_parameters(), lr=0.05)
        other = {"params": [("first", model[0].weight)]}
        with torch.no_grad():
            model[0].weight[0, 0] = torch.nan
        with pytest.raises(ValueError, match="first holds NaN"):
            optimizer.add_param_group(other)
        assert len(optimizer.param_groups) == len(optimizer.state_dict()["param_groups"]) == 1
        with torch.no_grad():
            model[0].weight[0, 0] = 0.0
        optimizer.step(objective(model))
        optimizer.add_param_group(other)
        start = model[0].weight.detach().clone()
        optimizer.step(objective(model))
        assert not torch.equal(model[0].weight, start)

    def test_a_group_that_cannot_be_batched_is_refused(self):
        model = network()
        optimizer = ZOMOPI(
            model[3].named_parameters(), lr=0.05, model=model, binding="overlay", batched=True,
            probes=2, smoothing=1e-3,
        )  # fmt: skip
        with pytest.raises(ValueError, match=r"binding='overlay' for all parameters.* first"):
            optimizer.add_param_group(
                {"params": [("first", model[0].weight)], "method": "mezo", "lr": 1e-3}
            )
        assert [leaf.name for leaf in optimizer._leaves] == ["bias", "weight"]

    def test_tied_weights_are_taken_once(self):
        first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        second.weight = first.weight
        tied = nn.Sequential(first, nn.Tanh(), second).double()
        params = [p for m in tied if hasattr(m, "weight") for p in m.parameters()]
        assert len(params) == 2
        assert len(ZOMOPI(params, lr=0.1)._leaves) == 1
        # two parameters of one memory
        third = nn.Linear(4, 4, bias=False).double()
        third.weight = nn.Parameter(first.weight.data)
        before = first.weight.detach().clone()
        optimizer = ZOMOPI([first.weight, third.weight], lr=0.1)
        optimizer.step(lambda: torch.sum(first.weight**2 - third.weight))
        assert float(step_size(first.weight, before, 2)) == pytest.approx(0.1, rel=1e-9)

    def test_default_groups(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.table = nn.Embedding(10, 4)
                self.conv = nn.Conv2d(2, 3, 3)
                self.experts = nn.Parameter(torch.zeros(2, 4, 4))
                self.head = nn.Linear(4, 10, bias=False)
                self.head.weight = self.table.weight
                self.fixed = nn.Parameter(torch.zeros(3), requires_grad=False)

        groups = default_groups(Model())
        names = {g["name"]: [name for name, _ in g["params"]] for g in groups}
        assert names == {
            "matrices": ["conv.weight"],
            "stacks": ["experts"],
            "embeddings": ["table.weight"],
            "vectors": ["conv.bias"],
        }
        assert [g.get("stacked", False) for g in groups] == [False, True, False, False]
        optimizer = ZOMOPI(groups, lr=0.1)
        assert [
            leaf.rule.subspace.stacked for leaf in optimizer._leaves if leaf.param.ndim == 3
        ] == [True]

    def test_schedulers(self):
        model = network()
        rates = [0.1 * 0.8**t for t in range(6)]
        vectors = [0.01 * 0.8**t for t in range(6)]
        method = zo.zo_mopi(
            learning_rate=lambda t: rates[t], vector_learning_rate=lambda t: vectors[t], rank=2
        )
        expected = core_path(model, method, 6)
        optimizer = ZOMOPI(model.named_parameters(), lr=0.1, vector_lr=0.01, rank=2)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
        for _ in range(6):
            optimizer.step(objective(model))
            schedule.step()
        assert_same(model, expected)

    def test_a_schedule_may_reach_zero(self):
        model = network()
        optimizer = ZOMOPI(model, lr=0.1)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.0)
        before = model[0].weight.detach().clone()
        optimizer.step(objective(model))
        torch.testing.assert_close(model[0].weight.detach(), before, **CLOSE)


class TestClosure:
    def test_runs_without_gradients_and_returns_the_mean(self):
        model, seen = network(), []

        def closure():
            assert not torch.is_grad_enabled()
            seen.append(objective(model)())
            return seen[-1]

        loss = ZOMOPI(model, lr=0.1, probes=2).step(closure)
        assert len(seen) == 4
        assert not loss.requires_grad
        assert float(loss) == pytest.approx(float(sum(seen) / 4), rel=1e-12)

    def test_a_metric_that_is_not_differentiable(self):
        model = network()
        x, y = data()
        optimizer = ZOMOPI(model, lr=0.05, smoothing=0.05, rank=4)

        def mistakes():
            return int((model(x).argmax(dim=1) != y).sum())

        first = mistakes()
        losses = [optimizer.step(mistakes) for _ in range(300)]
        assert isinstance(losses[0], float)
        assert mistakes() < first / 2

    def test_micro_batches_are_one_loss(self):
        x, y = data()
        ends = []
        for closures in (
            lambda m: [lambda s=s: F.cross_entropy(m(x[s::4]), y[s::4]) for s in range(4)],
            lambda m: lambda: sum(F.cross_entropy(m(x[s::4]), y[s::4]) for s in range(4)) / 4,
        ):
            model = network()
            optimizer = ZOMOPI(model, lr=0.1, rank=2)
            for _ in range(4):
                optimizer.step(closures(model))
            ends.append(model[0].weight.detach().clone())
        torch.testing.assert_close(*ends, **CLOSE)

    @pytest.mark.parametrize("closure", [None, [], 3])
    def test_is_needed(self, closure):
        with pytest.raises(TypeError, match="step needs a closure"):
            ZOMOPI(network(), lr=0.1).step(closure)

    def test_outer_autocast_does_not_keep_old_weights(self):
        """Autocast keeps 16-bit copies of weights, which would hide all perturbations."""
        model, losses = network(torch.float32), []
        x, y = data(torch.float32)

        def closure():
            losses.append(float(F.cross_entropy(model(x), y)))
            return losses[-1]

        # matrices alone: vectors of a norm are not cast, and would show in the losses
        matrices = [model[0].weight, model[3].weight]
        optimizer = ZOMOPI(matrices, lr=0.1, smoothing=0.1, probes=4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            optimizer.step(closure)
        assert len(set(losses)) == 8
        assert model[0].weight.dtype == torch.float32

    def test_momentum_is_not_computed_in_the_precision_of_autocast(self):
        ends = []
        for enabled in (False, True):
            model = network(torch.float32)
            optimizer = ZOMOPI(model.named_parameters(), lr=0.1)
            losses = iter(np.linspace(1, 2, 8))
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                optimizer.step(lambda losses=losses: next(losses))
            ends.append(model[0].weight.detach().clone())
        assert torch.equal(*ends)


class TestRandomness:
    def dropped(self, generators=(), draw=lambda: 0.0):
        model = nn.Sequential(nn.Linear(6, 50), nn.Dropout(0.5))
        x, masks = data(torch.float32)[0], []

        def closure():
            out = model(x)
            masks.append((tuple((out == 0).flatten().tolist()), draw()))
            return out.mean()

        optimizer = ZOMOPI(model.named_parameters(), lr=0.01, probes=2, generators=generators)
        return optimizer, closure, masks

    def test_equal_in_a_step_and_independent_across_steps(self):
        optimizer, closure, masks = self.dropped()
        for _ in range(2):
            optimizer.step(closure)
        assert len(set(masks[:4])) == 1
        assert len(set(masks[4:])) == 1
        assert masks[0] != masks[4]

    def test_other_generators(self):
        own, numpy_own = torch.Generator().manual_seed(1), np.random.default_rng(2)

        def draw():
            return (
                random.random(),
                float(np.random.random()),  # noqa: NPY002
                float(torch.rand((), generator=own)),
                numpy_own.random(),
            )

        optimizer, closure, seen = self.dropped((own, numpy_own), draw)
        for _ in range(2):
            optimizer.step(closure)
        drawn = [d for _, d in seen]
        assert len(set(drawn[:4])) == len(set(drawn[4:])) == 1
        assert all(a != b for a, b in zip(drawn[0], drawn[4], strict=True))

    def test_generators_are_left_as_by_one_forward_pass(self):
        optimizer, closure, _ = self.dropped()
        torch.manual_seed(3)
        closure()
        expected = torch.rand(3)
        torch.manual_seed(3)
        optimizer.step(closure)
        assert torch.equal(torch.rand(3), expected)

    def test_wrong_generators(self):
        with pytest.raises(TypeError, match="generators must hold"):
            ZOMOPI(network(), generators=[7]).step(lambda: 1.0)

    @pytest.mark.parametrize("known", [True, False])
    def test_batch_norm_statistics_are_those_of_one_pass(self, known):
        def make():
            torch.manual_seed(1)
            return nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3))

        x, y = data(torch.float32)
        model, other = make(), make()
        other(x)
        params = model if known else model.named_parameters()
        optimizer = ZOMOPI(params, lr=0.1, binding="in_place")
        optimizer.step(lambda: F.cross_entropy(model(x), y))
        # the first layer sees the same inputs whatever the weights are
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(getattr(model[0], name), getattr(other[0], name))


class Trouble(Exception):
    pass


class TestFailures:
    # float32: each addition there and back is off by half a unit; a handful of them
    BOUND = 8 * torch.finfo(torch.float32).eps

    def prepared(self, **options):
        model = network(torch.float32)
        optimizer = ZOMOPI(model.named_parameters(), lr=0.1, probes=2, **options)
        for _ in range(3):
            optimizer.step(objective(model, torch.float32))
        return model, optimizer, {k: v.detach().clone() for k, v in model.named_parameters()}

    def assert_back(self, model, before):
        for name, value in model.named_parameters():
            limit = self.BOUND * (before[name].abs() + 6e-3)
            assert torch.all((value - before[name]).abs() <= limit), name

    @pytest.mark.parametrize("when", range(4))
    @pytest.mark.parametrize("error", [Trouble, KeyboardInterrupt])
    def test_an_exception_puts_the_weights_back(self, when, error):
        model, optimizer, before = self.prepared()
        calls = []

        def closure():
            calls.append(1)
            if len(calls) == when + 1:
                raise error
            return objective(model, torch.float32)()

        with pytest.raises(error):
            optimizer.step(closure)
        self.assert_back(model, before)
        # and the step can be taken again
        assert torch.isfinite(optimizer.step(closure))

    def test_ctrl_c_while_the_weights_move_waits(self, monkeypatch):
        model, optimizer, before = self.prepared()
        leaf = optimizer._leaves[2]
        move = leaf.move

        def interrupted(*args):
            signal.raise_signal(signal.SIGINT)
            return move(*args)

        monkeypatch.setattr(leaf, "move", interrupted)
        with pytest.raises(KeyboardInterrupt):
            optimizer.step(objective(model, torch.float32))
        monkeypatch.setattr(leaf, "move", move)
        self.assert_back(model, before)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_losses_that_are_not_finite_are_left_out(self):
        model, optimizer, before = self.prepared()
        optimizer.step(lambda: float("nan"))
        self.assert_back(model, before)
        losses = iter([1.0, float("inf"), 1.0, 2.0])
        assert optimizer.step(lambda: next(losses)) == pytest.approx(4 / 3)
        assert torch.max((model[0].weight - before["0.weight"]).abs()) > 1e-3
        assert all(torch.isfinite(leaf.state.momentum).all() for leaf in optimizer._leaves)

    def test_or_raised(self):
        model, optimizer, before = self.prepared(on_failure="raise")
        with pytest.raises(zo.NonFiniteLossError, match="losses of step 3"):
            optimizer.step(lambda: float("nan"))
        self.assert_back(model, before)

    @pytest.mark.parametrize(
        ("loss", "message"),
        [
            (torch.zeros(3), r"got a tensor of shape \(3,\).*reduce it with mean"),
            (torch.zeros(1), r"shape \(1,\)"),
            (torch.zeros((), dtype=torch.complex64), "complex64"),
            (None, "got NoneType"),
            ("1.0", "got str"),
        ],
    )
    def test_what_is_no_loss(self, loss, message):
        model, optimizer, before = self.prepared()
        with pytest.raises((TypeError, ValueError), match=message):
            optimizer.step(lambda: loss)
        self.assert_back(model, before)

    def test_a_refresh_is_done_once_however_often_its_step_is_tried(self):
        ends = []
        for failures in (0, 2):
            model = network()
            optimizer = ZOMOPI(model, lr=0.1, rank=2, refresh_every=3)
            leaf, refreshes = optimizer._leaves[1], []
            refresh = leaf.refresh

            def counted(source, *frame, refresh=refresh, refreshes=refreshes):
                refreshes.append(source.step)
                refresh(source, *frame)

            leaf.refresh = counted
            for t in range(5):
                for _ in range(failures if t == 3 else 0):
                    with pytest.raises(Trouble):
                        optimizer.step(self.fail)
                optimizer.step(objective(model))
            ends.append(model[0].weight.detach().clone())
            assert refreshes == [3]
        torch.testing.assert_close(*ends, **CLOSE)

    @staticmethod
    def fail():
        raise Trouble


class Counter(TorchFunctionMode):
    """Counts the additions to the weights."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in {torch.Tensor.addmm_, torch.Tensor.baddbmm_}:
            self.calls.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


class Sizes(TorchDispatchMode):
    """Remembers the largest tensor that an operation made."""

    def __init__(self):
        super().__init__()
        self.largest, self.name = 0, ""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        for x in result if isinstance(result, tuple | list) else [result]:
            new = isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in inputs
            if new and x.untyped_storage().nbytes() > self.largest:
                self.largest, self.name = x.untyped_storage().nbytes(), str(func)
        return result


class TestCost:
    @pytest.mark.parametrize(
        ("options", "additions"),
        [
            ({"probes": 3}, 2 * 3 + 1),
            ({"probes": 3, "difference": "forward"}, 3 + 1),
            ({"probes": 3, "difference": "leave-one-out"}, 3 + 1),
            ({"probes": 2, "side": "right"}, 2 * 2 + 1),
            ({"probes": 2, "weight_decay": 0.1}, 2 * 2 + 1),
        ],
        ids=str,
    )
    def test_additions_of_a_step(self, options, additions):
        weight = nn.Parameter(torch.randn(12, 9))
        optimizer = ZOMOPI([weight], lr=0.1, rank=3, **options)
        counter = Counter()
        with counter:
            optimizer.step(lambda: 1.0)
        assert counter.calls == [(12, 9)] * additions

    def test_weight_decay_on_devices_that_the_host_would_wait_for(self, monkeypatch):
        """A pass of its own, and the same path."""
        monkeypatch.setattr("zomopi_adapters._torch_in_place._is_read_at_once", lambda _: False)
        model, passes = network(), []
        method = zo.zo_mopi(learning_rate=0.05, rank=3, weight_decay=0.3)
        expected = core_path(model, method, 6)
        weight = model[0].weight
        multiply = torch.Tensor.mul_
        monkeypatch.setattr(
            torch.Tensor, "mul_", lambda x, by: passes.append(x is weight) or multiply(x, by)
        )
        optimizer = ZOMOPI(model, method=method)
        for _ in range(6):
            optimizer.step(objective(model))
        assert_same(model, expected)
        assert sum(passes) == 6

    def test_nothing_as_large_as_a_weight_is_made(self):
        weight = nn.Parameter(torch.randn(1024, 512))
        optimizer = ZOMOPI([weight], lr=0.1, rank=4, probes=4, refresh_every=2)
        losses = iter(torch.randn(100).tolist())
        for _ in range(4):
            sizes = Sizes()
            with sizes:
                optimizer.step(lambda: next(losses))
            # the largest are 64 rows, on which it is looked whether probes can be seen; then a
            # probe, 4 x 512
            assert sizes.largest <= 64 * 512 * 4, sizes.name
            if optimizer._stepper.step % 2 == 0:
                assert sizes.largest <= 4 * 512 * 4, sizes.name

    @pytest.mark.parametrize(("probes", "draws"), [(2, 2), (3, 3), (4, 7), (5, 9)])
    def test_probes_are_drawn_again_only_where_they_do_not_fit(self, probes, draws):
        """One weight of 8 x 6 has the memory of one more probe of rank 8, not of two."""

        class Counting:
            def __init__(self):
                self.draws = 0

            def normal(self, draw, shape, *, dtype, device):
                self.draws += draw.stream == "probe"
                return torch.as_tensor(zo.HostSampler(0).normal(draw, shape, dtype=np.float64))

        sampler, weight = Counting(), nn.Parameter(torch.ones(8, 6, dtype=torch.float64))
        optimizer = ZOMOPI([weight], lr=0.1, rank=8, probes=probes, seed=sampler)
        optimizer.step(lambda: float(weight.detach().square().sum()))
        sampler.draws = 0
        optimizer.step(lambda: float(weight.detach().square().sum()))
        assert sampler.draws == draws

    def test_mezo_keeps_no_momentum_as_large_as_the_weight(self):
        weight = nn.Parameter(torch.randn(64, 64))
        optimizer = ZOMOPI([weight], lr=1e-3, method="mezo")
        optimizer.step(lambda: 1.0)
        momentum = optimizer._leaves[0].state.momentum
        assert momentum.untyped_storage().nbytes() == 4
        assert optimizer._leaves[0]._held is None


class TestCheckpoints:
    @pytest.mark.parametrize("name", ["zo_mopi", "mezo_adam", "hizoo", "lozo_m", "subzero"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_resumes_to_the_bit(self, name, dtype):
        def make():
            model = network(dtype)
            optimizer = ZOMOPI(
                model.named_parameters(), 0.02, method=name, seed=7, **options(name) | SMOOTH
            )
            return model, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

        SMOOTH = {"smoothing": 0.05}
        model, optimizer, schedule = make()

        def run(model, optimizer, schedule, steps):
            for _ in range(steps):
                optimizer.step(objective(model, dtype))
                schedule.step()

        run(model, optimizer, schedule, 6)
        file = io.BytesIO()
        torch.save([model.state_dict(), optimizer.state_dict(), schedule.state_dict()], file)
        run(model, optimizer, schedule, 7)

        file.seek(0)
        saved = torch.load(file, weights_only=True)
        other, resumed, again = make()
        other.load_state_dict(saved[0])
        resumed.load_state_dict(saved[1])
        again.load_state_dict(saved[2])
        run(other, resumed, again, 7)
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
        assert resumed.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] < 0.02

    def test_what_does_not_fit_is_refused(self):
        model = network()
        saved = ZOMOPI(model, lr=0.1, rank=2).state_dict()
        with pytest.raises(ValueError, match="the method was"):
            ZOMOPI(model, lr=0.1, rank=3).load_state_dict(saved)
        with pytest.raises(ValueError, match="groups"):
            ZOMOPI(model.named_parameters(), lr=0.1, rank=2).load_state_dict(saved)
        with pytest.raises(ValueError, match="not saved by"):
            ZOMOPI(model, lr=0.1).load_state_dict({"state": {}, "param_groups": []})
        torch.manual_seed(0)
        wide = nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.Tanh(), nn.Linear(9, 3))
        with pytest.raises(ValueError, match="was saved where"):
            ZOMOPI(wide, lr=0.1, rank=2).load_state_dict(saved)

    def test_is_not_pickled(self):
        import pickle

        with pytest.raises(TypeError, match="save its state_dict"):
            pickle.dumps(ZOMOPI(network(), lr=0.1))


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"ranks": 3}, "takes no 'ranks'"),
            ({"method": "muon"}, "first-order method"),
            ({"method": "mezo_svrg"}, "no second copy of the weights"),
            ({"method": "mezzo"}, "did you mean 'mezo'"),
            ({"method": 3}, "method must be a name or a Method"),
            ({"method": zo.zo_mopi(), "rank": 3}, r"as in zo\.zo_mopi"),
            ({"binding": "inplace"}, "binding must be one of"),
            ({"sketch": "inputs"}, "sketch must be one of"),
            ({"on_failure": "ignore"}, "on_failure must be one of"),
            ({"reference": "disk"}, "reference must be one of"),
            ({"chunk": 0}, "chunk must be an integer"),
            ({"lr": -1.0}, "lr must be a positive"),
            ({"rank": 0}, "rank must be"),
            ({"seed": -1}, "seed must be"),
            ({"method": "mezo", "lr": 1e-3, "vector_lr": 0.1}, "takes no 'vector_lr'"),
            ({"method": "mezo", "lr": 1e-3, "sketch": "activation"}, "needs a method with frames"),
        ],
        ids=str,
    )
    def test_options(self, options, message):
        with pytest.raises((TypeError, ValueError), match=message):
            ZOMOPI(network(), **options)

    def test_parameters(self):
        with pytest.raises(ValueError, match="no parameter to train"):
            ZOMOPI([])
        with pytest.raises(ValueError, match="no parameter to train"):
            ZOMOPI(network().requires_grad_(False))
        with pytest.raises(TypeError, match="got one tensor"):
            ZOMOPI(nn.Parameter(torch.zeros(3, 3)))
        with pytest.raises(ValueError, match=r"holds NaN or infinity"):
            ZOMOPI([nn.Parameter(torch.full((2, 2), float("nan")))])
        with pytest.raises(TypeError, match="complex64, which cannot hold"):
            ZOMOPI([nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))])
        with pytest.raises(ValueError, match="two parameters are named 'w'"):
            ZOMOPI([("w", nn.Parameter(torch.zeros(2, 2))), ("w", nn.Parameter(torch.ones(3)))])

    @pytest.mark.parametrize("binding", ["auto", "overlay"])
    def test_parameters_without_values(self, binding):
        model = network()
        model[3] = nn.Linear(8, 3, device="meta")
        with pytest.raises(ValueError, match=r"^3\.bias is on the device 'meta'.*device_map"):
            ZOMOPI(model, lr=0.1, binding=binding)
        model[3].requires_grad_(False)
        assert "3.bias" not in ZOMOPI(model, lr=0.1, binding=binding).bindings

    def test_offloaded_models(self):
        accelerate = pytest.importorskip("accelerate")
        model = accelerate.cpu_offload(network(), execution_device="cpu")
        with pytest.raises(ValueError, match=r"has no values: .* brought from the host"):
            ZOMOPI(model, lr=0.1)

    def test_groups_that_probe_differently(self):
        model = network()
        groups = [{"params": [model[0].weight]}, {"params": [model[3].weight], "probes": 7}]
        with pytest.raises(ValueError, match="must be the same in all groups"):
            ZOMOPI(groups, lr=0.1)

    @pytest.mark.parametrize("change", ["dtype", "shape"])
    def test_a_model_that_changes_afterwards(self, change):
        model = network()
        optimizer = ZOMOPI(model, lr=0.1)
        optimizer.step(objective(model))
        if change == "shape":
            model[3].weight.data = torch.zeros(5, 8, dtype=torch.float64)
        else:
            model.bfloat16()
        before = [p.detach().clone() for p in model.parameters()]
        with pytest.raises(ValueError, match=r"was torch.float64 of shape .* when the optimizer"):
            optimizer.step(lambda: 1.0)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))

    @pytest.mark.parametrize("rate", ["AUTO", -1, 0, float("nan"), True, [0.1]])
    @pytest.mark.parametrize("name", ["lr", "vector_lr"])
    def test_rates(self, name, rate):
        with pytest.raises(ValueError, match=f"^{name} must be a positive number or 'auto'"):
            ZOMOPI(network(), **{"lr": 0.1, name: rate})

    def test_the_model_is_needed(self):
        with pytest.raises(ValueError, match="binding='overlay' needs the model"):
            ZOMOPI(network().named_parameters(), binding="overlay")
        with pytest.raises(ValueError, match="batched=True needs the model"):
            ZOMOPI(network().named_parameters(), batched=True)
