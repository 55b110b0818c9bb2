"""What failed is evaluated again as long as that helps, and as it was."""

import functools
import json
import math
import re
import sqlite3
import threading
import time

import numpy as np
import pytest

import zomopi_core as zo
from zomopi_core.repetition import Repetition

TARGET = np.outer(np.arange(6.0), np.ones(4)) / 6
X0 = np.zeros((6, 4))


def loss(x):
    return float(np.mean((x - TARGET) ** 2))


class Doubtful:
    """Counts its calls, and those at a point where it was called before."""

    def __init__(self, fails):
        self.fails, self.calls, self.again, self.seen = fails, 0, 0, set()

    def __call__(self, x):
        self.calls += 1
        bits = x.tobytes()
        self.again += bits in self.seen
        self.seen.add(bits)
        return math.nan if self.fails(x) else loss(x)


class TestRepetition:
    def test_gives_up(self):
        """After thirteen failures in a row at the beginning, one by one or at a time."""
        repetition, tries = Repetition(), 0
        while repetition.allowed(100):
            repetition.learn(1, 0)
            tries += 1
        assert tries == 13
        repetition, tries = Repetition(), 0
        while count := repetition.allowed(100):
            repetition.learn(count, 0)
            tries += count
        assert 13 <= tries <= 16

    def test_goes_on_by_accident(self):
        """Of 5,000 repetitions of which half fail none is left out."""
        rng, repetition = np.random.default_rng(0), Repetition()
        for _ in range(5000):
            assert repetition.allowed(1) == 1
            repetition.learn(1, int(rng.random() < 0.5))

    def test_tries_now_and_then(self):
        repetition = Repetition()
        repetition.learn(50, 0)
        tries = 0
        for _ in range(160):
            repetition.leave_out(1)
            count = repetition.allowed(1)
            if count:
                repetition.learn(count, 0)
            tries += count
        assert tries == 10

    def test_comes_back(self):
        repetition = Repetition()
        repetition.learn(1000, 0)
        repetition.learn(10, 10)
        assert repetition.allowed(5) == 5

    @pytest.mark.parametrize("failures", [0, 1, 7, 10**9])
    def test_allows_no_more_than_there_are(self, failures):
        repetition = Repetition()
        for _ in range(40):
            repetition.leave_out(3)
            assert 0 <= repetition.allowed(failures) <= failures
            repetition.learn(2, 1)

    def test_state(self):
        repetition, copy = Repetition(), Repetition()
        repetition.learn(7, 3)
        repetition.leave_out(5)
        copy.restore(json.loads(json.dumps(repetition.state())))
        assert copy.state() == repetition.state()

    @pytest.mark.parametrize(
        "state",
        [[], [1.0], [1.0, 2.0, 0], [2.0, -1.0, 0], [math.nan, 0, 0], [1e9, 1, 0], [1, 1, -1],
         [1, 1, math.inf], ["a", 1, 1], None, [None, 1, 1], [1, 1, 1, 1]],
    )  # fmt: skip
    def test_refuses(self, state):
        with pytest.raises((TypeError, ValueError)):
            Repetition().restore(state)


class TestRuns:
    def test_where_failures_are_accidents(self):
        rng = np.random.default_rng(0)
        fun = Doubtful(lambda x: rng.random() < 0.4)
        result = zo.minimize(fun, X0, max_queries=1000)
        failed = int(re.search(r"(\d+) of \d+ evaluations failed", result.message)[1])
        assert 300 < failed < 500
        assert fun.again > 0.9 * failed

    def test_beyond_a_domain(self):
        """Few evaluations are wasted: 104 points were evaluated before, 64 without repetition."""
        fun = Doubtful(lambda x: np.max(x) > 0.84)
        result = zo.minimize(fun, X0, max_queries=3000)
        assert fun.again < 0.05 * fun.calls
        assert "evaluations failed" in result.message

    @pytest.mark.parametrize("kind", ["skip", zo.Retry(times=2, wait=0.0)])
    def test_other_policies(self, kind):
        """Nothing is repeated, or everything; x0 is evaluated at the beginning and at the end."""
        fun = Doubtful(lambda x: True)
        zo.minimize(fun, X0, method=zo.mezo(), max_steps=20, on_failure=kind)
        points = 2 * 20 + 1
        assert len(fun.seen) == points
        assert fun.again == (1 if kind == "skip" else 1 + 2 * (points + 1))

    def test_resumed_from_any_step(self, tmp_path):
        """Where half of a domain fails, what was learned goes with the journal."""

        def fun(x):
            return math.nan if x[0, 0] > 0.02 * math.sin(1e4 * x[1, 1]) else loss(x)

        options = {"max_queries": 600, "seed": 3}
        whole = zo.minimize(fun, X0, journal=tmp_path / "whole.zomopi", **options)
        rows = "SELECT * FROM evaluation WHERE kind = '' OR kind = 'start' ORDER BY rowid"

        def recorded(path):
            with sqlite3.connect(path) as database:
                found = database.execute(rows)
                skip = [c[0] for c in found.description].index("elapsed")
                return [r[:skip] for r in found]

        expected = recorded(tmp_path / "whole.zomopi")
        for steps in (1, 2, 5, 17, whole.nit - 1):
            path = tmp_path / f"{steps}.zomopi"
            journal = zo.Journal(path, snapshot_steps=3)
            calls = []

            def stop(iteration, steps=steps):
                if iteration.step == steps:
                    raise MemoryError

            with pytest.raises(MemoryError):
                zo.minimize(fun, X0, journal=journal, callback=stop, **options)
            result = zo.resume(path, lambda x, calls=calls: calls.append(1) or fun(x))
            assert result.nfev == whole.nfev
            assert result.message == whole.message
            np.testing.assert_array_equal(result.x, whole.x)
            assert recorded(path) == expected
            assert calls


class Spoiler:
    """Changes its argument, and fails in half of its calls."""

    def __init__(self, fun=loss):
        self.chance, self.fun = np.random.default_rng(0), fun

    def __call__(self, x):
        value = self.fun(x)
        x *= 3.0
        return math.nan if self.chance.random() < 0.5 else value


class Polite(Spoiler):
    def __call__(self, x):
        return super().__call__(x.copy())


class TestPoints:
    """A point is evaluated again as it was, whatever the function did to it."""

    @pytest.mark.parametrize("policy", ["auto", zo.Retry(times=20, wait=0.0)])
    @pytest.mark.parametrize(
        "options",
        [{}, {"timeout": 60.0}, {"bounds": (-1.0, 2.0)}],
        ids=str,
    )
    def test_changed_by_the_function(self, policy, options):
        options = {"max_queries": 300, "on_failure": policy} | options
        expected = zo.minimize(Polite(), X0, **options)
        result = zo.minimize(Spoiler(), X0, **options)
        np.testing.assert_array_equal(result.x, expected.x)
        assert result.nfev == expected.nfev
        assert "failed" in result.message

    @pytest.mark.parametrize("vectorized", [False, True])
    def test_in_memory_that_is_reused(self, vectorized):
        """None takes the place of another, and all have the bits that they had among others."""
        chance = np.random.default_rng(0)

        def fun(x, fails=0.0):
            value = np.mean((x - TARGET) ** 2, axis=(-2, -1))
            return np.where(chance.random(value.shape) < fails, math.nan, value)

        options = {"max_steps": 20, "vectorized": vectorized, "reuse_buffers": True}
        clean = zo.minimize(fun, X0, **options)
        result = zo.minimize(functools.partial(fun, fails=0.4), X0, **options)
        np.testing.assert_array_equal(result.history["loss"], clean.history["loss"])
        assert result.nfev > 1.5 * clean.nfev

    @pytest.mark.parametrize("reuse_buffers", [False, True])
    def test_stacks(self, reuse_buffers):
        """Of a stack only what failed is evaluated again, to the bits of one by one."""
        sizes = []

        def stacked(stack):
            sizes.append(stack.shape[0])
            return np.asarray([one(x) for x in stack])

        one = Polite()
        options = {"max_queries": 300, "reuse_buffers": reuse_buffers}
        expected = zo.minimize(Polite(), X0, **options)
        result = zo.minimize(stacked, X0, vectorized=True, **options)
        np.testing.assert_array_equal(result.x, expected.x)
        assert sum(sizes) == result.nfev == expected.nfev
        assert len(set(sizes)) > 3

    def test_structured(self):
        """As it was asked for first, from the factors of its step: the same losses."""
        chance = np.random.default_rng(0)

        def fun(P):
            return float(np.sum((P @ np.eye(4) - TARGET) ** 2))

        def fails(P):
            return math.nan if chance.random() < 0.4 else fun(P)

        clean = zo.minimize(fun, X0, max_steps=20, structured=True)
        result = zo.minimize(fails, X0, max_steps=20, structured=True)
        np.testing.assert_array_equal(result.history["loss"], clean.history["loss"])
        assert result.nfev > 1.5 * clean.nfev

    def test_hanging_calls(self):
        """By default, too, a call that took too long is made again."""
        chance, release = np.random.default_rng(0), threading.Event()

        def fun(x):
            if chance.random() < 0.3:
                release.wait(20)
            return loss(x)

        began = time.perf_counter()
        result = zo.minimize(fun, X0, max_queries=100, timeout=0.02)
        assert "EvaluationTimeoutError" in result.message
        assert result.success
        assert time.perf_counter() - began < 20
        release.set()
