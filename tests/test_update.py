"""Learning rates, schedules, weight decay and momentum."""

import math

import numpy as np
import pytest

import zomopi_core as zo
from zomopi_core.momentum import ExponentialAverage
from zomopi_core.update import Update, typical_size


class TestSchedules:
    def test_constant(self):
        assert [zo.constant(0.3)(t) for t in (0, 10**9)] == [0.3, 0.3]

    def test_linear(self):
        schedule = zo.linear_decay(2.0, 10, final=0.5)
        for t in range(15):
            assert math.isclose(schedule(t), 0.5 + 1.5 * max(0, 1 - t / 10))

    def test_cosine(self):
        schedule = zo.cosine_decay(2.0, 10, final=0.5)
        for t in range(15):
            phase = math.pi * min(1, t / 10)
            assert math.isclose(schedule(t), 0.5 + 1.5 * (1 + math.cos(phase)) / 2)

    @pytest.mark.parametrize("make", [zo.linear_decay, zo.cosine_decay])
    def test_warmup(self, make):
        schedule = make(1.0, 12, warmup=3)
        rates = [schedule(t) for t in range(13)]
        assert np.allclose(rates[:4], [0.25, 0.5, 0.75, 1.0])
        assert np.all(np.diff(rates[3:]) < 0)
        assert math.isclose(rates[12], 0.0, abs_tol=1e-15)

    @pytest.mark.parametrize("make", [zo.linear_decay, zo.cosine_decay])
    def test_traced_step(self, make_backend, make):
        backend = make_backend("jax")
        import jax

        schedule = make(1.0, 12, warmup=3, final=0.1)
        for t in (0, 2, 3, 7, 12, 40):
            assert math.isclose(float(jax.jit(schedule)(t)), schedule(t), rel_tol=1e-6)
            assert math.isclose(float(schedule(backend.array(t))), schedule(t), rel_tol=1e-6)

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"peak": 0.0}, "peak must be a positive number, got 0.0"),
            ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
            ({"warmup": -1}, "warmup must be an integer of at least 0, got -1"),
            ({"warmup": 10}, "warmup must be below steps=10, got 10"),
            ({"final": -1.0}, "final must be a number of at least 0, got -1.0"),
        ],
    )
    def test_bad_options(self, options, text):
        with pytest.raises(ValueError, match=text):
            zo.linear_decay(**({"peak": 1.0, "steps": 10} | options))


class TestTypicalSize:
    @pytest.mark.parametrize("scale", [1.0, 1e-3, 1e25])
    def test_rms(self, backend, scale):
        x = np.random.default_rng(0).standard_normal((5, 400)) * scale
        found = float(typical_size(backend.array(x, "float32"), 400))
        assert math.isclose(found, max(math.sqrt(np.mean(x**2)), 0.05), rel_tol=1e-5)

    def test_zero(self, backend):
        assert float(typical_size(backend.array(np.zeros((3, 25))), 25)) == 0.2


class TestUpdate:
    def test_default_is_a_fraction_of_the_size(self, backend):
        """The entries of a first step have root mean square 0.01 max(rms(x0), 1/sqrt(n))."""
        x0 = np.random.default_rng(0).standard_normal((8, 6)) * 3.0
        vector = np.zeros(25)
        params = {"W": backend.array(x0), "b": backend.array(vector)}
        optimizer = zo.Optimizer(params, method=zo.zo_mopi(probes=2))
        losses = np.random.default_rng(1).standard_normal(len(optimizer.ask()))
        optimizer.tell(losses)
        step = backend.numpy(optimizer.x["W"]) - x0
        assert math.isclose(
            np.sqrt(np.mean(step**2)), 0.01 * np.sqrt(np.mean(x0**2)), rel_tol=1e-6
        )
        step = backend.numpy(optimizer.x["b"])
        assert math.isclose(np.sqrt(np.mean(step**2)), 0.01 * 0.2, rel_tol=1e-6)

    def test_numpy_scalars_do_not_widen(self):
        method = zo.zo_mopi(
            learning_rate=lambda t: np.float64(0.1),
            weight_decay=np.float64(0.1),
            smoothing=np.float64(1e-2),
            momentum=np.float64(0.5),
        )
        optimizer = zo.Optimizer(np.ones((4, 4), dtype=np.float32), method=method)
        optimizer.tell(np.arange(float(len(optimizer.ask()))))
        assert optimizer.x.dtype == np.float32
        assert optimizer.state.leaves[0].momentum.dtype == np.float32

    def test_weight_decay_is_decoupled(self, backend):
        x0 = np.random.default_rng(0).standard_normal((5, 4))

        def step(decay):
            method = zo.zo_mopi(learning_rate=0.1, weight_decay=decay, probes=2)
            optimizer = zo.Optimizer(backend.array(x0), method=method)
            optimizer.ask()
            optimizer.tell([1.0, 2.0, 0.5, 0.0])
            return backend.numpy(optimizer.x)

        assert np.allclose(step(0.5), step(0.0) - 0.1 * 0.5 * x0)

    def test_schedule_is_asked_for_the_step(self):
        update = Update(lambda t: 10.0**-t)
        assert [update.rate(t) for t in (0, 1, 2)] == [1.0, 0.1, 0.01]

    def test_horizon(self):
        method = zo.zo_mopi().with_horizon(4)
        assert [method.matrices.update.rate(t) for t in range(6)] == [1, 0.75, 0.5, 0.25, 0, 0]
        fixed = zo.zo_mopi(learning_rate=0.1).with_horizon(4)
        assert fixed.matrices.update.rate(3) == 0.1


class TestExponentialAverage:
    def test_formula(self, backend):
        rng = np.random.default_rng(0)
        M, G = rng.standard_normal((2, 3, 4))
        average = ExponentialAverage(0.8)
        one, zero = (backend.array(v) for v in (1.0, 0.0))

        def update(alive, started):
            found = average.update(backend.array(M), None, backend.array(G), alive, started)
            return backend.numpy(found[2])

        assert np.allclose(update(one, one), 0.8 * M + 0.2 * G, rtol=1e-14)
        assert np.allclose(update(one, zero), G, rtol=1e-14)
        assert np.array_equal(update(zero, one), M)
