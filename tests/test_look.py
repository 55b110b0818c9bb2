"""What the tuning reads of arrays: one transfer, and lengths without their products."""

import numpy as np
import pytest

import zomopi_core as zo
from zomopi_core import _arrays
from zomopi_core.look import Length, Size, length, look, sizes_of


class TestRead:
    def test_keeps_values_shapes_and_the_widest_dtype(self, backend):
        third = backend.array(1 / 3, "float64")
        small = backend.array([0.5, 1.5], "float32")
        read = _arrays.read([small, 2.0, third, np.asarray([0.1, 0.2]), np.float32(0.25)])
        assert read == [[0.5, 1.5], [2.0], [1 / 3], [0.1, 0.2], [0.25]]

    def test_nothing(self):
        assert _arrays.read([]) == []

    def test_once_for_each_device(self, make_backend, monkeypatch):
        xp = make_backend("array_api_strict").xp
        values = [
            xp.asarray([float(i)], device=xp.Device(name))
            for i, name in enumerate(["CPU_DEVICE", "device1", "CPU_DEVICE", "device1"])
        ]
        calls = []
        to_host = _arrays.to_host
        monkeypatch.setattr(
            "zomopi_core._arrays.conversions.to_host", lambda x: calls.append(x) or to_host(x)
        )
        assert _arrays.read(values) == [[0.0], [1.0], [2.0], [3.0]]
        assert [tuple(x.shape) for x in calls] == [(2,), (2,)]


class TestLook:
    def test_hands_each_number_to_where_it_belongs(self, backend):
        rng = np.random.default_rng(0)
        left, right, full = (rng.standard_normal(s) for s in ((7, 3), (3, 5), (4, 6)))
        a, b, c = (backend.array(x) for x in (left, right, full))
        found = look(
            [backend.array([1.0, 2.0]), backend.array([3.0])],
            [Size(backend.array(0.125), 16, 1e-7), Size(backend.array(0.5), 16, 1e-7)],
            [length(a, b), length(None, c)],
            [length(a, b, backend.array(-2.0))],
        )
        assert found.numbers == [[1.0, 2.0], [3.0]]
        assert [size.rms for size in found.sizes] == [0.125, 0.5]
        assert [size.typical for size in found.sizes] == [0.25, 0.5]
        product = np.linalg.norm(left @ right)
        assert found.geometry.probe == pytest.approx(np.hypot(product, np.linalg.norm(full)))
        assert found.geometry.direction == pytest.approx(2 * product)

    def test_scales_that_have_no_square_in_float32(self):
        one = np.float32(1.0)
        assert look(directions=[Length(one, np.float32(1e-30))]).geometry.direction == (
            pytest.approx(1e-30)
        )

    def test_sizes_are_those_of_the_parameters(self, backend):
        x = backend.array(np.full((4, 6), -3.0))
        (size,) = look(sizes=sizes_of(zo.zo_mopi().rules_of(x))).sizes
        assert size == Size(3.0, 6, np.finfo(np.float64).eps)
