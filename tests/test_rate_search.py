"""Line searches in turn: the first minimum, later ones, with noise and steps, and the rate."""

import math
from dataclasses import replace

import numpy as np
import pytest

from zomopi_core.line_search import MeanParabola
from zomopi_core.look import Geometry
from zomopi_core.noise import Noise
from zomopi_core.rate_search import RateSearch
from zomopi_core.smoothing import Smoothing

QUIET = Noise(measured=True)
RANDOM = Noise(level=0.1, random=True, measured=True)
STEPPED = Noise(level=0.1, grain=0.6, measured=True)
NEW = RateSearch(tuned=True, memory=10.0, evaluations=8, steps=1, alpha=1.0)
LATER = replace(NEW, found=True, steps=1000, next_search=1000)
WIDTH = Smoothing(tuned=True, width=0.5, least=1e-9, most=3.0, first=0.5, gain=1.0, settled=True)


def line(vertex, scale=1.0):
    return lambda a: scale * ((a / vertex - 1.0) ** 2 - 1.0)


def tell(search, fun, noise=QUIET):
    scales = search.scales(noise)
    return search.told(scales, [fun(a) for a in scales], noise)


def first_minimum(search, fun, noise=QUIET):
    """Return the search with its first minimum, and the farthest point that it asked for."""
    farthest = 0.0
    for _ in range(40):
        if search.found:
            return search, farthest
        farthest = max(farthest, *search.scales(noise))
        search = tell(search, fun, noise).passed()
    raise AssertionError("found nothing")


class TestPoints:
    def test_nothing_to_ask(self):
        assert replace(NEW, tuned=False).scales(QUIET) == ()
        assert replace(NEW, alpha=0.0).scales(QUIET) == ()
        assert replace(NEW, next_search=2).scales(QUIET) == ()

    def test_first_search(self):
        assert replace(NEW, alpha=2.0).scales(RANDOM) == (0.0, 2.0, 8.0)

    @pytest.mark.parametrize(
        ("noise", "expected"),
        [
            (QUIET, (0.0, 1.0, 2.0, 4.0)),
            (RANDOM, (0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0)),
            (STEPPED, (0.0, 1.0, 2.0, 3.0, 4.0)),
        ],
    )
    def test_later_searches(self, noise, expected):
        assert replace(LATER, alpha=2.0).scales(noise) == expected


class TestBegin:
    @pytest.mark.parametrize(("raises", "part"), [(0, 0.1), (2, 1.0)])
    def test_as_long_as_a_part_of_a_probe(self, raises, part):
        smoothing = replace(WIDTH, raises=raises)
        search = replace(NEW, alpha=0.0).begin(smoothing, Geometry(probe=4.0, direction=8.0))
        assert search.alpha * 8.0 == pytest.approx(part * 0.5 * 4.0)

    @pytest.mark.parametrize("geometry", [Geometry(0.0, 1.0), Geometry(1.0, 0.0)])
    def test_without_a_length(self, geometry):
        search = replace(NEW, alpha=0.0).begin(WIDTH, geometry)
        assert not search.begun


class TestFirstMinimum:
    @pytest.mark.parametrize("vertex", 10.0 ** np.arange(-8, 9, 2))
    @pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
    def test_exact_on_parabolas(self, vertex, scale):
        """Wherever it begins; and it looks no further than it must."""
        search, farthest = first_minimum(NEW, line(vertex, scale))
        assert search.alpha == pytest.approx(vertex, rel=1e-6)
        assert farthest <= max(4.0, 16.0 * vertex)

    def test_nothing_moves_before(self):
        search = tell(NEW, line(1e6))
        assert not search.found
        assert search.rate == 0.0
        assert search.passed().due

    @pytest.mark.parametrize("sign", [-1.0, 1.0])
    def test_ends_where_there_is_none(self, sign):
        search, _ = first_minimum(NEW, lambda a: sign * a)
        assert 1e-20 < search.alpha < 1e20
        assert search.rounds == 15

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_failures_ask_for_nearer_points(self, bad):
        search, _ = first_minimum(NEW, lambda a: -a if a < 1e-3 else bad)
        assert 1e-5 < search.alpha < 1e-3

    def test_hidden_minimum_is_the_farthest_hidden_point(self):
        search, _ = first_minimum(NEW, line(1.0, 1e-6), Noise(level=1.0))
        assert 100 < search.alpha < 10_000  # F has risen by the noise at 1,000

    @pytest.mark.parametrize("noise", [RANDOM, STEPPED])
    def test_noise_hides_no_further_than_a_probe(self, noise):
        search, _ = first_minimum(replace(NEW, probe=3.0), lambda a: 0.0, noise)
        assert search.alpha == 3.0

    def test_low_values_further_out_than_a_noisy_probe_are_no_minimum(self):
        """What is far away may be lower than a plateau, in whatever direction."""
        search, farthest = first_minimum(replace(NEW, probe=3.0), lambda a: -a, RANDOM)
        assert (search.alpha, farthest) == (3.0, 4.0)
        search, _ = first_minimum(replace(NEW, probe=3.0), line(3.5, 1e3), RANDOM)
        assert search.alpha == 3.0

    @pytest.mark.parametrize(
        ("smoothing", "probe"),
        [
            (WIDTH, math.inf),
            (replace(WIDTH, raises=1), 0.5 * 4.0 / 8.0),
            (replace(WIDTH, tuned=False), 0.5 * 4.0 / 8.0),
        ],
    )
    def test_length_of_a_probe_counts_where_it_was_made_for_noise(self, smoothing, probe):
        search = NEW.with_probe(smoothing, Geometry(probe=4.0, direction=8.0))
        assert search.probe == probe
        assert replace(search, probe=1.0).with_probe(WIDTH, Geometry(4.0, 0.0)).probe == math.inf


class TestWeight:
    def test_of_an_average_that_grows(self):
        weights = [replace(LATER, hidden=n).weight for n in (0, 1, 2, 4, 10)]
        assert weights == pytest.approx([1.0, 1.0, 3 / 4, 3 / 6, 3 / 12])

    def test_hidden_minima_are_counted(self):
        search = tell(LATER, lambda a: 0.01 * a**2, RANDOM)
        assert (search.hidden, search.model.hidden) == (1, True)
        search = tell(replace(search, steps=search.next_search), line(1.0, 0.5), RANDOM)
        assert (search.hidden, search.model.hidden) == (1, False)
        assert search.retreated().hidden == 0

    def test_samples_are_not_averaged(self):
        assert replace(LATER, hidden=10, mean=MeanParabola()).weight == 1.0


class TestGrid:
    """One grid of the first search: 0, 1 and 4. Differences up to 2.83 are noise of level 1."""

    NOISE = Noise(level=1.0)

    @staticmethod
    def tell(losses, noise=NOISE, **state):
        return replace(NEW, **state).told((0.0, 1.0, 4.0), losses, noise)

    def test_falls_to_the_end(self):
        search = self.tell((0.0, -10.0, -40.0))
        assert (search.found, search.alpha, search.shrunk) == (False, 4.0, False)
        assert search.rounds == 1

    def test_rises_at_once(self):
        search = self.tell((0.0, 10.0, 40.0))
        assert (search.found, search.alpha, search.shrunk) == (False, 1 / 16, True)
        assert search.next_search == NEW.steps + 1

    def test_minimum_between(self):
        search = self.tell((0.0, -2.9, -2.9))
        assert (search.found, search.alpha) == (True, pytest.approx(2.5))
        assert search.next_search == NEW.steps + 2

    @pytest.mark.parametrize("losses", [(0.0, -2.7, -2.7), (0.0, 2.7, 0.0)])
    def test_hidden(self, losses):
        """Further out, unless the search came from there."""
        assert self.tell(losses).alpha == 4.0
        assert not self.tell(losses).found
        search = self.tell(losses, shrunk=True)
        assert (search.found, search.alpha) == (True, 4.0)

    @pytest.mark.parametrize(
        ("losses", "alpha"),
        [((0.0, -1.0, 2.0), 4.0), ((0.0, -1.0, 3.0), 1.0), ((0.0, -1.0, math.nan), 1.0)],
    )
    def test_hidden_and_risen(self, losses, alpha):
        search = self.tell(losses)
        assert (search.found, search.alpha) == (True, alpha)

    @pytest.mark.parametrize("noise", [Noise(level=1.0, random=True), Noise(1.0, grain=6.0)])
    def test_hidden_from_a_rough_function(self, noise):
        losses = (0.0, -1.0, -1.0)
        search = self.tell(losses, noise, probe=3.0)
        assert (search.found, search.alpha) == (True, 3.0)
        assert not self.tell(losses, noise, probe=4.1).found
        assert not self.tell(losses, probe=3.0).found  # noise of rounding is no roughness

    @pytest.mark.parametrize(
        ("losses", "alpha"),
        [((0.0, 10.0, 40.0), 1 / 8), ((0.0, -10.0, -40.0), 8.0), ((0.0, -1.0, -1.0), 4.0)],
    )
    def test_last_round(self, losses, alpha):
        search = self.tell(losses, rounds=15)
        assert (search.found, search.alpha) == (True, alpha)
        assert not self.tell(losses, rounds=14).found

    def test_failures(self):
        search = self.tell((0.0, math.nan, math.inf))
        assert (search.found, search.alpha, search.shrunk) == (False, 1 / 16, True)

    def test_too_few_points(self):
        assert NEW.told((0.0, 1.0), (0.0, -1.0), QUIET) == NEW.postponed()


class TestLaterMinimum:
    @pytest.mark.parametrize("vertex", [0.3, 1.0, 3.0])
    def test_geometric_mean_with_the_last(self, vertex):
        assert tell(LATER, line(vertex)).alpha == pytest.approx(math.sqrt(vertex))

    @pytest.mark.parametrize(("fun", "change"), [(lambda a: -a, 2.0), (lambda a: a, 0.5)])
    def test_as_far_down_as_up(self, fun, change):
        """The minimiser is taken within a factor of four."""
        assert tell(LATER, fun).alpha == pytest.approx(change)

    @pytest.mark.parametrize("noise", [RANDOM, STEPPED])
    def test_rough_function(self, noise):
        """One search: 0.1 of noise, a parabola that falls by 1 on its way to 1.5."""
        rng = np.random.default_rng(0)
        found = [
            tell(LATER, lambda a: line(1.5)(a) + 0.1 * rng.standard_normal(), noise).alpha
            for _ in range(200)
        ]
        assert np.median(found) == pytest.approx(math.sqrt(1.5), rel=0.1)

    def test_too_few_points(self):
        search = LATER.told((0.0, 0.0, 1.0), (0.0, 0.0, -1.0), RANDOM)
        assert search == LATER.postponed()


class TestRate:
    @pytest.mark.parametrize("steps", [1, 2, 5, 1000])
    @pytest.mark.parametrize(("noise", "pace"), [(QUIET, 1.0), (RANDOM, 1.0), (STEPPED, 2.0)])
    def test_alpha_over_the_memory_so_far(self, steps, noise, pace):
        search = tell(replace(LATER, steps=steps, next_search=steps), line(1.0), noise)
        memory = sum(0.9**i for i in range(steps))
        assert search.rate == pytest.approx(pace * search.alpha / memory, rel=1e-9)

    def test_retreat(self):
        search = replace(LATER, rate=0.8).retreated()
        assert (search.alpha, search.rate) == (0.25, 0.2)
        assert search.next_search == LATER.steps + 2

    def test_no_longer_than_the_dtype_allows(self):
        search = replace(LATER, rate=0.8, longest=3.0)
        assert search.shortened(Geometry(1.0, 2.0)) == search
        short = search.shortened(Geometry(1.0, 6.0))
        assert (short.alpha, short.rate) == (0.5, 0.5)
        assert search.shortened(Geometry(1.0, 0.0)) == search


class TestPauses:
    @pytest.mark.parametrize(("steps", "pause"), [(0, 1), (3, 3), (9, 9), (1000, 10)])
    def test_as_long_as_the_run_so_far_and_no_longer_than_the_memory(self, steps, pause):
        search = tell(replace(LATER, steps=steps, next_search=steps), line(1.0))
        assert search.next_search == steps + 1 + pause

    @pytest.mark.parametrize(("evaluations", "pause"), [(2, 40), (4, 20), (8, 10), (100, 10)])
    def test_eighty_evaluations_at_least(self, evaluations, pause):
        assert replace(LATER, evaluations=evaluations).rested().next_search == 1000 + pause


class TestSamples:
    """Parabolas with one curvature, whose slope at the iterate is another each time."""

    SLOPES = (-30.0, 50.0, -20.0, 40.0)  # their mean is 10, their root mean square 36.7

    @staticmethod
    def sample(slope, curvature=2.0):
        return lambda a: -slope * a + 0.5 * curvature * a * a

    def tell(self, search, slope):
        scales, fun = search.scales(QUIET), self.sample(slope)
        return search.told(scales, [fun(a) for a in scales], QUIET, sampled=True)

    @pytest.mark.parametrize("slope", [-30.0, 30.0])
    @pytest.mark.parametrize("start", [1e-4, 1.0])
    def test_first_line_is_over_where_the_curvature_shows(self, slope, start):
        search, farthest = replace(NEW, alpha=start), 0.0
        while not search.found:
            farthest = search.scales(QUIET)[-1]
            search = self.tell(search, slope).passed()
        assert 7.5 < farthest < 500  # the minimum lies at 15, before or behind
        assert 0.5 < search.alpha < 15.0
        assert search.mean.weight == search.rate

    def test_a_slope_that_vanishes_by_chance_is_no_minimum(self):
        """At the first grid curvature seems to be all there is; rounding does the same."""
        search = self.tell(replace(NEW, alpha=1e-4), 1e-9).passed()
        assert not search.found
        while not search.found:
            search = self.tell(search, -30.0).passed()
        assert search.alpha > 0.5

    def test_first_lines_without_any_slope(self):
        search = NEW
        while not search.found:
            search = self.tell(search, 0.0).passed()
        assert search.alpha > 0

    def test_without_it_a_line_that_rises_is_believed(self):
        search = NEW
        for _ in range(5):
            scales = search.scales(QUIET)
            search = search.told(scales, [self.sample(-30.0)(a) for a in scales], QUIET).passed()
        assert search.alpha < 1e-4

    FOUND = replace(LATER, alpha=1.0, rate=0.1, last_line=999)

    def lines(self, search, slopes):
        for slope in slopes:
            search = self.tell(search, slope)
            search = replace(search, steps=search.next_search)
        return search

    def test_later_lines_are_averaged(self):
        search = self.lines(self.FOUND, 50 * self.SLOPES)
        assert 2.0 < search.alpha < 5.0  # 10 / 2, less the error of 200 slopes
        assert search.mean.slope == pytest.approx(10.0, rel=0.1)

    def test_changes_by_four_at_most(self):
        assert self.tell(self.FOUND, 1e6).alpha == 4.0
        assert self.tell(self.FOUND, 0.0).alpha == 0.25

    def test_a_line_counts_by_the_way_since_the_last(self):
        search = self.tell(replace(self.FOUND, last_line=980), 10.0)
        assert search.mean.weight == pytest.approx(0.1 * 20)
        assert search.last_line == 1000

    def test_rate_stays_up_where_slopes_of_recent_lines_vanish(self):
        """It falls with the root of the way, not as soon as a few lines see no slope."""
        search = self.lines(self.FOUND, [10.0] * 30)
        later = self.lines(search, [0.5, -0.5] * 15)
        assert search.rate / 4 < later.rate < search.rate

    def test_retreat_is_not_undone_by_the_lines_before(self):
        search = self.lines(self.FOUND, [10.0] * 30)
        retreated = search.retreated()
        assert retreated.alpha == search.alpha / 4
        assert self.lines(retreated, [10.0]).alpha < 0.6 * search.alpha

    @pytest.mark.parametrize(("slope", "pause"), [(1.0, 11), (1e6, 2), (0.0, 2)])
    def test_searches_are_frequent_and_at_once_where_alpha_is_far_off(self, slope, pause):
        search = replace(self.FOUND, memory=100.0, alpha=0.2)
        told = self.tell(search, slope)
        assert told.steady == (pause == 11)
        assert told.next_search == search.steps + pause

    def test_no_haste_without_curvature(self):
        scales = self.FOUND.scales(QUIET)
        told = self.FOUND.told(scales, [-a - a * a for a in scales], QUIET, sampled=True)
        assert (told.alpha, told.steady) == (4.0, True)

    @pytest.mark.parametrize("scale", [1e-100, 1e100])
    def test_scale_of_the_function_does_not_matter(self, scale):
        scales = self.FOUND.scales(QUIET)
        plain = self.tell(self.FOUND, 10.0)
        losses = [scale * self.sample(10.0)(a) for a in scales]
        told = self.FOUND.told(scales, losses, QUIET, sampled=True)
        assert told.alpha == pytest.approx(plain.alpha, rel=1e-9)
