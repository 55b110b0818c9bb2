"""When an iterate is given up: by how much F may rise, and how often it may fail."""

import math
from dataclasses import replace

import numpy as np
import pytest

import zomopi_core as zo
from zomopi_core.noise import Noise
from zomopi_core.retreat import Descent
from zomopi_core.smoothing import Geometry

QUIET = Noise()
FELL = Descent(first=10.0, lowest=2.0)


def limit(descent, noise=QUIET, nearby=math.inf):
    """Return the largest multiple of 1/64 that does not count as a rise."""
    values = [descent.lowest + i / 64 for i in range(64 * 20)]
    return max(x for x in values if not descent.has_risen(x, min(x, nearby), noise))


class TestRise:
    def test_half_of_what_was_gained(self):
        assert limit(FELL) == 2.0 + 0.5 * 8.0

    def test_noise_comes_on_top(self):
        assert limit(FELL, Noise(level=0.5)) == 2.0 + 0.5 * 8.0 + 6 * 0.5

    def test_four_usual_changes(self):
        assert limit(Descent(first=10.0, lowest=2.0, usual=2.0)) == 2.0 + 4 * 2.0
        assert limit(Descent(first=10.0, lowest=2.0, usual=0.5)) == 2.0 + 0.5 * 8.0

    def test_point_nearby_that_makes_up_for_it(self):
        assert FELL.has_risen(9.0, 9.0, QUIET)
        assert not FELL.has_risen(9.0, 2.0, QUIET)
        assert FELL.has_risen(9.0, 2.1, QUIET)

    @pytest.mark.parametrize("first", [math.nan, math.inf, 1.0])
    def test_start_that_was_not_higher(self, first):
        assert limit(Descent(first=first, lowest=2.0)) == 2.0

    def test_nothing_known(self):
        assert not Descent().has_risen(1e300, 1e300, QUIET)

    def test_is_best(self):
        assert FELL.is_best(2.0, QUIET)
        assert not FELL.is_best(2.25, QUIET)
        assert FELL.is_best(2.25, Noise(level=0.125))


class TestUsual:
    def test_largest_change_while_nothing_moves(self):
        descent = Descent()
        for value in (5.0, 8.0, 7.0):
            descent = descent.seen(value, QUIET, moves=False)
        assert (descent.last, descent.usual) == (7.0, 3.0)

    def test_average_of_later_changes(self):
        descent = Descent(last=7.0, usual=3.0).seen(6.0, QUIET, moves=True)
        assert (descent.last, descent.usual) == (6.0, 2.0)

    def test_first_value_is_no_change(self):
        assert Descent().seen(1e9, QUIET, moves=True).usual == 0.0


class TestSamples:
    """F differs from step to step where nothing moves: each step sees another sample of data."""

    def test_seen_at_the_start(self):
        start = Descent().from_start(5.0)
        assert start.seen(5.1, QUIET, moves=False).sampled
        assert not start.seen(5.0, QUIET, moves=False).sampled

    def test_noise_rounding_and_motion_are_none(self):
        start = Descent().from_start(5.0)
        assert not start.seen(6.9, Noise(level=0.1), moves=False).sampled
        assert not start.seen(5.0 + 1e-6, QUIET, moves=False).sampled
        assert not start.seen(7.0, QUIET, moves=True).sampled
        assert not Descent().seen(7.0, QUIET, moves=False).sampled

    def test_a_rise_shows_samples_where_they_are_expected(self):
        fallen = Descent(first=5.0, lowest=3.0, last=3.5, expected=True)
        assert fallen.seen(3.8, QUIET, moves=True).sampled
        assert not fallen.seen(3.6, QUIET, moves=True).sampled  # by less than a tenth of 2
        assert not fallen.seen(3.4, QUIET, moves=True).sampled
        assert not fallen.seen(3.8, Noise(level=0.1), moves=True).sampled
        assert not replace(fallen, expected=False).seen(3.8, QUIET, moves=True).sampled
        assert not Descent(expected=True).seen(3.8, QUIET, moves=True).sampled

    def test_what_samples_differ_by_is_remembered(self):
        descent = Descent(last=7.0, usual=3.0, sampled=True)
        for _ in range(5):
            descent = descent.seen(7.0, QUIET, moves=True)
        assert descent.usual == pytest.approx(3.0 * 0.99**5)
        assert descent.seen(12.0, QUIET, moves=True).usual == 5.0


class TestLowest:
    @pytest.mark.parametrize(("value", "lowest"), [(3.0, 3.0), (math.nan, math.inf)])
    def test_start(self, value, lowest):
        assert Descent().from_start(value).lowest == lowest

    def test_lowered(self):
        assert FELL.lowered(3.0).lowest == 2.0
        assert FELL.lowered(1.0).lowest == 1.0


class TestFailures:
    def test_anywhere_are_remembered(self):
        """The best point seen may then lie at the edge of a domain."""
        method = zo.zo_mopi(learning_rate="auto")
        tuning = zo.Optimizer(np.zeros((3, 2)), method=method)._point.tuning
        line, geometry = [0.0] * len(tuning.plan.scales), Geometry(1.0, 0.0)
        for losses, extra, failed in (
            ([1.0, 2.0], line, False),
            ([1.0, math.nan], line, True),
            ([1.0, 2.0], [*line[1:], math.inf], True),
        ):
            told = tuning.told([1.0], losses, extra, geometry)[0]
            assert told.descent.has_failed == failed
            assert told.passed().descent.has_failed == failed

    def test_four_in_a_row(self):
        descent = Descent()
        for _ in range(3):
            descent = descent.failed(lost=True)
        assert not descent.lost
        assert descent.failed(lost=True).lost
        assert descent.failed(lost=False).failures == 0
        assert descent.seen(1.0, QUIET, moves=True).failures == 0
