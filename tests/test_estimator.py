"""Losses to coefficients to gradient estimates, and their statistics."""

import warnings

import numpy as np
import pytest

import zomopi_core as zo
from zomopi_core import _arrays
from zomopi_core.estimator import Evaluation, FiniteDifference

DIFFERENCES = ("central", "forward", "leave-one-out")


class TestEvaluations:
    def test_order(self):
        mu = 0.5
        assert FiniteDifference(2, mu).evaluations == (
            Evaluation(0, mu),
            Evaluation(0, -mu),
            Evaluation(1, mu),
            Evaluation(1, -mu),
        )
        assert FiniteDifference(2, mu, "forward").evaluations == (
            Evaluation(None, 0.0),
            Evaluation(0, mu),
            Evaluation(1, mu),
        )
        assert FiniteDifference(2, mu, "leave-one-out").evaluations == (
            Evaluation(0, mu),
            Evaluation(1, mu),
        )


class TestCoefficients:
    def test_central(self, backend):
        losses = backend.array([3.0, 1.0, 2.0, 5.0])
        c = FiniteDifference(2, 0.5).differences(losses)
        assert np.allclose(backend.numpy(c), [2.0, -3.0])

    def test_forward(self, backend):
        losses = backend.array([1.0, 3.0, 0.0])
        c = FiniteDifference(2, 0.5, "forward").differences(losses)
        assert np.allclose(backend.numpy(c), [4.0, -2.0])

    def test_leave_one_out(self, backend):
        losses = np.array([1.0, 4.0, 2.0])
        B = np.random.default_rng(0).standard_normal((3, 2, 5))
        estimator = FiniteDifference(3, 0.5, "leave-one-out")
        c = estimator.differences(backend.array(losses))
        G = estimator.gradient(estimator.weigh(c), backend.array(B))
        # each loss against the mean of the others
        others = (losses.sum() - losses) / 2
        expected = np.mean([(losses[i] - others[i]) / 0.5 * B[i] for i in range(3)], axis=0)
        assert np.allclose(backend.numpy(G), expected)

    def test_constant_in_the_loss_costs_no_digits(self):
        losses = 2.0**40 + np.array([1.0, 4.0, 2.0])
        estimator = FiniteDifference(3, 0.5, "leave-one-out")
        assert np.array_equal(
            estimator.differences(losses), estimator.differences(losses - 2.0**40)
        )

    @pytest.mark.parametrize("difference", DIFFERENCES)
    def test_equal_losses_give_exact_zeros(self, difference):
        estimator = FiniteDifference(3, 1e-3, difference)
        c = estimator.differences(np.full(len(estimator.evaluations), 0.1))
        assert np.array_equal(c, np.zeros(3))


class TestFailures:
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_failed_probe_has_no_part(self, backend, bad):
        rng = np.random.default_rng(0)
        B = rng.standard_normal((3, 2, 4))
        for difference in DIFFERENCES:
            full, less = (FiniteDifference(n, 0.1, difference) for n in (3, 2))
            losses = rng.standard_normal(len(full.evaluations))
            keep = [i for i, e in enumerate(full.evaluations) if e.probe != 1]
            spoiled = losses.copy()
            spoiled[[i for i, e in enumerate(full.evaluations) if e.probe == 1][-1]] = bad
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                c = full.differences(backend.array(spoiled))
                G = full.gradient(full.weigh(c), backend.array(B))
            expected = less.gradient(less.weigh(less.differences(losses[keep])), B[[0, 2]])
            assert np.allclose(backend.numpy(G), expected)

    @pytest.mark.parametrize("difference", DIFFERENCES)
    def test_nothing_left(self, backend, difference):
        estimator = FiniteDifference(2, 0.1, difference)
        losses = np.full(len(estimator.evaluations), np.nan)
        if difference == "leave-one-out":
            losses[0] = 1.0  # one loss alone has no baseline
        weighted = estimator.weigh(estimator.differences(backend.array(losses)))
        assert float(weighted.alive) == 0
        G = estimator.gradient(weighted, backend.array(np.ones((2, 3, 3))))
        assert np.array_equal(backend.numpy(G), np.zeros((3, 3)))

    def test_failed_baseline_leaves_nothing(self, backend):
        estimator = FiniteDifference(2, 0.1, "forward")
        c = estimator.differences(backend.array([np.nan, 1.0, 2.0]))
        assert float(estimator.weigh(c).alive) == 0


class TestLooks:
    @pytest.mark.parametrize("difference", DIFFERENCES)
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_a_host_that_looks_has_the_bits_of_masks(self, monkeypatch, difference, dtype):
        method = zo.zo_mopi(rank=3, learning_rate=0.1, probes=3, difference=difference)
        x = np.random.default_rng(0).standard_normal((8, 7)).astype(dtype)
        rng = np.random.default_rng(1)
        losses = [rng.standard_normal(method.evaluations_per_step) for _ in range(6)]
        losses[3][1] = np.nan

        def end():
            state, params = method.init(x, 0), x
            for row in losses:
                state, step = method.update(state, row)
                params = zo.apply_step(params, step)
            return params

        expected = end()
        monkeypatch.setattr(_arrays, "all_hold", lambda conditions: False)
        monkeypatch.setattr(_arrays, "select", np.where)
        np.testing.assert_array_equal(end(), expected)


@pytest.mark.parametrize("difference", DIFFERENCES)
class TestStatistics:
    """For F = <W, X> the estimate has a known mean and variance.

    With g = A^T W and d = r n entries: mean g, and E norm(G - g)^2 = (d + 1) norm(g)^2 / N,
    over N - 1 for leave-one-out (the covariance of a sample of Gaussians).
    """

    def estimates(self, difference, count, drop=None):
        W = np.random.default_rng(0).standard_normal((6, 4))
        method = zo.zo_mopi(rank=2, probes=4, difference=difference, smoothing=0.01)
        x = np.zeros((6, 4))
        state = method.init(x, seed=1)
        g = state.leaves[0].frame.T @ W
        rng = np.random.default_rng(2)
        found = []
        for t in range(count):
            probes = method.propose(state._replace(step=t))
            losses = np.array([np.sum(W * p) for p in zo.perturb(method, x, probes)])
            if drop is not None:
                losses[rng.random(losses.size) < drop] = np.nan
            weighted = method.estimator.weigh(method.estimator.differences(losses))
            if weighted.alive:
                found.append(method.estimator.gradient(weighted, probes[0].right))
        return np.stack(found), g

    def test_unbiased(self, difference):
        found, g = self.estimates(difference, 6000)
        z = (found.mean(0) - g) / (found.std(0) / np.sqrt(len(found)))
        # eight numbers within 5 standard errors: a false alarm in 200,000 choices of seed
        assert np.max(np.abs(z)) < 5

    def test_variance(self, difference):
        found, g = self.estimates(difference, 6000)
        squares = np.sum((found - g) ** 2, axis=(1, 2))
        count = 4 if difference != "leave-one-out" else 3
        expected = (g.size + 1) * np.sum(g**2) / count
        # five standard errors, estimated from the sample: a false alarm in two million
        assert abs(squares.mean() - expected) < 5 * squares.std() / np.sqrt(len(squares))
        # the control: the neighbouring theory (one probe more) is rejected
        wrong = expected * count / (count + 1)
        assert abs(squares.mean() - wrong) > 5 * squares.std() / np.sqrt(len(squares))

    def test_unbiased_under_drops_that_do_not_depend_on_the_loss(self, difference):
        found, g = self.estimates(difference, 8000, drop=0.25)
        z = (found.mean(0) - g) / (found.std(0) / np.sqrt(len(found)))
        assert np.max(np.abs(z)) < 5
