"""Learning rate and smoothing of the Torch optimizer, measured during the run."""

import io
import math

import pytest

import zomopi_core as zo

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.func import functional_call  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from test_torch import assert_same, data, network, objective, one_by_one  # noqa: E402
from zomopi_adapters._torch_leaf import STEP, Source  # noqa: E402
from zomopi_adapters.torch import ZOMOPI, per_probe, tiled  # noqa: E402

BINDINGS = {
    "in place": {"binding": "in_place"},
    "overlay": {"binding": "overlay"},
    "batched": {"binding": "overlay", "batched": True},
    "in chunks": {"binding": "overlay", "batched": True, "chunk": 3},
}
SMALL = {"rank": 3, "refresh_every": 7}


def core_path(model, method, steps, refresh_every):
    """Return what the core reaches, its searches put off where the frame is new."""
    x, y = data()
    start = {k: v.detach().clone() for k, v in model.named_parameters()}
    core, searches = zo.Optimizer(start, method=one_by_one(method)), 0
    for t in range(steps):
        if t and t % refresh_every == 0:
            core.skip_search()
        points = core.ask()
        searches += t > 0 and len(points) > core.probe_queries
        with torch.no_grad():
            core.tell([F.cross_entropy(functional_call(model, p, (x,)), y) for p in points])
    return core, searches


class TestPath:
    """The same draws give the same path as `zomopi_core.Optimizer`."""

    @pytest.mark.parametrize("binding", BINDINGS)
    @pytest.mark.parametrize("extra", [{}, {"smoothing": 1e-3}, {"weight_decay": 0.1}], ids=str)
    def test_follows_the_core(self, binding, extra):
        model = network()
        method = zo.zo_mopi(learning_rate="auto", **SMALL, **extra)
        core, searches = core_path(model, method, 26, 7)
        assert searches >= 3
        start = model[0].weight.detach().clone()
        optimizer = ZOMOPI(model, "auto", **SMALL, **extra, **BINDINGS[binding])
        x, y = data()
        calls = []

        def closure():
            losses = F.cross_entropy(model(tiled(x)), tiled(y), reduction="none")
            calls.append(len(losses) // len(y))
            return per_probe(losses)

        for _ in range(26):
            optimizer.step(closure)
        optimizer.merge()
        # A line search magnifies the rounding of sums that are taken in another order.
        assert_same(model, core.x, rtol=1e-6, atol=1e-8)
        assert torch.max(torch.abs(model[0].weight - start)) > 1e-2
        assert optimizer._stepper.tuner.rate == pytest.approx(core._point.tuning.rate, rel=1e-5)

    def test_smoothing_alone(self):
        model = network()
        method = zo.zo_mopi(learning_rate=0.02, smoothing="auto", **SMALL)
        core, _ = core_path(model, method, 20, 7)
        optimizer = ZOMOPI(model, 0.02, smoothing="auto", **SMALL)
        for _ in range(20):
            optimizer.step(objective(model))
        assert_same(model, core.x, rtol=1e-6, atol=1e-8)
        assert optimizer._stepper.tuner.estimator.width == pytest.approx(core.smoothing)

    def test_memory_is_that_of_all_groups(self):
        model = network()
        named = dict(model.named_parameters())
        start = {k: v.detach() for k, v in named.items()}
        core = zo.Optimizer(start, method=zo.zo_mopi(learning_rate="auto", rank=3))
        optimizer = ZOMOPI(
            [{"params": [pair]} for pair in named.items()], "auto", rank=3, binding="in_place"
        )
        for group in optimizer.param_groups:
            assert group["method"].matrices.momentum == core.method.matrices.momentum


class TestLine:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("binding", ["in_place", "overlay"])
    def test_points_lie_along_the_last_step(self, dtype, binding):
        torch.manual_seed(0)
        model = nn.Linear(12, 8, bias=False).to(dtype)
        optimizer = ZOMOPI(model, "auto", rank=4, binding=binding, smoothing=0.05)
        x = torch.randn(32, 12)
        inputs = x.to(dtype)
        while optimizer._stepper.step < 12 or optimizer._leaves[0].direction is None:
            optimizer.step(lambda: (model(inputs).float() - x[:, :8]).square().mean())
        (leaf,) = optimizer._leaves
        source, before = Source(optimizer._stepper.random, 12), leaf.param.detach().clone()
        with torch.no_grad():
            leaf.move(source, STEP, 0.5)
            if binding == "overlay":
                torch.testing.assert_close(leaf.displacement(), leaf.total + 0.5 * leaf.direction)
            elif dtype == torch.float32:
                expected = before + 0.5 * leaf.shared @ leaf.direction
                torch.testing.assert_close(leaf.param.detach(), expected)
            else:
                way = leaf.shared @ (leaf.total + 0.5 * leaf.direction)
                assert torch.equal(leaf.param, (leaf.reference.float() + way).to(dtype))
            leaf.move(source, None, 0.0)
        rounds = dtype == torch.float32 and binding == "in_place"
        torch.testing.assert_close(
            leaf.param.detach(), before, rtol=1e-6 if rounds else 0, atol=1e-7 if rounds else 0
        )

    def test_a_refresh_comes_before_a_search(self):
        """The direction lies in the old frame."""
        model, counts = network(), []
        optimizer = ZOMOPI(model, "auto", rank=3, refresh_every=2)
        calls = []

        def counted():
            calls.append(1)
            return objective(model)()

        for _ in range(30):
            before = len(calls)
            optimizer.step(counted)
            counts.append(len(calls) - before)
        assert set(counts[2::2]) == {8}
        assert max(counts[3::2]) > 8
        assert optimizer._stepper.tuner.tuning.search.found


class TestRetreat:
    @pytest.mark.parametrize("decay", [0.0, 0.3])
    @pytest.mark.parametrize(
        ("dtype", "binding"),
        [
            (torch.float32, "in_place"), (torch.bfloat16, "in_place"),
            (torch.float32, "overlay"), (torch.bfloat16, "overlay"),
        ],
        ids=str,
    )  # fmt: skip
    def test_goes_back_to_where_it_was_best(self, dtype, binding, decay):
        torch.manual_seed(0)
        model = nn.Linear(12, 8).to(dtype)
        optimizer = ZOMOPI(model, "auto", rank=4, binding=binding, weight_decay=decay)
        x = torch.randn(32, 12).to(dtype)

        def loss():
            return (model(x).float() - 1.0).square().mean()

        for _ in range(10):
            optimizer.step(loss)
        with torch.no_grad():
            best = model(x)
        for leaf in optimizer._leaves:
            leaf.remember()
        for _ in range(3):  # by the rate alone, without another search
            optimizer._stepper.tuner.postpone()
            optimizer.step(loss)
        with torch.no_grad():
            assert torch.max(torch.abs(model(x) - best)) > 1e-3
        with torch.no_grad():
            for leaf in optimizer._leaves:
                leaf.retreat()
            found = model(x)
        if dtype == torch.float32 and binding == "in_place":
            torch.testing.assert_close(found, best, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(found, best)

    def test_weights_that_somebody_loads_are_not_undone(self):
        model = network()
        optimizer = ZOMOPI(model, "auto", rank=3, binding="in_place")
        for _ in range(10):
            optimizer.step(objective(model))
        for leaf in optimizer._leaves:
            leaf.remember()
        optimizer._stepper.tuner.postpone()
        optimizer.step(objective(model))
        assert all(leaf.since is not None for leaf in optimizer._leaves)
        loaded = network(seed=5).state_dict()
        model.load_state_dict(loaded)
        for leaf in optimizer._leaves:
            leaf.follow()
            leaf.retreat()
        for name, value in model.state_dict().items():
            assert torch.equal(value, loaded[name])

    def test_after_a_catastrophe(self):
        """F at the iterate becomes NaN for good; the run goes back to where it was defined."""
        model = network()
        start = {k: v.detach().clone() for k, v in model.named_parameters()}
        optimizer = ZOMOPI(model, "auto", rank=3, binding="in_place")

        def loss():
            far = max(float((v - start[k]).abs().max()) for k, v in model.named_parameters())
            return objective(model)() if far < 0.3 else math.nan

        losses = [float(optimizer.step(loss)) for _ in range(120)]
        assert math.isfinite(losses[-1])
        assert losses[-1] < 0.8 * losses[0]


class TestFlatLoss:
    @pytest.mark.parametrize("binding", ["in_place", "overlay"])
    def test_weights_stay(self, binding):
        """Probes grow in search of differences, but not beyond what the weights themselves allow.

        While a step is evaluated, weights that are moved in place hold a probe, too; bounds that
        followed them grew without end, and their rounding destroyed the weights.
        """
        model = network(torch.float32)
        start = {k: v.detach().clone() for k, v in model.named_parameters()}
        optimizer = ZOMOPI(model, "auto", binding=binding)
        largest = max(float(v.square().mean().sqrt()) for v in start.values())
        for _ in range(40):
            optimizer.step(lambda: 1.0)
            assert optimizer._stepper.tuner.estimator.width <= 3.0 * max(largest, 1.0) * 8**0.5
        for name, value in model.named_parameters():
            torch.testing.assert_close(value.detach(), start[name], rtol=0, atol=1e-4)


class TestTraining:
    def test_nothing_is_set_by_hand(self):
        model = network(torch.float32)
        optimizer = ZOMOPI(model, "auto")
        losses = [float(optimizer.step(objective(model, torch.float32))) for _ in range(150)]
        assert losses[-1] < 0.3 * losses[0]

    def test_another_batch_at_each_step(self):
        """A rate that is too large diverges, one that collapses learns nothing."""
        torch.manual_seed(0)
        x = torch.randn(2000, 12)
        y = (x @ torch.randn(12, 4) + 2.0 * torch.randn(2000, 4)).argmax(dim=1)
        model = nn.Linear(12, 4)
        optimizer = ZOMOPI(model, "auto", rank=4)
        generator = torch.Generator().manual_seed(1)

        def loss():
            with torch.no_grad():
                return float(F.cross_entropy(model(x), y))

        start = loss()
        for _ in range(200):
            rows = torch.randint(2000, (16,), generator=generator)
            optimizer.step(lambda rows=rows: F.cross_entropy(model(x[rows]), y[rows]))
        assert optimizer._stepper.tuner.tuning.descent.sampled
        # 1.93 at the start, the least is 0.97; the best of four rates ends at 1.06
        assert loss() < 0.65 * start

    def test_schedules_scale_the_rate(self):
        model = network()
        optimizer = ZOMOPI(model, "auto", rank=3)
        assert {group["lr"] for group in optimizer.param_groups} == {1.0}
        for _ in range(8):
            optimizer.step(objective(model))
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        before = {k: v.detach().clone() for k, v in model.named_parameters()}
        optimizer.step(objective(model))
        assert_same(model, before)

    def test_a_given_rate_of_a_group_stays(self):
        model = network()
        optimizer = ZOMOPI(
            [
                {"params": [("a", model[0].weight)]},
                {"params": [("b", model[3].weight)], "lr": 1e-12},
            ],
            "auto",
            rank=3,
        )
        before = [model[0].weight.detach().clone(), model[3].weight.detach().clone()]
        for _ in range(20):
            optimizer.step(objective(model))
        assert torch.max(torch.abs(model[0].weight - before[0])) > 1e-3
        torch.testing.assert_close(model[3].weight.detach(), before[1])

    def test_a_failure_leaves_the_tuning_as_it_was(self):
        model = network()
        optimizer = ZOMOPI(model, "auto", rank=3, binding="overlay")
        for _ in range(5):
            optimizer.step(objective(model))
        tuner = optimizer._stepper.tuner
        tuning, points = tuner.tuning, len(tuner.points(optimizer._leaves))
        assert points > 0
        calls = []

        def fails_at_the_last_point():
            calls.append(1)
            if len(calls) == 8 + points:
                raise RuntimeError
            return objective(model)()

        with pytest.raises(RuntimeError):
            optimizer.step(fails_at_the_last_point)
        assert optimizer._stepper.tuner.tuning is tuning
        assert torch.isfinite(optimizer.step(objective(model)))


class TestCheckpoints:
    @pytest.mark.parametrize("binding", ["in_place", "overlay"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("steps", [1, 9, 17])
    def test_resumes_to_the_bit(self, binding, dtype, steps):
        def make():
            model = network(dtype)
            return model, ZOMOPI(model, "auto", rank=3, refresh_every=6, binding=binding)

        model, optimizer = make()
        for _ in range(steps):
            optimizer.step(objective(model, dtype))
        file = io.BytesIO()
        torch.save([model.state_dict(), optimizer.state_dict()], file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        other, resumed = make()
        other.load_state_dict(saved[0])
        resumed.load_state_dict(saved[1])
        assert repr(resumed._stepper.tuner.tuning) == repr(optimizer._stepper.tuner.tuning)
        for _ in range(15):
            optimizer.step(objective(model, dtype))
            resumed.step(objective(other, dtype))
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
        assert repr(resumed._stepper.tuner.tuning) == repr(optimizer._stepper.tuner.tuning)

    def test_a_journal_takes_the_same_steps(self, tmp_path):
        model = network()
        optimizer = ZOMOPI(model, "auto", rank=3, journal=tmp_path / "run")
        for _ in range(12):
            optimizer.step(objective(model))
        optimizer.close()
        other = network()
        resumed = ZOMOPI(other, "auto", rank=3)
        resumed.resume(tmp_path / "run")
        resumed.close()
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
        assert repr(resumed._stepper.tuner.tuning) == repr(optimizer._stepper.tuner.tuning)


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"method": "mezo", "lr": "auto"}, "is as large as the weight"),
            ({"lr": "auto", "refresh_every": 1}, "new one at each step"),
            ({"lr": "fast"}, "lr must be a positive"),
        ],
        ids=str,
    )
    def test_what_cannot_be_searched(self, options, message):
        with pytest.raises((TypeError, ValueError), match=message):
            ZOMOPI(network(), **options)

    def test_states_of_runs_that_tune_and_do_not(self):
        tuned = ZOMOPI(network(), smoothing="auto", lr=0.1).state_dict()
        tuned["zomopi"]["tuning"] = None
        with pytest.raises(ValueError, match="one side only"):
            ZOMOPI(network(), smoothing="auto", lr=0.1).load_state_dict(tuned)
