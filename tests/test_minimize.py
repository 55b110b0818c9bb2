"""The loop: counting, stopping, the best point, failures, interruption."""

import functools
import re
import time
import warnings

import numpy as np
import pytest

import zomopi_core as zo
from zomopi_core.draws import step_key

TARGET = np.outer(np.arange(1.0, 7.0), np.ones(5)) / 6

# central differences, eight evaluations at every step
UNTUNED = zo.zo_mopi(learning_rate=zo.linear_decay(0.5, 100))
UNTUNED_LONG = zo.zo_mopi(learning_rate=zo.linear_decay(0.5, 499))


def distance(x):
    return float(np.sum((x - TARGET) ** 2))


class Recorded:
    """A function that remembers its calls."""

    def __init__(self, fun=distance):
        self.fun, self.points, self.losses = fun, [], []

    def __call__(self, x):
        self.points.append(np.array(x))
        self.losses.append(self.fun(x))
        return self.losses[-1]


X0 = np.zeros((6, 5))


class TestResult:
    @pytest.mark.parametrize("difference", ["central", "forward", "leave-one-out"])
    def test_counts_every_call_and_returns_the_best(self, difference):
        fun = Recorded()
        method = zo.zo_mopi(rank=3, difference=difference, learning_rate=0.1)
        result = zo.minimize(fun, X0, method=method, max_queries=500)
        assert result.nfev == len(fun.losses)
        per_step = method.evaluations_per_step
        assert 500 - per_step < result.nfev <= 500
        assert result.nit == (500 - 3) // per_step
        assert result.fun == min(fun.losses)
        assert distance(result.x) == result.fun
        assert result.success
        assert result.status == "max_queries"
        assert any(np.array_equal(result.x, p) for p in fun.points)

    @pytest.mark.parametrize(("budget", "steps", "queries"), [(8, 1, 8), (17, 2, 17), (18, 2, 18)])
    def test_small_budget_goes_into_steps(self, budget, steps, queries):
        fun = Recorded()
        result = zo.minimize(fun, X0, max_queries=budget)
        assert (result.nit, result.nfev, len(fun.losses)) == (steps, queries, queries)
        assert result.fun == min(fun.losses) == distance(result.x)

    def test_last_iterate_is_a_candidate(self):
        """A step that leads below all probes, as the last one of a parabola's first descent."""
        fun = Recorded(lambda x: float(np.sum((x - 50.0) ** 2)))
        result = zo.minimize(fun, X0, method=zo.zo_mopi(learning_rate=1.0), max_queries=203)
        assert result.fun == fun.losses[-1] == min(fun.losses)
        assert np.array_equal(result.x, result.x_last)

    def test_never_worse_than_the_start(self):
        fun = Recorded()
        x0 = np.array(TARGET)
        result = zo.minimize(fun, x0, method=zo.zo_mopi(learning_rate=1.0), max_queries=200)
        assert result.fun == 0.0
        assert np.array_equal(result.x, x0)

    def test_history(self):
        result = zo.minimize(distance, X0, method=UNTUNED, max_queries=803)
        history = result.history
        assert set(history) == {"queries", "loss", "best", "learning_rate", "elapsed"}
        assert {len(column) for column in history.values()} == {result.nit} == {100}
        assert np.array_equal(history["queries"], 1 + 8 * np.arange(1, 101))
        assert np.all(np.diff(history["best"]) <= 0)
        assert np.all(history["loss"] >= history["best"])
        assert np.all(np.diff(history["elapsed"]) > 0)
        assert np.allclose(history["learning_rate"], 0.5 * np.linspace(1, 0, 101)[:-1])

    def test_short_runs_have_a_rate_that_falls_on_a_line(self):
        """Where there is no time to measure one."""
        result = zo.minimize(distance, X0, max_queries=8 * 12 + 3)
        # the entries of the first step have a root mean square of
        # 0.5 / sqrt(T) max(rms(x0), 1 / sqrt(n)), with T = 12, n = 5 and k = 3
        rate = result.history["learning_rate"]
        assert np.isclose(rate[0], 0.5 / np.sqrt(12) / np.sqrt(5) * np.sqrt(30 / 3))
        assert np.allclose(rate, rate[0] * np.linspace(1, 0, 13)[:-1])

    def test_converges_with_nothing_tuned(self, backend):
        result = zo.minimize(
            lambda x: float(np.sum((backend.numpy(x) - TARGET) ** 2)),
            backend.array(X0),
            max_queries=6000,
        )
        assert result.fun < 0.01 * distance(X0)
        assert type(result.x) is type(backend.array(X0))

    def test_repr(self):
        text = repr(zo.minimize(lambda p: float(p["W"][0, 0] ** 2), {"W": X0}, max_queries=20))
        assert "nfev: 18" in text
        assert "W array of shape (6, 5), float64" in text
        assert len(text.splitlines()) == 7

    def test_losses_may_stay_arrays(self, backend):
        target = backend.array(TARGET)
        sums = backend.xp.sum

        def on_device(x):
            return sums((x - target) ** 2)

        a = zo.minimize(on_device, backend.array(X0), max_queries=100)
        b = zo.minimize(lambda x: float(on_device(x)), backend.array(X0), max_queries=100)
        assert np.allclose(backend.numpy(a.x), backend.numpy(b.x), atol=1e-9)
        assert isinstance(a.fun, float)


class TestAverages:
    """Where noise hides the minimum the result is an average, and no luckiest point is kept."""

    START = distance(X0)

    def noisy(self):
        rng = np.random.default_rng(0)
        return Recorded(lambda x: distance(x) + 0.3 * self.START * rng.standard_normal())

    def test_interrupted(self):
        """The loss is one that a line search measured, not the lowest of all."""
        fun = self.noisy()

        def callback(iteration):
            if iteration.step == 180:
                raise KeyboardInterrupt

        result = zo.minimize(fun, X0, max_queries=5000, callback=callback)
        assert result.status == "interrupted"
        assert distance(result.x) < 0.9 * distance(result.x_last)
        assert result.history["best"][-1] == min(fun.losses) < result.fun
        # means of three values, each within 0.3 of F there, which is 0.1 or less
        assert abs(result.fun) < 0.4 * self.START

    def test_target_is_confirmed_there(self):
        fun = self.noisy()
        target = 0.02 * self.START  # above the minimum, and what is seen by luck all the time
        result = zo.minimize(fun, X0, max_queries=5000, target=target)
        assert result.status == "target"
        assert result.fun == fun.losses[-1] <= target
        assert np.array_equal(fun.points[-1], result.x)

    def test_is_confirmed_at_the_end(self):
        fun = self.noisy()
        result = zo.minimize(fun, X0, max_queries=3000)
        assert result.fun == fun.losses[-2]
        assert np.array_equal(fun.points[-2], result.x)
        assert np.array_equal(fun.points[-1], result.x_last)


class TestStopping:
    def test_needs_a_rule(self):
        with pytest.raises(ValueError, match="nothing would stop this run: give max_queries"):
            zo.minimize(distance, X0)

    def test_budget_below_a_step(self):
        with pytest.raises(
            ValueError, match="max_queries=7 does not pay for one step, which takes 8"
        ):
            zo.minimize(distance, X0, max_queries=7)

    def test_steps(self):
        fun = Recorded()
        result = zo.minimize(fun, X0, max_steps=5)
        assert (result.nit, result.status) == (5, "max_steps")
        assert result.nfev == len(fun.losses) == 1 + 5 * 8 + 2

    def test_target(self):
        fun = Recorded()
        result = zo.minimize(fun, X0, max_queries=20_000, target=0.5)
        assert result.status == "target"
        assert result.success
        assert result.fun <= 0.5
        assert result.nfev == len(fun.losses) < 20_000

    def test_target_missed(self):
        result = zo.minimize(distance, X0, max_queries=100, target=1e-9)
        assert (result.status, result.success) == ("max_queries", False)

    def test_target_is_not_believed_of_a_lucky_loss(self):
        rng = np.random.default_rng(0)
        fun = Recorded(lambda x: distance(x) + 3.0 * rng.standard_normal())
        result = zo.minimize(fun, X0, max_queries=2000, target=distance(X0) - 6.0)
        # among 2,000 losses some are two deviations low from the start; the target stands for F
        assert result.nfev > 50
        assert result.nfev == len(fun.losses) <= 2000

    def test_time(self):
        began = time.perf_counter()
        result = zo.minimize(distance, X0, max_time=0.2)
        assert result.status == "max_time"
        assert 0.2 <= time.perf_counter() - began < 2

    def test_stagnation(self):
        result = zo.minimize(lambda x: 1.0, X0, max_queries=100_000, stagnation=7)
        assert result.status == "stagnation"
        assert result.nit == 7

    def test_callback_may_answer_with_an_array(self, backend):
        def callback(iteration):
            return backend.array(iteration.step >= 2, "bool")

        result = zo.minimize(distance, X0, max_queries=1000, callback=callback)
        assert (result.status, result.nit) == ("callback", 2)
        stop = zo.minimize(distance, X0, max_steps=9, callback=lambda i: np.bool_(i.step == 3))
        assert stop.nit == 3

    @pytest.mark.parametrize("how", ["true", "exception"])
    def test_callback(self, how):
        seen = []

        def callback(iteration):
            seen.append(iteration)
            if iteration.step == 3:
                if how == "exception":
                    raise StopIteration
                return True
            return np.array([1.0, 2.0])  # neither True nor an error

        result = zo.minimize(distance, X0, method=UNTUNED, max_queries=1000, callback=callback)
        assert (result.status, result.success, result.nit) == ("callback", True, 3)
        assert [i.step for i in seen] == [1, 2, 3]
        assert seen[-1].queries == 25
        assert np.array_equal(seen[-1].x, result.x_last)
        assert seen[-1].best == min(i.best for i in seen)

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"max_queries": 0}, "max_queries must be an integer of at least 1, got 0"),
            ({"max_queries": 10.0}, "max_queries must be an integer of at least 1, got 10.0"),
            ({"max_steps": -1}, "max_steps must be an integer of at least 1, got -1"),
            ({"max_time": 0}, "max_time must be a positive number, got 0"),
            ({"max_steps": 1, "stagnation": 0}, "stagnation must be an integer of at least 1"),
            ({"max_steps": 1, "target": float("nan")}, "target must be a finite number, got nan"),
            (
                {"max_steps": 1, "on_failure": "ignore"},
                "on_failure must be one of 'auto', 'skip', 'retry', 'raise'",
            ),
            ({"max_steps": 1, "vectorized": "no"}, "vectorized must be True or False, got 'no'"),
            ({"max_steps": 1, "progress": 1}, "progress must be True or False, got 1"),
            (
                {"max_steps": 1, "on_failure": 3},
                "on_failure must be one of 'auto', 'skip', 'retry', 'raise', got 3",
            ),
            ({"max_steps": 1, "on_failure": {"nan": "skip"}}, "on_failure's keys must be one of"),
        ],
    )
    def test_bad_options(self, options, text):
        with pytest.raises(ValueError, match=text):
            zo.minimize(distance, X0, **options)


class TestNoise:
    def test_small_budgets_are_checked_too(self):
        """The loss of the result is unbiased: a fresh evaluation at a point chosen before."""
        errors = []
        for seed in range(60):
            rng = np.random.default_rng(seed)
            result = zo.minimize(
                lambda x, rng=rng: distance(x) + 5 * rng.standard_normal(),
                X0,
                max_queries=72,
                seed=seed,
            )
            errors.append(result.fun - distance(result.x))
        # The lower of two fresh losses lies 5 / sqrt(pi) below on average, the lowest of 72
        # old ones 12. Four standard errors around the former:
        assert abs(np.mean(errors) + 5 / np.sqrt(np.pi)) < 4 * 5 / np.sqrt(60)

    def test_result_is_evaluated_again(self):
        rng = np.random.default_rng(0)
        fun = Recorded(lambda x: distance(x) + 0.5 * rng.standard_normal())
        result = zo.minimize(fun, X0, max_queries=3000)
        assert result.nfev == len(fun.losses)
        # the lowest of 3,000 losses is some 3 deviations too low; the result's is a fresh one
        assert result.fun > min(fun.losses)
        assert result.fun in fun.losses[-2:]

    def test_common_random_numbers(self):
        keys = []

        def fun(x, *, key):
            keys.append(key)
            return distance(x) + 10 * np.random.default_rng(key).standard_normal()

        result = zo.minimize(fun, X0, method=UNTUNED_LONG, max_queries=4000, seed=3)
        assert len(keys) == result.nfev
        by_step = np.reshape(keys[1:-2], (-1, 8))
        assert np.all(by_step == by_step[:, :1])
        assert by_step[:, 0].tolist() == [step_key(3, t) for t in range(result.nit)]
        # noise that all evaluations of a step share cancels in its differences
        assert distance(result.x_last) < 0.05 * distance(X0)

    def test_bound_and_first_keys_are_left_alone(self):
        def fun(x, key=0):
            assert key == 7
            return distance(x)

        assert zo.minimize(functools.partial(fun, key=7), X0, max_queries=20).nit == 2
        assert zo.minimize(lambda key: distance(key), X0, max_queries=20).nit == 2

    def test_key_of_a_vectorized_function(self):
        def fun(x, key=None):
            assert key is not None
            return np.sum((x - TARGET) ** 2, axis=(1, 2))

        assert zo.minimize(fun, X0, max_queries=100, vectorized=True).nit == 12


class TestVectorized:
    def test_same_path_as_one_by_one(self, backend):
        target = backend.array(TARGET)
        sums = backend.xp.sum

        def stack(x):
            return sums((x - target) ** 2, axis=(1, 2))

        calls = []

        def counted(x):
            calls.append(x.shape[0])
            return stack(x)

        same = {"method": UNTUNED, "max_queries": 400}
        a = zo.minimize(counted, backend.array(X0), vectorized=True, **same)
        b = zo.minimize(lambda x: float(sums((x - target) ** 2)), backend.array(X0), **same)
        assert np.allclose(backend.numpy(a.x), backend.numpy(b.x), atol=1e-9)
        assert sum(calls) == a.nfev
        assert set(calls) == {1, 8}

    def test_dict(self):
        def fun(p):
            return np.sum(p["W"] ** 2, axis=(1, 2)) + np.sum((p["b"] - 1) ** 2, axis=1)

        x0 = {"W": np.ones((4, 3)), "b": np.zeros(2)}
        result = zo.minimize(fun, x0, max_queries=3000, vectorized=True)
        assert result.fun < 0.1 * 14

    @pytest.mark.parametrize(
        ("losses", "text"),
        [(lambda q: 1.0, "float 1.0"), (lambda q: None, "NoneType"), (lambda q: {1.0}, "set")],
    )
    def test_wrong_type(self, losses, text):
        with pytest.raises(TypeError, match=f"1 losses are needed, as a 1-d array .*{text}"):
            zo.minimize(lambda x: losses(len(x)), X0, max_queries=100, vectorized=True)

    @pytest.mark.parametrize(
        ("losses", "text"),
        [
            (lambda q: np.ones(q + 1), r"got shape \(2,\)"),
            (lambda q: np.ones((q, 1)), r"got shape \(1, 1\)"),
            (lambda q: [1.0] * (q + 2), r"got shape \(3,\)"),
        ],
    )
    def test_wrong_shape(self, losses, text):
        with pytest.raises(ValueError, match=f"must return 1 losses .*{text}"):
            zo.minimize(lambda x: losses(len(x)), X0, max_queries=100, vectorized=True)


class TestConstraints:
    def test_result_is_feasible(self):
        fun = Recorded()
        result = zo.minimize(fun, X0, max_queries=3000, bounds=(0.0, 0.5))
        assert np.min(result.x) >= 0
        assert np.max(result.x) <= 0.5
        assert result.fun == distance(result.x)
        assert result.fun < 1.1 * distance(np.clip(TARGET, 0, 0.5))
        assert result.nfev == len(fun.losses)

    @pytest.mark.parametrize("difference", ["central", "forward", "leave-one-out"])
    @pytest.mark.parametrize("queries", [20, 72, 400])
    def test_loss_is_that_of_the_result(self, difference, queries):
        """Not the mean of the losses around it, which a wide probe makes much larger."""
        method = zo.zo_mopi(smoothing=1.0, difference=difference)
        result = zo.minimize(distance, X0, max_queries=queries, bounds=(0, 1), method=method)
        assert result.fun == distance(result.x)
        assert result.nfev <= queries

    def test_start_that_is_the_best(self):
        method = zo.zo_mopi(smoothing=1.0)
        result = zo.minimize(distance, TARGET, max_queries=100, bounds=(0, 1), method=method)
        assert result.fun == 0
        assert np.array_equal(result.x, TARGET)

    def test_target_is_met_by_an_iterate(self):
        """The mean of a wide probe's losses never falls to the target; an iterate's does."""
        result = zo.minimize(
            lambda x: float(np.sum(x**2)),
            np.ones((4, 4)),
            max_queries=4000,
            bounds=(0, 2),
            target=1e-3,
            method=zo.zo_mopi(smoothing=0.05),
        )
        assert (result.status, result.success) == ("target", True)
        assert result.fun == np.sum(result.x**2) <= 1e-3

    def test_projection(self):
        result = zo.minimize(
            distance, X0 + 1.0, max_queries=2000, project=lambda x: x / np.linalg.norm(x)
        )
        assert np.isclose(np.linalg.norm(result.x), 1)
        assert np.isclose(np.linalg.norm(result.x_last), 1)


class TestFailures:
    def test_minus_infinity_is_no_best_loss(self):
        result = zo.minimize(
            lambda x: -np.inf if x.sum() > 1 else float(-x.sum()), X0, max_queries=2000
        )
        assert np.isfinite(result.fun)
        assert result.fun == -np.sum(result.x)
        assert "evaluations failed, the first with a loss of -inf" in result.message

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("size", [1e30, 5e35, 1e38, 1e300, 1e308])
    def test_huge_losses_poison_nothing(self, backend, dtype, size):
        """Products of a coefficient and a probe may overflow where neither does."""
        rng = np.random.default_rng(0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = zo.minimize(
                lambda x: size * rng.standard_normal(),
                {"W": backend.array(X0, dtype), "b": backend.array(X0[0], "float32")},
                max_queries=100,
                method=zo.zo_mopi(rank=3, refresh_every=4, learning_rate=0.1),
            )
        assert all(np.all(np.isfinite(backend.numpy(x))) for x in result.x_last.values())

    def test_what_failed_is_told(self):
        def fails(x):
            raise NameError("typo")

        result = zo.minimize(fails, X0, max_queries=400, on_failure="skip")
        assert not result.success
        assert result.message.endswith("failed, the first with NameError: typo.")

    def test_non_finite_losses_are_skipped(self):
        rng = np.random.default_rng(0)
        fun = Recorded(lambda x: distance(x) if rng.random() > 0.3 else np.nan)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = zo.minimize(fun, X0, max_queries=12_000)
        assert result.fun < 0.05 * distance(X0)
        assert np.isfinite(result.fun)
        assert np.all(np.isfinite(result.x_last))

    def test_all_losses_non_finite(self):
        result = zo.minimize(lambda x: np.nan, X0, max_queries=100)
        assert np.array_equal(result.x, X0)
        assert np.array_equal(result.x_last, X0)
        assert result.fun == np.inf
        assert not result.success
        assert f"{result.nfev} of {result.nfev} evaluations failed" in result.message
        assert "the first with a loss of nan" in result.message

    def test_exception_is_raised_with_what_was_reached(self):
        fun = Recorded()

        def fails(x):
            if len(fun.losses) == 100:
                raise ZeroDivisionError("simulator")
            return fun(x)

        with pytest.raises(ZeroDivisionError, match="simulator") as caught:
            zo.minimize(fails, X0, method=UNTUNED, max_queries=1000)
        result = caught.value.result
        assert (result.status, result.success) == ("failed", False)
        assert result.nit == 12
        assert result.nfev == 101
        # the step in flight has not been counted among the points seen
        assert result.fun == min(fun.losses[:97]) == distance(result.x)
        assert "after 12 steps and 101 evaluations" in caught.value.__notes__[0]

    def test_exception_can_be_skipped(self):
        rng = np.random.default_rng(0)

        def fails(x):
            if rng.random() < 0.3:
                raise ZeroDivisionError
            return distance(x)

        result = zo.minimize(fails, X0, max_queries=12_000, on_failure="skip")
        assert result.fun < 0.05 * distance(X0)

    @pytest.mark.parametrize("on_failure", ["raise", {"non-finite": "raise"}])
    def test_non_finite_can_be_raised(self, on_failure):
        with pytest.raises(zo.NonFiniteLossError, match="fun returned a loss that is not finite"):
            zo.minimize(lambda x: np.inf, X0, max_queries=100, on_failure=on_failure)

    def test_vectorized_exception_can_be_skipped(self):
        count = [0]

        def fails(x):
            count[0] += 1
            if count[0] % 3 == 0:
                raise ZeroDivisionError
            return np.sum((x - TARGET) ** 2, axis=(1, 2))

        result = zo.minimize(fails, X0, max_queries=9000, vectorized=True, on_failure="skip")
        assert result.fun < 0.05 * distance(X0)


class TestInterrupt:
    @pytest.mark.parametrize("at", [1, 2, 9, 10, 50, 99, 100])
    def test_at_any_evaluation(self, at):
        fun = Recorded()

        def interrupted(x):
            if len(fun.losses) == at - 1:
                raise KeyboardInterrupt
            return fun(x)

        result = zo.minimize(interrupted, X0, method=UNTUNED, max_queries=99)
        if at > 99:
            assert result.status == "max_queries"
            return
        assert (result.status, result.success) == ("interrupted", False)
        assert "Interrupted" in result.message
        assert result.nfev == at
        done = 1 + 8 * result.nit
        if at > 1:
            assert result.fun == min(fun.losses[: max(1, done)])
            assert distance(result.x) == result.fun

    def test_in_the_callback(self):
        def callback(iteration):
            if iteration.step == 4:
                raise KeyboardInterrupt

        result = zo.minimize(distance, X0, max_queries=1000, callback=callback)
        assert (result.status, result.nit) == ("interrupted", 4)
        assert len(result.history["loss"]) == 4


class TestProgress:
    def test_shows_and_leaves_results_alone(self, capsys, monkeypatch):
        pytest.importorskip("rich", reason="rich is not installed")
        monkeypatch.setenv("COLUMNS", "80")
        shown = zo.minimize(distance, X0, method=UNTUNED, max_queries=200, progress=True)
        plain = zo.minimize(distance, X0, method=UNTUNED, max_queries=200)
        assert np.array_equal(shown.x, plain.x)
        captured = capsys.readouterr()
        line = captured.err.strip().splitlines()[-1]
        # bar, queries, loss, best, queries per second and the time left, in 80 columns
        assert re.fullmatch(
            r"\S+ 193 queries  loss \S+  best \S+  [\d,]+/s \d+:\d\d", line.strip()
        ), line
        assert len(line) <= 80
        assert captured.out == ""

    def test_only_time_limits(self, capsys):
        pytest.importorskip("rich", reason="rich is not installed")
        assert zo.minimize(distance, X0, max_time=0.1, progress=True).status == "max_time"


def test_caller_arrays_and_generators_are_untouched():
    import random

    torch = pytest.importorskip("torch", reason="its generator is one of those looked at")
    torch_before = torch.get_rng_state()
    x0 = np.random.default_rng(0).standard_normal((6, 5))
    copy = x0.copy()
    x0.flags.writeable = False
    before = random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002

    def spoils(x):
        loss = distance(x)
        x[:] = np.nan  # the candidate is the function's own
        return loss

    result = zo.minimize(spoils, x0, max_queries=500)
    zo.minimize(lambda x: x.sum(), torch.ones((4, 3)), max_queries=100)
    assert bool((torch.get_rng_state() == torch_before).all())
    assert np.array_equal(x0, copy)
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == before  # noqa: NPY002
    assert result.fun == distance(result.x)
