"""The minimiser along a line: exact on parabolas, bounded by failures and by what was tried."""

import math

import numpy as np
import pytest

from zomopi_core.line_search import LineModel, MeanParabola, Parabola, is_clear, line_minimum

NAN, INF = math.nan, math.inf
FINE = [0.0, 0.5, 1.0, 2.0]


def parabola(vertex, curvature=3.0, constant=7.0):
    return lambda a: 0.5 * curvature * (a - vertex) ** 2 + constant


class TestLineMinimum:
    @pytest.mark.parametrize("vertex", [0.0625, 0.3, 0.75, 1.0, 1.9, 3.0, 4.0])
    @pytest.mark.parametrize("curvature", [1e-20, 3.0, 1e20])
    def test_exact_on_parabolas(self, vertex, curvature):
        losses = [parabola(vertex, curvature, 0.0)(a) for a in FINE]
        assert line_minimum(FINE, losses) == pytest.approx(vertex, rel=1e-9)

    @pytest.mark.parametrize("steps", [[0.0, 1.0, 4.0], [0.0, 0.1, 0.2, 7.0], [0.0, 3.0, 3.5]])
    def test_uneven_steps(self, steps):
        vertex = 0.4 * steps[-1]
        losses = [parabola(vertex)(a) for a in steps]
        assert line_minimum(steps, losses) == pytest.approx(vertex, rel=1e-9)

    def test_repeated_start_is_averaged(self):
        losses = [parabola(0.75)(a) for a in (0.0, 0.0, 0.0, 0.5, 1.0, 2.0)]
        losses[:3] = losses[0] - 0.3, losses[0] + 0.5, losses[0] - 0.2
        steps = [0.0, 0.0, *FINE]
        assert line_minimum(steps, losses) == pytest.approx(0.75, rel=1e-9)

    def test_neighbours_of_the_lowest_decide(self):
        """Far away the function may do what it likes."""
        losses = [*(parabola(0.6)(a) for a in (0.0, 0.5, 1.0)), 1e6]
        assert line_minimum(FINE, losses) == pytest.approx(0.6, rel=1e-9)

    @pytest.mark.parametrize(
        ("losses", "expected"),
        [
            ([0.0, -1.0, -2.0, -4.0], 4.0),  # falls on a line
            ([0.0, -1.0, -3.0, -9.0], 4.0),  # falls ever faster
            ([0.0, -1.0, -1.9, -3.6], 4.0),  # a minimum far beyond
            ([0.0, 1.0, 2.0, 4.0], 0.0625),  # rises on a line
            ([0.0, 1.0, 1.5, 1.6], 0.0625),  # rises, concave
            ([0.0, 1.0, 4.0, 16.0], 0.0625),  # rises, with a minimum behind
            ([5.0, 5.0, 5.0, 5.0], 0.0625),  # does nothing
        ],
    )
    def test_without_a_minimum_between(self, losses, expected):
        """Twice the largest step or an eighth of the smallest."""
        assert line_minimum(FINE, losses) == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("bad", [NAN, INF])
    def test_failure_bounds_the_step(self, bad):
        falling = [-a for a in FINE]
        assert line_minimum(FINE, [*falling[:3], bad]) == 1.0  # half of the step that failed
        # a parabola with its vertex behind the bound
        assert line_minimum(FINE, [*(parabola(1.5)(a) for a in FINE[:3]), bad]) == 1.0
        # and one before it, which is found
        losses = [*(parabola(0.7)(a) for a in FINE[:3]), bad]
        assert line_minimum(FINE, losses) == pytest.approx(0.7, rel=1e-9)

    @pytest.mark.parametrize("bad", [NAN, INF])
    def test_failures_near_the_start(self, bad):
        assert line_minimum(FINE, [1.0, bad, bad, bad]) == 0.125  # a quarter of the nearest
        assert line_minimum(FINE, [1.0, 0.5, bad, bad]) == 0.125
        assert line_minimum(FINE, [1.0, bad, 0.5, 0.4]) <= 0.25
        assert line_minimum(FINE, [bad, 3.0, 2.0, 1.0]) <= 0.125

    def test_is_always_within_its_bounds(self):
        rng = np.random.default_rng(0)
        for _ in range(500):
            losses = np.where(rng.random(4) < 0.2, NAN, rng.standard_normal(4)).tolist()
            step = line_minimum(FINE, losses)
            assert 0.5 / 8 <= step <= 4.0
            failed = [a for a, x in zip(FINE, losses, strict=True) if a > 0 and np.isnan(x)]
            assert all(step <= 0.5 * a for a in failed)


class TestIsClear:
    def test_differences_over_noise(self):
        assert is_clear([0.0, 21.0], 1.0)
        assert not is_clear([0.0, 19.0], 1.0)
        assert is_clear([0.0, 1e-30], 0.0)
        assert is_clear([3.0, 3.0], 0.0)

    def test_failures_do_not_count(self):
        assert not is_clear([0.0, INF, NAN, 5.0], 1.0)
        assert is_clear([NAN, INF], 1.0)


def least_squares(searches, kept=0.6):
    """-s a + h a^2 / 2 = F(a) - F(0), rows of earlier searches weighted by powers of `kept`."""
    rows, right = [], []
    for age, (steps, losses) in enumerate(reversed(searches)):
        start = np.mean([x for a, x in zip(steps, losses, strict=True) if a == 0])
        for a, x in zip(steps, losses, strict=True):
            if a > 0:
                weight = math.sqrt(kept**age)
                rows.append([-a * weight, 0.5 * a * a * weight])
                right.append((x - start) * weight)
    return np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)[0]


class TestParabola:
    def test_exact_without_noise(self):
        steps = [0.0, 0.5, 1.5]
        fit = Parabola().add(steps, [3.0 - 2.0 * a + 2.5 * a * a for a in steps])
        assert fit.solve() == pytest.approx((2.0, 5.0), rel=1e-12)

    @pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
    def test_least_squares_with_forgetting(self, scale):
        rng = np.random.default_rng(0)
        searches, fit = [], Parabola()
        for i in range(6):
            steps = [0.0, 0.0, 0.0, *(scale * (1 + 0.2 * i) * np.array([0.5, 1.0, 1.5, 2.0]))]
            losses = [(a / scale - 1.0) ** 2 + 0.3 * rng.standard_normal() for a in steps]
            searches.append((steps, losses))
            fit = fit.add(steps, losses)
            assert fit.solve() == pytest.approx(least_squares(searches), rel=1e-8)

    def test_failures_have_no_part(self):
        steps = [0.0, 0.0, 0.5, 1.0, 1.5]
        losses = [4.0, NAN, 3.5, INF, 4.5]
        found = Parabola().add(steps, losses).solve()
        assert found == pytest.approx(
            least_squares([([0.0, 0.5, 1.5], [4.0, 3.5, 4.5])]), rel=1e-10
        )

    def test_search_without_its_start_changes_nothing(self):
        fit = Parabola().add([0.0, 1.0, 2.0], [0.0, -1.0, 1.0])
        assert fit.add([0.0, 1.0, 2.0], [NAN, 1.0, 2.0]) == fit
        assert fit.add([0.0, 1.0], [NAN, INF]) == fit

    def test_nothing_to_fit(self):
        assert Parabola().solve() == (0.0, 0.0)
        assert Parabola().add([0.0], [1.0]).solve() == (0.0, 0.0)
        # one step cannot tell slope from curvature
        assert Parabola().add([0.0, 1.0], [1.0, 0.5]).solve() == (0.0, 0.0)

    def test_errors(self):
        """Of least squares with a known F(0): roots of s^2 times the inverse's diagonal."""
        steps = [0.0, 0.5, 1.0, 2.0]
        design = np.array([[-a, 0.5 * a * a] for a in steps[1:]])
        expected = 0.3 * np.sqrt(np.diag(np.linalg.inv(design.T @ design)))
        assert Parabola().add(steps, [0.0] * 4).errors(0.3) == pytest.approx(tuple(expected))
        assert Parabola().errors(0.3) == (math.inf, math.inf)
        assert Parabola().add([0.0, 1.0], [1.0, 0.5]).errors(0.3) == (math.inf, math.inf)

    @pytest.mark.parametrize(
        ("slope", "curvature", "expected"),
        [
            (2.0, 4.0, 0.5),
            (-2.0, 4.0, -0.5),
            (0.01, 0.02, math.nan),
            (2.0, 0.02, math.inf),
            (2.0, -4.0, math.inf),
            (-2.0, -4.0, 0.0),
        ],
    )
    def test_minimum_of_what_stands_out(self, slope, curvature, expected):
        """For these steps the standard errors are 1.5 and 1.8 times the noise."""
        steps = [0.0, 0.5, 1.0, 1.5, 2.0]
        fit = Parabola().add(steps, [-slope * a + 0.5 * curvature * a * a for a in steps])
        assert fit.minimum(0.1) == pytest.approx(expected, nan_ok=True)

    def test_holds_the_longest_steps(self):
        steps = [0.0, 0.5e40, 1e40, 3.2e41]
        fit = Parabola().add(steps, [(a / 1e40 - 1.0) ** 2 for a in steps])
        slope, curvature = fit.solve()
        assert slope / curvature == pytest.approx(1e40, rel=1e-9)


class TestLineModel:
    STEPS = (0.0, 0.0, 0.0, 0.5, 1.0, 1.5, 2.0)
    FALLING = (0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0)

    def test_clear_values_are_taken_as_they_are(self):
        losses = [parabola(0.75)(a) for a in self.STEPS]
        model, minimum = LineModel().minimum(self.STEPS, losses, 1.0, 0.01)
        assert minimum == line_minimum(self.STEPS, losses)
        assert model.parabola.solve() == pytest.approx((3.0 * 0.75, 3.0), rel=1e-9)
        assert model.reach == 0.5

    @pytest.mark.parametrize("noise", [0.3, 1.0])
    def test_hidden_values_are_fitted(self, noise):
        """Without any noise in them the fit is exact, whatever was told."""
        model = LineModel()
        for _ in range(3):
            losses = [parabola(0.75)(a) for a in self.STEPS]
            model, minimum = model.minimum(self.STEPS, losses, 1.0, noise)
            assert minimum == pytest.approx(0.75, rel=1e-9)

    def test_what_cannot_be_told_changes_nothing(self):
        losses = [parabola(0.75)(a) for a in self.STEPS]
        model, minimum = LineModel().minimum(self.STEPS, losses, 1.0, 6.0)
        assert (minimum, model.hidden) == (1.0, True)

    @pytest.mark.parametrize(
        ("noise", "expected"),
        [(0.0, 1.0), (3.0, 2 * math.sqrt(2.0)), (3 * 8.0, 8.0), (1e9, 16.0)],
    )
    def test_distance_shows_the_curvature(self, noise, expected):
        """sqrt(8 s / h) with h = 3, between alpha = 1 and 16."""
        model = LineModel(Parabola().add([0.0, 1.0, 2.0], [0.0, 1.5, 6.0]))
        assert model.distance(1.0, noise) == pytest.approx(expected)

    def test_distance_without_curvature_follows_what_was_seen(self):
        assert LineModel().distance(1.0, 1.0) == 1.0
        # differences of four: more than chance with a noise of 0.5, less with 1
        seen, minimum = LineModel().minimum(self.STEPS, self.FALLING, 1.0, 0.5)
        assert (seen.reach, minimum) == (0.5, math.inf)
        unseen, minimum = LineModel().minimum(self.STEPS, self.FALLING, 1.0, 1.0)
        assert (unseen.reach, minimum) == (2.0, 1.0)
        assert unseen.distance(1.0, 1.0) == 2.0
        # else the least step, a part of the distance, would grow where F is flat
        assert unseen.distance(0.01, 1.0) == 0.16

    def test_no_shorter_than_a_sixteenth_of_the_distance(self):
        rising = [a + 0.5 * a * a for a in self.STEPS]
        model, minimum = LineModel().minimum(self.STEPS, rising, 1.0, 0.25)
        assert (minimum, model.hidden) == (0.0625, True)
        falling = [-a + 0.5 * a * a for a in self.STEPS]
        assert not LineModel().minimum(self.STEPS, falling, 1.0, 0.25)[0].hidden

    @pytest.mark.parametrize(("before", "weight"), [(16.0, 16.0**-4), (1.0, 1.0), (0.1, 1.0)])
    def test_searches_further_out_count_less(self, before, weight):
        """The next one is at a distance of 1."""
        steps = [before * a for a in self.STEPS]
        earlier = LineModel(Parabola().add(steps, [parabola(40.0)(a) for a in steps]), before)
        losses = [parabola(0.75)(a) for a in self.STEPS]
        model, _ = earlier.minimum(self.STEPS, losses, 1.0, 0.3)
        own = sum(a * a for a in self.STEPS)
        expected = 0.6 * weight * earlier.parabola.normal[0] + own
        assert model.parabola.normal[0] == pytest.approx(expected, rel=1e-9)


class TestMeanParabola:
    @staticmethod
    def lines(slopes, curvature=4.0, weight=1.0):
        fit = MeanParabola()
        for slope in slopes:
            fit = fit.add(slope, curvature, weight)
        return fit

    def test_means_weigh_the_way_between_lines(self):
        """Rates 1 and 3: the mean slope is what F fell by over the length of the path."""
        fit = MeanParabola().add(2.0, 5.0, 1.0).add(-2.0, 9.0, 3.0)
        assert fit[:4] == pytest.approx((4.0, 16 / 10, -1.0, 8.0))
        assert (fit.last, fit.noise) == (-2.0, pytest.approx(math.sqrt(0.25 * 4 + 0.75 * 8)))

    @pytest.mark.parametrize("n", [1, 2, 5, 40])
    def test_lines_of_equal_weight_are_counted(self, n):
        assert self.lines([1.0] * n, weight=0.3).lines == pytest.approx(n)

    @pytest.mark.parametrize("sign", [-1.0, 1.0])
    def test_one_line_asks_for_a_part_of_its_minimum(self, sign):
        """Its slope is all noise: 1/2 of it, with an error of sqrt(3) / 2."""
        fit = self.lines([sign * 2.0], 5.0)
        assert fit.minimum == pytest.approx(0.5 * math.sqrt(0.5 * 1.5) * 0.4)

    def test_many_that_agree_ask_for_all_of_it(self):
        assert self.lines([2.0] * 1000).minimum == pytest.approx(0.5, rel=0.05)

    @pytest.mark.parametrize("seed", range(3))
    def test_slopes_that_disagree_end_no_motion(self, seed):
        """Half of the standard error of noise of 1, or less than it."""
        slopes = np.random.default_rng(seed).standard_normal(400)
        assert 0.4 / 20 / 4 < self.lines(slopes).minimum < 2.0 / 20 / 4

    def test_a_trend_is_no_noise(self):
        slopes = np.geomspace(10.0, 1.0, 100)
        assert self.lines(slopes).minimum > 0.9 * np.mean(slopes) / 4
        shuffled = np.random.default_rng(0).permutation(slopes)
        assert self.lines(shuffled).noise > 2 * self.lines(slopes).noise

    def test_falls_with_the_root_of_the_steps_where_nothing_is_left(self):
        """F falls by 1 in all; steps that follow the minimiser, so that their sum is the path."""
        path, falls, steps = 1.0, [], 0.0
        fit = MeanParabola().add(1.0, 1.0, 1.0)
        for _ in range(20_000):
            rate = fit.slope / fit.curvature
            fit, path, steps = fit.add(0.0, 1.0, rate), path + rate, steps + 1
            falls.append(rate * math.sqrt(2.0 * steps + 1.0))
        assert falls[-1] == pytest.approx(1.0, rel=0.01)

    @pytest.mark.parametrize("scale", [1e-150, 1e-12, 1.0, 1e12, 1e150])
    def test_scales(self, scale):
        slopes = (-3.0, 1.0, -2.0, 6.0)
        plain, fit = self.lines(slopes), self.lines([s * scale for s in slopes], 4.0 * scale)
        assert fit.minimum == pytest.approx(plain.minimum)
        assert self.lines(slopes, weight=scale).minimum == pytest.approx(plain.minimum)

    def test_without_curvature(self):
        assert self.lines([1.0], -1.0).minimum == math.inf
        assert self.lines([-1.0], 0.0).minimum == 0.0

    def test_nothing_at_all(self):
        assert MeanParabola().minimum == 0.0
        assert self.lines([0.0, 0.0]).minimum == 0.0

    def test_shortened(self):
        fit = self.lines((-3.0, 1.0, -2.0, 6.0))
        assert fit.shortened(0.25).minimum == pytest.approx(fit.minimum / 4)
        assert fit.shortened(0.25).size == pytest.approx(fit.size / 4)
