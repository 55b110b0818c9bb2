"""Tuning in a whole run: awkward functions, scales, shapes, dtypes, failures, interruption."""

import pickle
import time

import numpy as np
import pytest

import zomopi_core as zo
from zomopi_core import problems
from zomopi_core.rate_search import RateSearch

TARGET = np.outer(np.arange(1.0, 9.0), np.ones(6)) / 8
X0 = np.zeros((8, 6))


def distance(x):
    return float(np.mean((x - TARGET) ** 2))


START = distance(X0)


class Counted:
    """A function that counts its calls and remembers how far they went."""

    def __init__(self, fun):
        self.fun, self.calls, self.farthest = fun, 0, 0.0

    def __call__(self, x):
        self.calls += 1
        self.farthest = max(self.farthest, float(np.max(np.abs(x))))
        return self.fun(x)


def minimize(fun, x0=X0, max_queries=3000, **options):
    fun = Counted(fun)
    result = zo.minimize(fun, x0, max_queries=max_queries, **options)
    assert result.nfev == fun.calls <= max_queries
    for x in (result.x, result.x_last):
        assert x.dtype == x0.dtype
        assert np.all(np.isfinite(x))
    return result, fun


def minimize_with_noise(level, seed):
    rng = np.random.default_rng(seed)
    return minimize(lambda x: distance(x) + level * rng.standard_normal(), seed=seed)[0]


class TestFunctions:
    @pytest.mark.parametrize("value", [0.0, 1.0, -1e12, 1e300])
    def test_constant(self, value):
        result, fun = minimize(lambda x: value, X0 + 1.0, 1000)
        assert result.fun == value
        assert np.array_equal(result.x_last, X0 + 1.0)
        assert fun.farthest < 1 + 5 * 3 * 1.0  # a probe's entries, with the largest smoothing

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    @pytest.mark.parametrize("queries", [3000, 10_000])
    def test_unbounded_below(self, dtype, queries):
        """Far out the probes must grow with the parameters, and no step may overflow."""
        result, fun = minimize(lambda x: float(np.sum(x, dtype="f8")), X0.astype(dtype), queries)
        assert result.fun < {"float16": -1e3, "float32": -1e6, "float64": -1e6}[dtype]
        assert fun.farthest < 0.1 * np.finfo(dtype).max

    def test_unbounded_below_with_noise(self):
        rng = np.random.default_rng(0)
        result, _ = minimize(lambda x: float(np.sum(x)) + 0.1 * rng.standard_normal(), X0, 8000)
        assert result.fun < -1e6

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize(("radius", "left"), [(1.5, 1e-3), (1.05, 1e-3), (0.5, 0.5)])
    def test_domain(self, value, radius, left):
        result, _ = minimize(lambda x: distance(x) if np.max(np.abs(x)) < radius else value)
        assert result.fun < left * START
        assert np.max(np.abs(result.x)) < radius

    @pytest.mark.parametrize("seed", range(6))
    def test_edge_of_the_domain(self, seed):
        """Near the solution most probes fail, time after time."""
        result, _ = minimize(
            lambda x: distance(x) if np.max(np.abs(x)) < 1.05 else np.nan, seed=seed
        )
        assert result.fun < 1e-4 * START

    def test_domain_left_behind(self):
        """Only the iterate of a given step lies outside: it comes back to the best one."""
        calls = []

        def fun(x):
            calls.append(x)
            return distance(x) if len(calls) < 1000 or np.linalg.norm(x) < 1.0 else np.nan

        result, _ = minimize(fun, failure_limit=None)
        assert np.isfinite(result.fun)
        assert result.success

    def test_points_of_the_first_search_are_near(self):
        """Twice four times as far as the minimum, and no more."""
        _, fun = minimize(distance)
        assert fun.farthest < 10 * np.max(TARGET)

    @pytest.mark.parametrize(("constant", "left"), [(1e6, 1e-5), (-1e6, 1e-5), (1e12, 0.05)])
    def test_large_constant(self, constant, left):
        """At 1e12 float64 tells steps of 1.2e-4 apart."""
        result, _ = minimize(lambda x: distance(x) + constant)
        assert distance(result.x) < left * START

    @pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-20, 1e20, 1e200, 1e300])
    def test_scale_of_the_function(self, scale):
        result, _ = minimize(lambda x: scale * distance(x))
        assert distance(result.x) < 1e-5 * START

    @pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
    def test_scale_of_a_noisy_function(self, scale):
        rng = np.random.default_rng(0)
        result, _ = minimize(lambda x: scale * (distance(x) + 0.01 * rng.standard_normal()))
        assert distance(result.x) < 0.03 * START

    @pytest.mark.parametrize("step", [1e-3, 0.01, 0.1])
    def test_piecewise_constant(self, step):
        result, _ = minimize(lambda x: float(np.floor(distance(x) / step) * step))
        assert distance(result.x) < max(0.02 * START, 3 * step)

    @pytest.mark.parametrize(("part", "left"), [(0.01, 0.01), (0.1, 0.06), (1.0, 0.5)])
    @pytest.mark.parametrize("seed", range(10))
    def test_noise(self, part, left, seed):
        """The last iterates of seed 2 are left with 0.60 by noise as large as F."""
        result = minimize_with_noise(part * START, seed)
        assert distance(result.x) < left * START

    @pytest.mark.parametrize("seed", range(3))
    def test_result_under_noise_is_not_a_lucky_point(self, seed):
        """One evaluation cannot tell the point of one low value from the iterates' average."""
        result = minimize_with_noise(0.1 * START, seed)
        assert distance(result.x) < 0.9 * distance(result.x_last)

    @pytest.mark.parametrize("seed", [0, 1, 2, 4])
    def test_noise_on_a_plateau(self, seed):
        """The slope at the start is hidden; what lies far away is no reason to go there."""
        problem = problems.make("gate-noisy", seed=seed)
        fun = Counted(problem.fun)
        zo.minimize(fun, problem.x0, max_queries=1000, seed=seed, smoothing=0.3)
        assert fun.farthest < 100

    @pytest.mark.parametrize("seed", [3, 6])
    def test_plateau_of_a_noisy_function_is_left_by_its_slope(self, seed):
        """Far away any point is lower than the start; from there both runs came to saddles."""
        problem = problems.make("gate-noisy", seed=seed)
        result = zo.minimize(problem.fun, problem.x0, max_queries=2000, seed=seed)
        assert problem.exact(result.x) < 0.15

    def test_rate_under_noise_does_not_vanish(self):
        """Once points of a search coincide within the noise, no later one would see anything."""
        for seed in range(3):
            result = minimize_with_noise(0.1 * START, seed)
            rates = result.history["learning_rate"]
            assert np.min(rates[len(rates) // 2 :]) > 1e-3 * np.max(rates)

    @pytest.mark.parametrize("seed", [0, 3, 4])
    def test_noise_that_seven_values_hide(self, seed):
        """The first seven values along the line happen to agree."""
        rng = np.random.default_rng(seed)
        calls = []

        def fun(x):
            calls.append(x)
            # minimize evaluates x0, eight probes and seven points along one of them
            factor = 0.1 if 9 < len(calls) <= 16 else 1.0
            return distance(x) + 0.03 * START * factor * rng.standard_normal()

        result, _ = minimize(fun, seed=seed)
        assert distance(result.x) < 0.05 * START


class TestSteps:
    @pytest.mark.parametrize("step", [1e-4, 1e-3, 1e-2])
    @pytest.mark.parametrize("seed", range(3))
    def test_are_seen_although_most_values_differ(self, step, seed):
        result, _ = minimize(lambda x: float(np.round(distance(x) / step) * step), seed=seed)
        assert distance(result.x) < max(0.03 * START, 3 * step)

    def test_equal_losses_do_not_end_all_motion(self):
        """A third of what there is to fall lies in ten steps; probes within one saw nothing."""
        problem = problems.make("quadratic", seed=2)
        step = 0.03 * problem.initial
        result = zo.minimize(
            lambda x: step * round(float(problem.exact(x)) / step),
            problem.x0,
            max_queries=4000,
            seed=2,
        )
        assert problem.exact(result.x) < 0.8 * problem.initial

    def test_smoothing_does_not_run_away(self):
        """Errors among 64 samples, another 64 at each step: they saturate far away."""
        problem, farthest = problems.make("digits-accuracy-noisy", seed=1), 0.0

        def fun(x, key):
            nonlocal farthest
            farthest = max(farthest, *(float(np.max(np.abs(leaf))) for leaf in x.values()))
            return problem.fun(x, key=key)

        zo.minimize(fun, problem.x0, max_queries=3000, seed=1)
        assert farthest < 1000


class TestAverage:
    @staticmethod
    def optimizer(**options):
        return zo.Optimizer(X0, method=zo.zo_mopi(learning_rate="auto"), seed=2, **options)

    def test_holds_the_iterates_at_searches(self):
        """With the weight 3 / (n + 2) after n searches whose minimum was hidden."""
        optimizer, rng = self.optimizer(), np.random.default_rng(2)
        average, averaged, hidden = X0, 0, 0
        for _ in range(200):
            x, points = optimizer.x, optimizer.ask()
            searched = optimizer.nit and len(points) > 8 and optimizer.learning_rate
            optimizer.tell([distance(p) + 0.3 * START * rng.standard_normal() for p in points])
            if searched:
                search = optimizer._point.tuning.search
                hidden += search.model.hidden
                weight = min(1.0, 3.0 / (hidden + 2.0))
                average = average + weight * (x - average)
                if weight < 1:
                    averaged += 1
                    assert np.allclose(optimizer.estimate, average, rtol=0, atol=1e-12)
        assert averaged > 5

    def test_there_is_none_without_noise(self):
        optimizer = self.optimizer()
        for _ in range(60):
            optimizer.tell([distance(x) for x in optimizer.ask()])
            assert optimizer.estimate is optimizer.x

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    @pytest.mark.parametrize("reuse", [False, True])
    def test_belongs_to_the_caller_as_iterates_do(self, dtype, reuse):
        """For good, or where buffers are reused until the next step."""
        rng = np.random.default_rng(0)
        method = zo.zo_mopi(learning_rate="auto")
        optimizer = zo.Optimizer({"a": X0.astype(dtype)}, method=method, reuse_buffers=reuse)

        def steps(count):
            for _ in range(count):
                points = optimizer.ask()
                optimizer.tell([distance(x["a"]) + START * rng.normal() for x in points])

        steps(150)
        average = optimizer.estimate["a"]
        assert average is not optimizer.x["a"]
        assert average.dtype == dtype
        assert not average.flags.writeable
        before = average.copy()
        optimizer.ask()[0]
        assert np.array_equal(average, before)
        steps(30)
        assert np.array_equal(average, before) != reuse

    def test_keeps_the_constraints(self):
        """On a sphere, which is not convex."""
        rng = np.random.default_rng(1)
        optimizer = zo.Optimizer(
            X0 + 1.0,
            method=zo.zo_mopi(learning_rate="auto"),
            project=lambda x: x / np.linalg.norm(x),
        )
        averages = 0
        for _ in range(150):
            points = optimizer.ask()
            optimizer.tell([distance(x) + START * rng.standard_normal() for x in points])
            averages += optimizer.estimate is not optimizer.x
            assert abs(np.linalg.norm(optimizer.estimate) - 1) < 1e-12
        assert averages > 20


class TestScales:
    @pytest.mark.parametrize("scale", [1e6, 1e12])
    def test_large_parameters(self, scale):
        x0 = scale * np.random.default_rng(0).standard_normal((8, 6))
        result, _ = minimize(lambda x: distance(x / scale), x0)
        assert result.fun < 1e-4 * distance(x0 / scale)

    @pytest.mark.parametrize("start", [0.0, 1.0])
    @pytest.mark.parametrize("scale", [1e-6, 1e-3])
    def test_small_parameters(self, scale, start):
        x0 = np.full((8, 6), start * scale)
        result, _ = minimize(lambda x: distance(x / scale), x0)
        assert result.fun < 1e-4 * distance(x0 / scale)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_far_away(self, dtype):
        result, _ = minimize(lambda x: distance(x / 1e6), X0.astype(dtype))
        assert result.fun < 1e-4 * START

    def test_far_away_in_float32(self):
        """Where a probe of the size of x0 would round away: at 1e12 the spacing is 65,536."""
        result, _ = minimize(lambda x: distance(x / 1e12), X0.astype("float32"), 8000)
        assert result.fun < 1e-3 * START


class TestShapes:
    @pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 1), (1, 7), (7, 1), (2, 2), (3, 4, 2)])
    def test_shape(self, shape):
        target = np.arange(1.0, 1.0 + np.prod(shape, dtype=int)).reshape(shape) / 5
        result, _ = minimize(lambda x: float(np.sum((x - target) ** 2)), np.zeros(shape), 2000)
        assert result.x.shape == shape
        assert result.fun < 1e-3 * np.sum(target**2)

    def test_dict_of_a_vector(self):
        target = np.arange(1.0, 6.0)
        result = zo.minimize(
            lambda p: float(np.sum((p["b"] - target) ** 2)), {"b": np.zeros(5)}, max_queries=2000
        )
        assert result.fun < 1e-3 * np.sum(target**2)

    def test_dict_of_both(self):
        target = np.arange(1.0, 6.0) / 5
        result = zo.minimize(
            lambda p: float(np.sum((p["b"] - target) ** 2)) + distance(p["W"]),
            {"b": np.zeros(5), "W": X0},
            max_queries=4000,
        )
        assert result.fun < 0.02 * (np.sum(target**2) + START)


class TestLibraries:
    @pytest.mark.parametrize(
        ("dtype", "left"),
        [("float64", 1e-5), ("float32", 1e-5), ("float16", 1e-3), ("bfloat16", 1e-2)],
    )
    def test_torch(self, dtype, left):
        torch = pytest.importorskip("torch", reason="torch is not installed")
        target = torch.tensor(TARGET)
        x0 = torch.zeros((8, 6), dtype=getattr(torch, dtype))
        result = zo.minimize(
            lambda x: torch.mean((x.double() - target) ** 2), x0, max_queries=3000
        )
        assert result.x.dtype == x0.dtype
        assert result.fun < left * START

    def test_float16_of_numpy(self):
        result, _ = minimize(lambda x: distance(x.astype("f8")), X0.astype("f2"))
        assert result.fun < 1e-3 * START

    def test_jax(self, make_backend):
        backend = make_backend("jax")
        x0 = backend.array(X0, "float32")
        result = zo.minimize(lambda x: distance(np.asarray(x)), x0, max_queries=800)
        assert result.x.dtype == x0.dtype
        assert result.fun < 0.1 * START


class TestOptions:
    def test_points_of_a_search_keep_the_bounds(self):
        optimizer = zo.Optimizer(
            X0, method=zo.zo_mopi(learning_rate="auto"), bounds=(0.0, 0.5), seed=0
        )
        searched = 0
        for _ in range(60):
            points = optimizer.ask()
            line = list(points)[optimizer.probe_queries :] if optimizer.nit else []
            searched += len(line)
            assert all(np.min(x) >= 0.0 and np.max(x) <= 0.5 for x in line)
            optimizer.tell([distance(x) for x in points])
        assert searched > 10

    def test_bounds(self):
        result, _ = minimize(distance, bounds=(0.0, 0.5))
        assert np.max(result.x) <= 0.5
        best = float(np.mean((np.minimum(TARGET, 0.5) - TARGET) ** 2))
        assert result.fun < best + 0.05 * (START - best)

    @pytest.mark.parametrize("width", [0.0, 1e-9])
    def test_bounds_that_leave_no_room(self, width):
        result, _ = minimize(distance, bounds=(0.0, width), max_queries=1000)
        assert np.all((result.x >= 0.0) & (result.x <= width))

    def test_projection(self):
        result, _ = minimize(distance, project=lambda x: x / max(1.0, np.linalg.norm(x)))
        assert np.linalg.norm(result.x) <= 1 + 1e-12
        best = (np.linalg.norm(TARGET) - 1) ** 2 / 48
        assert result.fun < best + 0.05 * (START - best)

    def test_vectorized_gives_the_same_run(self):
        sizes = set()

        def stack(xs):
            sizes.add(len(xs))
            return [distance(x) for x in xs]

        together = zo.minimize(stack, X0, max_queries=1000, vectorized=True)
        one_by_one, _ = minimize(distance, max_queries=1000)
        assert np.array_equal(together.x, one_by_one.x)
        assert np.array_equal(together.x_last, one_by_one.x_last)
        assert sizes == {1, 8, 8 + 3, 8 + 4, 8 + 7}  # coarse, fine, and the points for the noise

    @pytest.mark.parametrize("steps", [1, 16, 17, 60])
    def test_max_steps(self, steps):
        fun = Counted(distance)
        result = zo.minimize(fun, X0, max_steps=steps)
        assert (result.nit, result.status) == (steps, "max_steps")
        assert result.nfev == fun.calls
        assert result.fun <= START

    def test_max_time(self):
        began = time.perf_counter()
        result = zo.minimize(distance, X0, max_time=0.2)
        assert result.status == "max_time"
        assert time.perf_counter() - began < 2

    def test_target(self):
        result, _ = minimize(distance, target=1e-3)
        assert result.status == "target"
        assert result.fun <= 1e-3

    @pytest.mark.parametrize("queries", range(8 * 16, 8 * 41, 7))
    def test_small_budgets(self, queries):
        result, _ = minimize(distance, max_queries=queries)
        assert result.fun == distance(result.x) < START
        assert queries - 8 < result.nfev

    def test_given_learning_rate_is_kept(self):
        result, _ = minimize(distance, learning_rate=0.01, max_queries=1000)
        assert set(result.history["learning_rate"]) == {0.01}
        assert result.fun < START

    def test_given_smoothing_and_spectral_rank(self):
        result, _ = minimize(distance, smoothing=1e-3, spectral_rank=3)
        assert result.fun < 1e-5 * START
        optimizer = zo.Optimizer(
            X0, method=zo.zo_mopi(learning_rate="auto", smoothing=1e-3, spectral_rank=3)
        )
        for _ in range(20):
            assert optimizer.smoothing == 1e-3
            optimizer.tell([distance(x) for x in optimizer.ask()])
        assert optimizer.state.leaves[0].right.shape == (6, 3)

    @pytest.mark.parametrize(
        "name",
        [m for m in zo.methods() if getattr(zo, m)().estimator is not None and m != "mezo_svrg"],
    )
    def test_every_method_by_its_name(self, name):
        keys = set()

        def fun(x, key):
            keys.add(key)
            return distance(x)

        result = zo.minimize(fun, X0, method=name, max_queries=4000)
        assert result.fun < 0.1 * START
        assert None not in keys

    def test_spectral_rank_of_a_method_that_does_not_tune_it(self):
        result, _ = minimize(distance, method="zo-mopi-released", spectral_rank=2, max_queries=800)
        assert result.fun < START


class TestFailures:
    @pytest.mark.parametrize(("part", "left"), [(0.1, 1e-3), (0.3, 0.01), (0.5, 0.02)])
    @pytest.mark.parametrize("seed", range(4))
    def test_failures_by_chance(self, part, left, seed):
        rng = np.random.default_rng(seed)

        def fun(x):
            if rng.random() < part:
                raise ValueError("no luck")
            return distance(x)

        result, _ = minimize(fun, on_failure="skip", seed=seed)
        assert result.fun < left * START

    def test_nothing_but_failures(self):
        result, _ = minimize(lambda x: np.nan, max_queries=500)
        assert not result.success
        assert np.array_equal(result.x, X0)

    def test_failures_do_not_widen_the_smoothing(self):
        """Equal losses of a noisy function do, but these are none."""
        optimizer = searching()
        for t in range(40):
            optimizer.tell([noisy(x, 100 * t + i) for i, x in enumerate(optimizer.ask())])
        before = optimizer.smoothing
        for _ in range(20):
            optimizer.tell([np.nan for _ in optimizer.ask()])
        assert optimizer.smoothing == before

    def test_exception_carries_what_was_reached(self):
        def fun(x):
            if np.max(np.abs(x)) > 1.5:
                raise RuntimeError("too far")
            return distance(x)

        with pytest.raises(RuntimeError, match="too far") as raised:
            minimize(fun)
        assert raised.value.result.fun <= START


def searching(**options):
    return zo.Optimizer(X0, method=zo.zo_mopi(learning_rate="auto", **options), seed=3)


def noisy(x, t):
    """With noise that belongs to the step, so that a step can be made again."""
    return distance(x) + 0.01 * np.random.default_rng(t).standard_normal()


class TestResumption:
    @pytest.mark.parametrize("pending", [False, True])
    def test_pickled_in_the_middle(self, pending):
        """At every step of the first forty, which hold all kinds of plans."""
        optimizer, lengths, twins = searching(), set(), []

        def step(o):
            t = o.nit
            o.tell([noisy(x, 100 * t + i) for i, x in enumerate(o.ask())])

        for _ in range(40):
            if pending:
                lengths.add(len(optimizer.ask()))
            twins.append(pickle.dumps(optimizer))
            step(optimizer)
        assert not pending or {8, 15} < lengths
        for twin in map(pickle.loads, twins):
            while twin.nit < 40:
                step(twin)
            assert np.array_equal(twin.x, optimizer.x)
            assert np.array_equal(twin.estimate, optimizer.estimate)
            assert twin.learning_rate == optimizer.learning_rate > 0
            assert twin.smoothing == optimizer.smoothing

    def test_interrupted_at_every_evaluation(self):
        def go(stop_at):
            optimizer, calls = searching(), 0

            def fun(x):
                nonlocal calls
                calls += 1
                if calls == stop_at:
                    raise KeyboardInterrupt
                return distance(x)

            while optimizer.nit < 12:
                try:
                    optimizer.tell([fun(x) for x in optimizer.ask()])
                except KeyboardInterrupt:
                    continue
            return optimizer.x, calls

        expected, calls = go(0)
        assert not np.array_equal(expected, X0)
        assert calls >= 110
        for stop_at in range(1, calls + 1):
            x, more = go(stop_at)
            assert np.array_equal(x, expected)
            assert more > calls

    def test_interrupted_run_returns_what_was_reached(self):
        for stop_at in range(1, 121):
            fun = Counted(distance)

            def interrupted(x, fun=fun, stop_at=stop_at):
                if fun.calls + 1 == stop_at:
                    raise KeyboardInterrupt
                return fun(x)

            result = zo.minimize(interrupted, X0, max_queries=3000)
            assert result.status == "interrupted"
            assert result.nfev == stop_at
            assert result.fun == (np.inf if stop_at == 1 else distance(result.x))
            assert result.fun <= START or stop_at == 1


class TestBatches:
    @pytest.mark.parametrize("name", ["zo-mopi", "zo-muon", "mezo"])
    @pytest.mark.parametrize("seed", range(3))
    def test_rate_outlives_changing_keys(self, name, seed):
        """F at one point differs between keys by more than a search lowers it."""
        data = np.random.default_rng(0).standard_normal((64, 8, 6)) + TARGET

        def fun(x, key):
            batch = np.random.default_rng(key).choice(data, 4)
            return 0.5 * float(np.mean(np.sum((x - batch) ** 2, axis=(1, 2))))

        result = zo.minimize(fun, X0, method=name, max_queries=6000, seed=seed)
        mean = np.mean(data, axis=0)
        assert np.sum((result.x_last - mean) ** 2) < 0.25 * np.sum(mean**2)
        assert result.history["learning_rate"][-1] > 1e-6


class TestSamples:
    """Another sample of data at each step, the same for all points of a step."""

    @staticmethod
    def excess(method, batch, seed, steps=400):
        rng = np.random.default_rng(seed)
        rows = rng.standard_normal((2000, 24))
        target = 0.3 * np.outer(rng.standard_normal(24), rng.standard_normal(16))
        values = rows @ target + 3.0 * rng.standard_normal((2000, 16))

        def loss(x, chosen=slice(None)):
            return float(np.mean((rows[chosen] @ x - values[chosen]) ** 2))

        optimizer = zo.Optimizer(np.zeros((24, 16)), method=method, seed=seed)
        for _ in range(steps):
            chosen = rng.integers(0, len(rows), batch)
            optimizer.tell([loss(x, chosen) for x in optimizer.ask()])
        least = loss(np.linalg.lstsq(rows, values)[0])
        excess = (loss(optimizer.x) - least) / (loss(np.zeros((24, 16))) - least)
        return excess, optimizer

    # The best of the rates 0.003, 0.01, 0.03 and 0.1, falling to zero, left 0.78 and 0.66 on
    # average over three seeds after 400 steps. Where the rate followed the last lines alone, it
    # fell too soon: 0.85 were left after 1,500 steps.
    @pytest.mark.parametrize(
        ("batch", "steps", "left"), [(8, 400, 0.87), (64, 400, 0.7), (8, 1500, 0.7)]
    )
    def test_is_as_good_as_a_search_for_the_rate(self, batch, steps, left):
        method = zo.zo_mopi(learning_rate="auto", rank=4)
        found = [self.excess(method, batch, s, steps) for s in range(4)]
        assert np.mean([excess for excess, _ in found]) < left
        for _, optimizer in found:
            assert optimizer._point.tuning.descent.sampled
            assert optimizer.learning_rate > 1e-4

    @staticmethod
    def classifier(seed):
        """Return the loss of a linear classifier, which is log(4) at zero for any sample."""
        rng = np.random.default_rng(seed)
        rows = rng.standard_normal((1000, 20))
        labels = np.argmax(rows @ rng.standard_normal((20, 4)), axis=1)

        def fun(x, key=None):
            chosen = slice(None)
            if key is not None:
                chosen = np.random.default_rng(key).integers(0, len(rows), 8)
            scores = rows[chosen] @ x
            partition = np.log(np.sum(np.exp(scores), axis=1))
            right = np.take_along_axis(scores, labels[chosen, None], axis=1)[:, 0]
            return float(np.mean(partition - right))

        return fun

    @staticmethod
    def judged_sampled(monkeypatch, fun, x0, queries):
        """Return whether a run took its lines for lines on samples."""
        seen, told = [], RateSearch.told

        def listening(self, *args, sampled=False):
            seen.append(sampled)
            return told(self, *args, sampled=sampled)

        with monkeypatch.context() as patch:
            patch.setattr(RateSearch, "told", listening)
            zo.minimize(fun, x0, max_queries=queries)
        return any(seen)

    def test_a_key_tells_of_samples(self, monkeypatch):
        """Losses at the start, which are the same for all samples here, do not."""
        fun = self.classifier(0)
        assert self.judged_sampled(monkeypatch, fun, np.zeros((20, 4)), 600)
        without = lambda x: fun(x)  # noqa: E731
        assert not self.judged_sampled(monkeypatch, without, np.zeros((20, 4)), 600)

    @pytest.mark.parametrize("noise", [0.0, 0.01])
    def test_a_key_that_is_not_used_tells_nothing(self, monkeypatch, noise):
        """The noise is drawn anew at each call, and the same with and without the key."""

        def losses():
            rng = np.random.default_rng(0)
            return lambda x, key: distance(x) + noise * rng.standard_normal()

        assert not self.judged_sampled(monkeypatch, losses(), X0, 3000)
        keyed, same = losses(), losses()
        whole = zo.minimize(keyed, X0, max_queries=3000)
        plain = zo.minimize(lambda x: same(x, 0), X0, max_queries=3000)
        assert np.array_equal(whole.x, plain.x)

    def test_a_recorded_run_knows_of_samples(self, tmp_path):
        fun, path = self.classifier(0), tmp_path / "run.zomopi"
        whole = zo.minimize(fun, np.zeros((20, 4)), max_queries=1000, journal=path)
        assert np.array_equal(zo.replay(path), whole.x_last)
        again = zo.resume(path, fun)
        assert np.array_equal(again.x_last, whole.x_last)

    def test_expected_samples(self, tmp_path):
        """A journal knows of them: what is resumed goes the same way."""
        path, fun = tmp_path / "run.zomopi", self.classifier(0)
        method = zo.zo_mopi(learning_rate="auto")

        def tell(optimizer, steps):
            for _ in range(steps):
                optimizer.tell([fun(x, optimizer.nit) for x in optimizer.ask()])
            return optimizer

        start = {"x0": np.zeros((20, 4)), "method": method}
        whole = tell(zo.Optimizer(**start, samples=True), 120)
        assert whole._point.tuning.descent.sampled
        assert not tell(zo.Optimizer(**start), 120)._point.tuning.descent.sampled
        tell(zo.Optimizer(**start, samples=True, journal=path), 60).close()
        assert np.array_equal(tell(zo.Optimizer.resume(path), 60).x, whole.x)
        fixed = zo.Optimizer(X0, method=zo.zo_mopi(learning_rate=0.1), samples=True)
        assert fixed._point.tuning is None
        with pytest.raises(ValueError, match="samples"):
            zo.Optimizer(X0, samples=1)

    def test_a_function_that_repeats_itself_is_no_sample(self):
        optimizer = zo.Optimizer(X0, method=zo.zo_mopi(learning_rate="auto"))
        for _ in range(30):
            optimizer.tell([distance(x) for x in optimizer.ask()])
        assert optimizer._point.tuning.search.found
        assert not optimizer._point.tuning.descent.sampled


class TestMemory:
    @pytest.mark.parametrize(
        ("shape", "evaluations"),
        [((4, 4), 32), ((40, 60), 100), ((200, 100), 64 * 100 / 24), ((64, 1000), 320)],
    )
    def test_follows_the_number_of_coordinates(self, shape, evaluations):
        optimizer = zo.Optimizer(np.zeros(shape), method=zo.zo_mopi(learning_rate="auto"))
        memory = optimizer.method.matrices.momentum.memory
        assert np.isclose(8 * memory, evaluations)

    def test_given_momentum_stays(self):
        method = zo.zo_mopi(learning_rate="auto", momentum=0.7)
        assert zo.Optimizer(X0, method=method).method.matrices.momentum.beta == 0.7


class TestGivenRate:
    @pytest.mark.parametrize("constant", [0.0, 1e6])
    def test_smoothing_does_not_collapse(self, constant):
        rate = zo.linear_decay(0.1, 400)
        for seed in range(3):
            method = zo.zo_mopi(learning_rate=rate, smoothing="auto")
            optimizer = zo.Optimizer(X0, method=method, seed=seed)
            first = optimizer.smoothing
            for _ in range(400):
                optimizer.tell([distance(x) + constant for x in optimizer.ask()])
            assert optimizer.smoothing >= 0.99 * first
            assert distance(optimizer.x) < 0.05 * START
