"""The noise of a function: from its table of differences, from repetitions and from steps."""

import math

import numpy as np
import pytest

from zomopi_core.noise import LINE_POINTS, Noise, noise_level


def level_of_order(values, k):
    """sigma_k of Moré and Wild: root of the mean square of the k-th differences, rescaled."""
    differences = np.diff(np.asarray(values), k)
    scale = math.factorial(k) ** 2 / math.factorial(2 * k)
    return math.sqrt(scale * np.mean(differences**2))


FUNCTIONS = {
    "sine": np.sin,
    "line": lambda t: 2.0 - 3.0 * t,
    "parabola": lambda t: 5.0 * t**2 - t,
    "quartic": lambda t: t**4 + t**3 + 1.0,
}


class TestNoise:
    def test_values_that_alternate(self):
        """Every order sees the same amplitude, and the first is taken."""
        values = [1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0]
        # differences of order k are +-2^k: sigma_1 = 2 / sqrt(2), sigma_2 = 4 / sqrt(6), ...
        assert noise_level(values) == pytest.approx(math.sqrt(2.0), rel=1e-12)

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_value_is_that_of_an_order(self, name):
        found = 0
        for seed in range(20):
            rng = np.random.default_rng(seed)
            values = FUNCTIONS[name](1e-4 * np.arange(7)) + 1e-2 * rng.standard_normal(7)
            level = noise_level(values.tolist())
            if level is not None:
                found += 1
                assert any(
                    level == pytest.approx(level_of_order(values, k), rel=1e-9)
                    for k in range(1, 5)
                )
        assert found >= 15

    @pytest.mark.parametrize("name", FUNCTIONS)
    @pytest.mark.parametrize("noise", [1e-6, 1e-2])
    def test_known_noise_on_a_smooth_function(self, name, noise):
        """The mean of the squares is that of the noise.

        300 runs with relative deviations of the squares below 1: five standard errors are below
        0.3, a chance of 1e-6 each with fresh seeds. What the choice of an order costs is inside.
        """
        rng = np.random.default_rng(1)
        squares = []
        for _ in range(300):
            values = FUNCTIONS[name](1e-5 * noise * np.arange(7)) + noise * rng.standard_normal(7)
            level = noise_level(values.tolist())
            if level is not None:
                squares.append((level / noise) ** 2)
        assert len(squares) > 250
        assert np.std(squares) < 1
        assert 0.7 < np.mean(squares) < 1.3

    def test_smooth_part_is_removed(self):
        """A slope ten times the noise from point to point spoils order one, but not order two."""
        rng = np.random.default_rng(2)
        levels = []
        for _ in range(100):
            noise = 1e-3 * rng.standard_normal(9)
            levels.append(noise_level((1e-2 * np.arange(9) + noise).tolist()))
        found = [x for x in levels if x is not None]
        assert len(found) > 80
        assert 5e-4 < np.median(found) < 2e-3

    @pytest.mark.parametrize("scale", [1e-290, 1e-200, 1e-20, 1e20, 1e200, 1e290])
    def test_scale(self, scale):
        values = [0.3, -1.0, 0.4, -0.2, 1.1, -0.7, 0.1]
        assert noise_level([scale * v for v in values]) == pytest.approx(
            scale * noise_level(values), rel=1e-12
        )

    def test_constant_in_f_costs_nothing(self):
        values = [0.25, -1.0, 0.5, -0.25, 1.0, -0.75, 0.125]
        shifted = [v + 2.0**40 for v in values]  # exact in float64
        assert noise_level(shifted) == noise_level(values)


class TestNoNoise:
    @pytest.mark.parametrize("value", [0.0, -3.0, 1e300])
    def test_all_equal(self, value):
        assert noise_level([value] * 7) == 0.0

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("place", [0, 3, 6])
    def test_value_that_is_not_finite(self, bad, place):
        values = [0.3, -1.0, 0.4, -0.2, 1.1, -0.7, 0.1]
        values[place] = bad
        assert noise_level(values) is None

    def test_all_equal_but_not_finite(self):
        assert noise_level([math.inf] * 7) is None

    @pytest.mark.parametrize("degree", range(1, 7))
    def test_polynomial_without_noise(self, degree):
        assert noise_level([float((i - 2) ** degree) for i in range(9)]) is None

    @pytest.mark.parametrize(
        "fun", [math.exp, lambda t: 1.0 / (1.0 + t), lambda t: math.exp(-(t**2))]
    )
    def test_steps_too_large(self, fun):
        assert noise_level([fun(2.0 * i) for i in range(7)]) is None


class TestLine:
    def test_points_are_equally_spaced_within_the_smoothing(self):
        assert np.allclose(LINE_POINTS, np.arange(7) / 10, rtol=1e-12)

    def test_level(self):
        values = [0.3, -1.0, 0.4, -0.2, 1.1, -0.7, 0.1]
        assert len(values) == len(LINE_POINTS)
        noise = Noise().with_line(values)
        assert noise.level == noise_level(values) > 0
        assert noise.measured
        assert noise.random
        assert noise.rough

    def test_smooth(self):
        noise = Noise().with_line([math.exp(s) for s in LINE_POINTS])
        assert noise == Noise(measured=True, tries=1)
        assert not noise.rough

    def test_failures_are_tried_again_twice(self):
        noise, bad = Noise(), [math.nan, *(0.0 for _ in LINE_POINTS[1:])]
        for tries in (1, 2):
            noise = noise.with_line(bad)
            assert (noise.tries, noise.measured) == (tries, False)
        assert noise.with_line(bad).measured


class TestRepetition:
    def test_mean_square_is_followed(self):
        noise = Noise(level=2.0, random=True).with_repetition(1.0, 7.0)
        assert noise.level**2 == pytest.approx(0.9 * 2.0**2 + 0.1 * 6.0**2 / 2, rel=1e-12)
        assert noise.random

    def test_tends_to_the_noise(self):
        """Gaussian values of deviation 3; the mean of 300 levels, of which 15 are independent."""
        rng = np.random.default_rng(0)
        noise, levels = Noise(level=1e-6, random=True), []
        for i in range(400):
            noise = noise.with_repetition(*(3.0 * rng.standard_normal(2)).tolist())
            levels += [noise.level] if i >= 100 else []
        assert 2.5 < np.mean(levels) < 3.5

    def test_same_value_is_rounding(self):
        noise = Noise(level=2.0, random=True).with_repetition(5.0, 5.0)
        assert (noise.level, noise.random) == (2.0, False)

    def test_squares_that_overflow(self):
        level = Noise(level=1e300, random=True).with_repetition(1e300, -1e300).level
        assert level == pytest.approx(1e300 * math.sqrt(0.9 + 0.2), rel=1e-12)


class TestSteps:
    def test_values_that_differ(self):
        assert Noise().with_steps([1.0, 2.0, 3.0, 4.0]) == Noise()

    def test_one_value_alone_may_be_a_penalty(self):
        assert Noise().with_steps([1.0, 2.0, 3.0, 9.0, 9.0, 9.0, 9.5]) == Noise()

    def test_least_difference_is_the_height(self):
        noise = Noise().with_steps([0.25, 0.5, 0.5, 1.5, 1.5, 2.0, 2.25, math.nan])
        assert noise.level == 0.25
        assert noise.grain == noise.of_differences == 6 * 0.25
        assert noise.rough
        assert not noise.random

    def test_few_distinct_values(self):
        assert Noise().with_steps([1.0, 1.0, 1.0, 1.5]).level == 0.5

    def test_one_value_has_no_height(self):
        assert Noise().with_steps([1.0, 1.0, 1.0]) == Noise()
        assert Noise().with_steps([math.nan]) == Noise()

    def test_never_lower_than_before(self):
        noise = Noise(level=1.0, grain=7.0)
        assert noise.with_steps([0.0, 0.0, 0.5, 0.5]) == noise


class TestBound:
    @pytest.mark.parametrize(("level", "most", "expected"), [(1.0, 9.0, 3.0), (1.0, 0.25, 1.0)])
    def test_geometric_mean_upwards(self, level, most, expected):
        noise = Noise(level=level, random=True)
        assert noise.with_bound(most).level == expected
        assert noise.with_bound(math.inf).level == math.inf

    def test_function_that_repeats_its_values_is_not_doubted(self):
        assert Noise(level=1.0).with_bound(9.0).level == 1.0
