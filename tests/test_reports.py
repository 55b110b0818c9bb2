"""`report_every`: the same steps, whose losses are looked at later and several at a time."""

import math

import numpy as np
import pytest

import zomopi_core as zo

TARGET = np.outer(np.arange(1.0, 7.0), np.ones(5)) / 6
X0 = np.zeros((6, 5))
GIVEN = zo.zo_mopi(learning_rate=0.02)


def distance(x):
    return float(np.sum((x - TARGET) ** 2))


def keyed(x, key=None):
    return distance(x) + (0.0 if key is None else 1e-3 * (key % 7))


def of_a_stack(x):
    return np.sum((x - TARGET) ** 2, axis=(1, 2))


def same_steps(a, b):
    np.testing.assert_array_equal(a.x_last, b.x_last)
    for name in ("queries", "loss", "learning_rate"):
        np.testing.assert_array_equal(a.history[name], b.history[name])
    assert (a.nfev, a.nit, a.status) == (b.nfev, b.nit, b.status)


class TestSteps:
    @pytest.mark.parametrize("every", [2, 7, 10**6])
    @pytest.mark.parametrize(
        ("fun", "options"),
        [
            (distance, {"method": GIVEN}),
            (distance, {}),
            (distance, {"learning_rate": 0.02, "reuse_buffers": True}),
            (keyed, {"method": "mezo_svrg"}),
            (of_a_stack, {"method": GIVEN, "vectorized": True}),
            (distance, {"method": GIVEN, "timeout": 60.0}),
        ],
        ids=["given", "tuned", "smoothing tuned", "snapshots", "stacks", "timeout"],
    )
    def test_are_the_same(self, fun, options, every):
        options = {"max_queries": 600, "seed": 3, **options}
        plain = zo.minimize(fun, X0, **options)
        result = zo.minimize(fun, X0, report_every=every, **options)
        same_steps(result, plain)
        assert result.fun >= plain.fun
        assert np.all(np.diff(result.history["elapsed"]) > 0)

    @pytest.mark.parametrize("dtypes", [("float32", "float64"), (None, "float32")])
    def test_losses_of_several_kinds(self, make_backend, dtypes):
        """Numbers of the host beside arrays, in two precisions."""
        backend = make_backend("torch")
        target, calls = backend.array(TARGET), [0]

        def fun(x):
            loss = ((x - target) ** 2).sum()
            calls[0] += 1
            dtype = dtypes[calls[0] // 8 % 2]
            return float(loss) if dtype is None else loss.to(backend.dtype(dtype))

        options = {"method": GIVEN, "max_steps": 20}
        plain = zo.minimize(fun, backend.array(X0), **options)
        calls[0] = 0
        result = zo.minimize(fun, backend.array(X0), report_every=6, **options)
        np.testing.assert_array_equal(result.history["loss"], plain.history["loss"])
        np.testing.assert_array_equal(*(backend.numpy(r.x_last) for r in (result, plain)))


class TestReports:
    def test_only_their_points_become_the_best(self):
        """F falls until step 12 and rises then: with reports at 10 and 20, step 10 is the best."""
        losses = []

        def fun(x):
            losses.append(distance(x) + 10.0 * max(0, len(losses) - 1 - 12 * 8))
            return losses[-1]

        result = zo.minimize(fun, X0, method=GIVEN, max_steps=30, report_every=10, guard=False)
        steps = np.reshape(losses[1:-2], (30, 8))
        lowest = min(losses[0], *(np.min(steps[i - 1]) for i in (10, 20, 30)))
        assert lowest == np.min(steps[9]) > np.min(steps)
        assert result.fun == losses[-2]  # evaluated once more, where F has risen
        assert result.history["best"][9] == lowest
        assert result.history["best"][8] == losses[0]
        assert distance(result.x) == lowest

    @pytest.mark.parametrize(
        ("options", "steps"),
        [
            ({"max_steps": 13}, [5, 10, 13]),
            ({"max_queries": 8 * 13 + 3}, [5, 10, 13]),
            ({"max_queries": 8 * 15 + 7}, [5, 10, 15]),
            ({"max_steps": 4}, [4]),
        ],
    )
    def test_the_last_step_of_a_budget_is_one(self, options, steps):
        seen = []
        zo.minimize(
            distance,
            X0,
            method=GIVEN,
            report_every=5,
            callback=lambda i: seen.append((i.step, math.isnan(i.loss))),
            **options,
        )
        assert seen == [(step, False) for step in steps]

    def test_tuning_looks_at_its_own_steps(self):
        seen = []
        result = zo.minimize(
            distance, X0, max_queries=1000, report_every=10**6, callback=lambda i: seen.append(i)
        )
        # a line search evaluates points beside the probes
        searched = np.diff(result.history["queries"], prepend=1) > 8
        assert {i.step for i in seen} >= set(1 + np.flatnonzero(searched))
        assert len(seen) < 0.5 * result.nit

    def test_a_callback_stops_at_one(self):
        options = {"method": GIVEN, "max_steps": 100, "callback": lambda i: i.step >= 12}
        result = zo.minimize(distance, X0, report_every=5, **options)
        assert (result.nit, result.status) == (15, "callback")

    def test_a_target_is_seen_at_one(self):
        options = {"method": zo.zo_mopi(learning_rate=0.1), "max_steps": 500, "target": 3.0}
        plain = zo.minimize(distance, X0, **options)
        result = zo.minimize(distance, X0, report_every=20, **options)
        assert plain.status == result.status == "target"
        assert result.nit == 20 * -(-plain.nit // 20) > plain.nit
        assert result.fun <= 3.0

    @pytest.mark.parametrize(("stagnation", "steps"), [(3, 10), (10, 10), (11, 20)])
    def test_stagnation_is_seen_at_one(self, stagnation, steps):
        result = zo.minimize(
            lambda x: 1.0, X0, method=GIVEN, max_steps=99, stagnation=stagnation, report_every=10
        )
        assert (result.nit, result.status) == (steps, "stagnation")

    def test_time_ends_between_two(self):
        result = zo.minimize(distance, X0, method=GIVEN, max_time=0.2, report_every=10**6)
        assert result.status == "max_time"
        assert result.nit > 10
        assert not np.any(np.isnan(result.history["loss"]))

    def test_divergence_is_seen_at_one(self):
        calls = [0]

        def fun(x):
            calls[0] += 1
            return distance(x) if calls[0] < 400 else distance(x) * calls[0] ** 2

        result = zo.minimize(fun, X0, method=GIVEN, max_queries=3000, report_every=40)
        assert result.returns
        assert all(step % 40 == 0 for step in result.returns)
        rates = result.history["learning_rate"]
        assert rates[result.returns[0]] == 0.25 * rates[0]


class TestFailures:
    @staticmethod
    def flaky(failure):
        """A function of which every seventh call fails."""
        calls = [0]

        def fun(x):
            calls[0] += 1
            if calls[0] % 7 == 0:
                return failure()
            return distance(x)

        return fun

    @staticmethod
    def error():
        raise ConnectionError("no answer")

    @pytest.mark.parametrize("kind", ["non-finite", "exception"])
    def test_are_left_out(self, kind):
        """As without reports; the message and its counts are the same."""
        failure = self.error if kind == "exception" else lambda: math.nan
        options = {"method": GIVEN, "max_queries": 500}
        policies = {"non-finite": "skip", "exception": "skip"}
        plain = zo.minimize(self.flaky(failure), X0, on_failure=policies, **options)
        for given in (policies, {"exception": "skip"}, "skip"):
            result = zo.minimize(
                self.flaky(failure), X0, report_every=9, on_failure=given, **options
            )
            same_steps(result, plain)
            assert result.message == plain.message
            assert "evaluations failed" in result.message

    def test_without_end(self):
        options = {"method": GIVEN, "max_steps": 1000, "failure_limit": 100}
        result = zo.minimize(lambda x: math.nan, X0, report_every=10, **options)
        assert (result.status, result.nit) == ("failures", 20)

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_that_end_the_run_leave_a_complete_history(self, error):
        calls = [0]

        def fun(x):
            calls[0] += 1
            if calls[0] == 8 * 25 + 3:
                raise error
            return distance(x)

        options = {"method": GIVEN, "max_steps": 100, "report_every": 10}
        if error is KeyboardInterrupt:
            result = zo.minimize(fun, X0, **options)
        else:
            with pytest.raises(error) as caught:
                zo.minimize(fun, X0, **options)
            result = caught.value.result
        assert result.nit == 25
        assert not np.any(np.isnan(result.history["loss"]))

    def test_a_device_that_fails_at_a_report(self, monkeypatch):
        """What was reached comes with the exception, the losses that are lost as NaN."""

        def read(arrays):
            raise RuntimeError("the device is gone")

        monkeypatch.setattr("zomopi_core._arrays.read", read)
        with pytest.raises(RuntimeError, match="the device is gone") as caught:
            zo.minimize(distance, X0, method=GIVEN, max_steps=100, report_every=10)
        result = caught.value.result
        assert result.nit == 9
        assert np.all(np.isnan(result.history["loss"]))


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "text"),
        [
            (
                {"journal": "run.zomopi"},
                "journal needs the losses of each step at once, and report_",
            ),
            ({"workers": 2}, "workers needs the losses"),
            ({"method": "muon", "gradient": lambda x: x}, "gradient needs the losses"),
            ({"bounds": (0, 1)}, "bounds or project needs the losses"),
            ({"project": lambda x: x}, "bounds or project needs the losses"),
            ({"on_failure": "auto"}, "on_failure='auto' for losses needs"),
            ({"on_failure": {"non-finite": zo.Retry()}}, "for losses needs"),
            ({"report_every": 0}, "report_every must be"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_that_need_each_loss_at_once(self, tmp_path, monkeypatch, options, text):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match=text):
            zo.minimize(distance, X0, **{"max_steps": 20, "report_every": 5, **options})
        assert not list(tmp_path.iterdir())
