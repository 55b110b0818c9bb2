"""Learning rates of several arrays beside each other."""

import math

import numpy as np
import pytest

import zomopi_core as zo
from zomopi_core.balance import Balance, Share, balance_of
from zomopi_core.noise import Noise

TARGET = np.random.default_rng(0).normal(size=(20, 12))
QUIET = Noise(measured=True)


def quadratic(slope, curvature):
    return lambda step: 5.0 - slope * step + 0.5 * curvature * step**2


def lines(share, fun, count, alpha=0.5, noise=QUIET):
    """Return the share after lines along a group in whose own units F is `fun`."""
    for _ in range(count):
        middle = alpha * share.reach(alpha, noise)
        scales = [0.0, 0.5 * middle, middle, 2.0 * middle]
        own = share.value if share.settled else 1.0
        share = share.told(scales, [fun(own * s) for s in scales], alpha, noise)
    return share


class TestShare:
    STEPS = (0.0, 0.5, 1.0, 2.0)

    @pytest.mark.parametrize("ratio", [1e-3, 0.05, 0.9, 3.0, 20.0])
    def test_is_the_minimiser_over_that_of_all(self, ratio):
        alpha, curvature = 0.5, 7.0
        fun = quadratic(ratio * alpha * curvature, curvature)
        share = lines(Share(), fun, 60, alpha)
        assert share.settled
        assert share.value == pytest.approx(ratio, rel=1e-2)
        assert share.curvature == pytest.approx(curvature, rel=1e-6)

    def test_first_lines_find_the_curvature_of_a_distant_scale(self):
        fun = quadratic(1e-4 * 2e4, 2e4)  # minimum at 1e-4
        share = Share()
        while not share.settled:
            share = lines(share, fun, 1)
        assert share.curvature == pytest.approx(2e4)
        assert share.value < 0.2

    def test_starts_at_one_where_one_line_says_little(self):
        share = lines(Share(), quadratic(0.5 * 4.0 * 1.5, 4.0), 1)
        assert share.settled
        assert share.value == 1.0

    @pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
    def test_does_not_depend_on_the_scale_of_the_function(self, scale):
        plain = lines(Share(), quadratic(1.0, 30.0), 6)
        scaled = lines(Share(), lambda s: scale * quadratic(1.0, 30.0)(s), 6)
        assert scaled.value == pytest.approx(plain.value)

    def test_falls_where_slopes_change_sign(self):
        """A group at its minimum jumps around it."""
        share = lines(Share(), quadratic(2.0, 4.0), 4)
        for i in range(16):
            share = lines(share, quadratic(2.0 * (-1) ** i, 4.0), 1)
        assert share.value < 0.35

    def test_of_samples_changes_no_more_than_lines_agree_on(self):
        """Slopes of 1 and noise of 4: their mean over four lines is known to 2."""
        generator = np.random.default_rng(1)

        def changes(sampled):
            share, values = Share(1.0, 2.0, 1.0, 1.0, 1, True), []
            for slope in 1.0 + 4.0 * generator.standard_normal(400):
                losses = [quadratic(slope, 2.0)(s * share.value) for s in self.STEPS]
                share = share.told(self.STEPS, losses, 0.5, QUIET, sampled=sampled)
                values.append(share.value)
            return np.std(np.diff(np.log(values)))

        assert changes(sampled=True) < 0.7 * changes(sampled=False)

    def test_of_samples_that_agree(self):
        share = Share(1.0, 2.0, 1.0, 1.0, 1, True)
        for _ in range(40):
            losses = [quadratic(0.1, 2.0)(s * share.value) for s in self.STEPS]
            share = share.told(self.STEPS, losses, 0.5, QUIET, sampled=True)
        assert share.value == pytest.approx(0.1, rel=0.02)

    def test_of_what_the_function_does_not_depend_on(self):
        share = lines(Share(), lambda s: 3.0, 10)
        assert share.settled
        assert share.value == 1.0

    def test_of_nothing_but_noise(self):
        noise, generator = Noise(level=1.0, measured=True, random=True), np.random.default_rng(0)
        share = lines(Share(), lambda s: generator.standard_normal(), 40, noise=noise)
        assert share.settled
        assert share.value == 1.0

    def test_looks_no_farther_than_the_dtype_and_the_domain_may_reach(self):
        """An array that F does not depend on, as far as rounding lets anybody see."""
        noise, share, farthest = Noise(level=1e-16, measured=True), Share(), 0.0
        while not share.settled:
            farthest = max(farthest, share.reach(0.5, noise))
            share = lines(share, lambda s: 3.0, 1, noise=noise)
        assert farthest == 256.0
        assert share.value == 1.0

    def test_looks_farther_out_for_what_noise_hides(self):
        """Near the steps of all the differences are a tenth of the noise."""
        noise, generator = Noise(level=1.0, measured=True, random=True), np.random.default_rng(0)
        fun = quadratic(0.2, 1e-2)  # minimum at 20, 40 times as far

        share = lines(Share(), lambda s: fun(s) + generator.standard_normal(), 40, noise=noise)
        assert share.curvature == pytest.approx(1e-2, rel=0.5)
        assert share.value == pytest.approx(40.0, rel=0.9)

    def test_of_a_function_that_saturates(self):
        """Farther out F rises and flattens: the first lines end, and nothing runs away."""
        share = lines(Share(), lambda s: math.tanh(s), 10)
        assert share.settled
        assert 0.1 < share.value <= 1.0

    def test_of_a_function_without_curvature(self):
        share = lines(Share(), lambda s: -s, 200)
        assert share.settled
        assert 1.0 < share.value < math.inf

    def test_failures_are_too_far(self):
        def fun(s):
            return quadratic(1.0, 0.1)(s) if s < 0.01 else math.inf

        share = lines(Share(), fun, 20)
        assert share.settled
        assert share.value * 0.5 < 0.02


def leaves_of(method, arrays):
    return [(method.rule(x.ndim), x) for x in arrays]


class TestGroups:
    def test_one_array_has_none(self):
        balance = balance_of(leaves_of(zo.zo_mopi(learning_rate="auto"), [TARGET]))
        assert balance.shares == ()
        assert balance.factors == (1.0,)
        assert not balance.due(10)

    def test_a_few_arrays(self):
        arrays = [TARGET, TARGET, np.ones(3)]
        balance = balance_of(leaves_of(zo.zo_mopi(learning_rate="auto"), arrays))
        assert balance.groups == (0, 1, 2)

    def test_many_arrays_by_shape(self):
        arrays = [np.ones((4, 3)), np.ones((3, 4))] * 8
        balance = balance_of(leaves_of(zo.zo_mopi(learning_rate="auto"), arrays))
        assert balance.groups == (0, 1) * 8

    @pytest.mark.parametrize("shapes", [[(4,)] * 12, [(4, n) for n in range(1, 13)]])
    def test_many_arrays_in_the_order_of_their_names(self, shapes):
        arrays = [np.ones(shape) for shape in shapes]
        balance = balance_of(leaves_of(zo.zo_mopi(learning_rate="auto"), arrays))
        assert balance.groups == (0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7)
        assert len(balance.shares) == 8

    def test_steps_that_have_the_scale_of_the_gradient(self):
        """They shrink by themselves at a minimum."""
        method = zo.mezo(learning_rate="auto")
        assert balance_of(leaves_of(method, [TARGET, TARGET])).shares == ()

    def test_given_rates_are_left_alone(self):
        method = zo.zo_mopi(learning_rate="auto", vector_learning_rate=0.1)
        balance = balance_of(leaves_of(method, [TARGET, TARGET, np.ones(3)]))
        assert balance.groups == (0, 1, -1)
        assert balance.factors[2] == 1.0
        balance = balance_of(leaves_of(zo.zo_mopi(learning_rate=0.1), [TARGET, TARGET]))
        assert balance.groups == (-1, -1)
        assert balance.shares == ()

    def test_turns(self):
        balance, turns = balance_of(leaves_of(zo.zo_mopi(learning_rate="auto"), [TARGET] * 3)), []
        for step in range(7):
            turns.append(balance.turn)
            scales = [balance.distance(1.0, QUIET) * s for s in (0.0, 0.5, 1.0, 2.0)]
            values = [quadratic(1.0, 1.0)(s) for s in scales]
            balance = balance.told(scales, values, 1.0, QUIET).next_after(step, 10)
        assert turns == [0, 1, 2, 0, 1, 2, 0]
        assert balance.next_line == 6 + 20
        assert isinstance(balance, Balance)


def uneven(weight=1.0, size=3):
    """Return a function whose vector is much stiffer than its matrix, and a start."""

    def fun(d):
        matrix, vector = np.mean((d["a"] - TARGET) ** 2), np.mean((d["b"] - 0.3) ** 2)
        return float(matrix + weight * vector)

    return fun, {"a": np.zeros(TARGET.shape), "b": np.ones(size)}


class TestMinimize:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("weight", [1.0, 3.0])
    def test_a_stiff_vector_does_not_hold_a_matrix_back(self, weight, seed):
        """With one rate for both these end at 0.19 to 0.31, and 0.60 to 0.70."""
        fun, x0 = uneven(weight)
        assert zo.minimize(fun, x0, max_queries=3000, seed=seed).fun < 0.08

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize(("level", "limit"), [(1e-4, 0.1), (1e-3, 0.15), (1e-2, 0.4)])
    def test_with_noise(self, level, limit, seed):
        """With one rate: 0.23 to 0.31, 0.33 to 0.52 and 0.50 to 0.75."""
        fun, x0 = uneven()
        generator = np.random.default_rng(seed)
        result = zo.minimize(
            lambda d: fun(d) + level * generator.standard_normal(), x0, max_queries=3000, seed=seed
        )
        assert fun(result.x) < limit

    def test_on_samples(self):
        """With one rate: 2.2 to 3.2."""
        inputs = np.random.default_rng(1).normal(size=(2000, 20))

        def fun(d, key):
            rows = np.random.default_rng(key % 2**63).integers(0, 2000, 32)
            error = inputs[rows] @ (d["a"] - TARGET)
            return float(np.mean(error**2) + 20 * np.mean((d["b"] - 0.3) ** 2))

        x0 = uneven()[1]
        x = zo.minimize(fun, x0, max_queries=4000).x
        assert np.mean((inputs @ (x["a"] - TARGET)) ** 2) < 0.5

    @pytest.mark.parametrize("power", [-6, 6])
    def test_scale_of_the_function(self, power):
        fun, x0 = uneven()
        plain = zo.minimize(fun, x0, max_queries=1500)
        scaled = zo.minimize(lambda d: 2.0 ** (3 * power) * fun(d), x0, max_queries=1500)
        assert scaled.fun == pytest.approx(2.0 ** (3 * power) * plain.fun, rel=1e-6)

    def test_an_array_without_influence_costs_little(self):
        def fun(d):
            return float(np.mean((d["a"] - TARGET) ** 2))

        alone = zo.minimize(fun, {"a": uneven()[1]["a"]}, max_queries=3000).fun
        assert zo.minimize(fun, uneven()[1], max_queries=3000).fun < 10 * alone

    def test_learning_rate_is_that_of_the_first_matrix(self):
        fun, x0 = uneven()
        optimizer = zo.Optimizer(x0, method=zo.zo_mopi(learning_rate="auto"))
        units = [leaf.unit for leaf in optimizer.state.leaves]
        for _ in range(120):
            optimizer.tell([fun(x) for x in optimizer.ask()])
        tuning = optimizer._point.tuning
        factors = tuning.balance.factors
        assert factors[0] > 2 * factors[1]
        for leaf, unit, factor in zip(optimizer.state.leaves, units, factors, strict=True):
            assert leaf.unit == pytest.approx(unit * factor)
        assert optimizer.learning_rate == pytest.approx(tuning.rate * units[0] * factors[0])

    def test_namespaces(self, backend):
        _, x0 = uneven()
        xp = backend.xp
        arrays = {k: backend.array(v) for k, v in x0.items()}
        target = backend.array(TARGET)

        def on(d):
            return xp.mean((d["a"] - target) ** 2) + xp.mean((d["b"] - 0.3) ** 2)

        start = float(on(arrays))
        optimizer = zo.Optimizer(arrays, method=zo.zo_mopi(learning_rate="auto"))
        while optimizer._point.tuning.balance.factors == (1.0, 1.0):
            optimizer.tell([on(x) for x in optimizer.ask()])
        assert float(on(optimizer.x)) < start

    def test_resumes_to_the_same_bits(self, tmp_path):
        fun, x0 = uneven()
        plain = zo.minimize(fun, x0, max_queries=1200)
        calls = []

        def interrupted(d):
            calls.append(1)
            if len(calls) == 700:
                raise RuntimeError
            return fun(d)

        journal = tmp_path / "run.zomopi"
        with pytest.raises(RuntimeError):
            zo.minimize(interrupted, x0, max_queries=1200, journal=journal)
        result = zo.resume(journal, fun)
        for name in x0:
            np.testing.assert_array_equal(result.x_last[name], plain.x_last[name])
        assert result.nfev == plain.nfev
