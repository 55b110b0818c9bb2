"""The smoothing: raised until differences stand out, then as large as the way to go."""

import math
from dataclasses import replace

import numpy as np
import pytest

import zomopi_core as zo
from zomopi_core.catalog import tuned_method
from zomopi_core.look import Geometry, look, sizes_of
from zomopi_core.noise import Noise
from zomopi_core.smoothing import Smoothing, start_smoothing

QUIET = Noise(measured=True)
LOSSES = [1.0, -1.0, 2.0, -2.0]
START = Smoothing(
    tuned=True, width=1e-3, least=1e-9, most=3.0, first=1e-3, gain=1.0, settled=False
)


def settle(smoothing, noise, spread, losses=LOSSES, start=0.0):
    return smoothing.settle(noise, spread / smoothing.width, losses, start)


def begun(method, params):
    return start_smoothing(method.finite_difference, method.rules_of(params))


class TestStart:
    @pytest.mark.parametrize(
        ("scale", "smallest", "largest"), [(0.0, 0.25, 0.5), (1.0, 1.0, 5.0), (1e6, 1e6, 5e6)]
    )
    def test_in_units_of_the_smallest_array(self, scale, smallest, largest):
        """The size of an array is its root mean square, or 1 / sqrt(n) if that is larger."""
        method = tuned_method("zo-mopi", "auto", "auto", "auto")
        params = {"a": np.full((8, 16), scale), "b": np.full((4, 4), -5 * scale)}
        smoothing = begun(method, params)
        assert smoothing.tuned
        assert not smoothing.settled
        assert smoothing.width == smoothing.first == pytest.approx(1e-3 * smallest)
        assert smoothing.most == pytest.approx(3 * largest)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_least_is_that_of_the_dtype(self, dtype):
        method = tuned_method("zo-mopi", "auto", "auto", "auto")
        smoothing = begun(method, np.full((8, 6), 2.0, dtype))
        assert smoothing.least == pytest.approx(16 * float(np.finfo(dtype).eps) * 2.0)

    def test_given(self):
        smoothing = begun(zo.zo_mopi(smoothing=0.25), np.zeros((8, 6)))
        assert (smoothing.tuned, smoothing.settled, smoothing.width) == (False, True, 0.25)

    def test_bounds_grow_with_the_parameters(self):
        method = tuned_method("zo-mopi", "auto", "auto", "auto")
        small = begun(method, np.ones((8, 6)))

        def sizes(x):
            return look(sizes=sizes_of(method.rules_of(x))).sizes

        large = small.grown(sizes(np.full((8, 6), 1e3)))
        assert (large.least, large.most) == pytest.approx((1e3 * small.least, 1e3 * small.most))
        assert large.grown(sizes(np.ones((8, 6)))) == large
        assert large.width == small.width


class TestSettling:
    def test_without_noise(self):
        assert settle(START, QUIET, 1.0) == replace(START, settled=True)

    @pytest.mark.parametrize(("gain", "grain"), [(0.5, 0.0), (2.0, 0.0), (1.0, 4.0)])
    def test_differences_of_three_noise_levels(self, gain, grain):
        smoothing = replace(START, gain=gain, spread=1e-9)
        noise = Noise(level=1.0, grain=grain)
        needed = 3 * gain * max(1.0, grain)
        assert not settle(smoothing, noise, 0.99 * needed).settled
        assert settle(smoothing, noise, 1.01 * needed).settled

    def test_raised_by_four(self):
        raised = settle(START, Noise(level=1.0), 1.0)
        assert (raised.width, raised.raises, raised.spread) == (4e-3, 1, 1.0)
        assert raised.steepest == pytest.approx(1e3)

    def test_raised_by_sixteen_where_nothing_differs(self):
        assert settle(START, QUIET, 0.0, [1.0] * 4).width == pytest.approx(16e-3)

    def test_small_differences_must_double(self):
        """Below twenty noise levels: seven values may have shown too little of it."""
        noise = Noise(level=1.0, random=True)
        assert not settle(START, noise, 10.0).settled
        assert not settle(replace(START, spread=6.0), noise, 10.0).settled
        assert settle(replace(START, spread=4.0), noise, 10.0).settled
        assert settle(START, noise, 21.0).settled

    def test_ends_after_twelve_times(self):
        smoothing = replace(START, most=math.inf)
        for _ in range(13):
            assert not smoothing.settled
            smoothing = settle(smoothing, Noise(level=1e9), smoothing.width)
        assert smoothing.settled
        assert smoothing.width == pytest.approx(4.0**12 * START.width)

    def test_ends_at_the_largest(self):
        assert settle(replace(START, width=1.0), Noise(level=10.0), 1.0).width == START.most
        assert settle(replace(START, width=3.0), Noise(level=10.0), 1.0).settled

    def test_ends_one_step_lower_where_slopes_fade(self):
        smoothing = replace(START, width=0.5, steepest=10.0, raises=3, spread=3.9)
        back = settle(smoothing, Noise(level=1.0), 4.0)  # 8 a unit, more than half of 10
        assert not back.settled
        back = settle(replace(smoothing, steepest=20.0), Noise(level=1.0), 4.0)
        assert (back.settled, back.width) == (True, 0.125)

    def test_curvature_asks_for_less(self):
        """The mean of these losses is 2.25 times their spread above F at 0.0."""
        risen = [3.0, 1.5, 2.5, 2.0]
        smaller = settle(START, QUIET, 1.0, risen)
        assert not smaller.settled
        assert smaller.width == smaller.first == pytest.approx(1e-3 / 8)
        seen = replace(START, spread=1e-9)
        assert settle(seen, Noise(level=0.19), 1.0, risen).width == smaller.width

    def test_curvature_that_is_not_clear(self):
        risen = [3.0, 1.5, 2.5, 2.0]
        assert settle(START, QUIET, 1.0, risen, start=1.0).settled
        assert settle(replace(START, least=START.width), QUIET, 1.0, risen).settled
        assert settle(replace(START, spread=1e-9), Noise(level=0.21), 1.0, risen).settled
        # where it was raised before, noise asked for it
        assert settle(replace(START, raises=1), QUIET, 1.0, risen).settled

    def test_failures_alone(self):
        assert not settle(START, QUIET, 0.0, [math.nan] * 4).settled


class TestFollowing:
    """Lengths: a probe of 2, a direction of 10. With alpha = 0.2 the minimum is 1 probe away."""

    GEOMETRY = Geometry(probe=2.0, direction=10.0)

    def follow(self, width, noise=QUIET, slope=1.0, **bounds):
        smoothing = replace(START, width=width, settled=True, **bounds)
        return smoothing.toward_minimum(noise, slope, 0.2, self.GEOMETRY).width

    def test_a_third_of_the_way(self):
        assert self.follow(0.3) == pytest.approx(0.3)

    def test_geometric_mean_with_the_last(self):
        assert self.follow(0.15) == pytest.approx(math.sqrt(0.15 * 0.3))

    def test_by_a_factor_of_four_at_most(self):
        assert self.follow(1e-3) == pytest.approx(4e-3)
        assert self.follow(1e3, most=math.inf) == pytest.approx(250.0)

    def test_within_bounds(self):
        assert self.follow(0.3, most=0.2) == 0.2
        assert self.follow(0.3, least=0.4) == 0.4

    @pytest.mark.parametrize(
        ("noise", "differences"),
        [(Noise(level=1.5), 2.0 * 1.5), (Noise(level=0.1, grain=2.0), 1.5 * 2.0)],
    )
    def test_differences_above_the_noise(self, noise, differences):
        """2 g s / rms(c), or 1.5 times g and the grain over it; here with g = 1."""
        wanted = differences / 4.0
        assert self.follow(wanted, noise, 4.0) == pytest.approx(wanted)

    def test_no_further_than_eight_times_the_way(self):
        assert self.follow(2.9, Noise(level=1e3), 1.0, most=math.inf) == pytest.approx(
            math.sqrt(2.9 * 8.0)
        )

    def test_equal_losses_of_a_function_with_steps_ask_for_more(self):
        assert self.follow(0.3, Noise(level=0.1, grain=0.6), 0.0, most=math.inf) == pytest.approx(
            4 * 0.3
        )

    def test_equal_losses_without_noise_ask_for_nothing(self):
        assert self.follow(0.3, QUIET, 0.0) == pytest.approx(0.3)

    def test_without_a_line_search(self):
        smoothing = replace(START, width=0.5, first=0.5, settled=True)
        assert smoothing.above_noise(QUIET, 1.0).width == 0.5
        assert smoothing.above_noise(Noise(level=1e-9), 1.0).width == 0.5
        assert smoothing.above_noise(Noise(level=0.5), 1.0).width == pytest.approx(
            math.sqrt(0.5 * 1.0)
        )
