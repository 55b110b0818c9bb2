"""ZO-MOPI as a custom method of scipy.optimize.minimize."""

import numpy as np
import pytest

import zomopi_core as zo

optimize = pytest.importorskip("scipy.optimize", reason="SciPy is not installed")
from zomopi_adapters.scipy import zo_mopi  # noqa: E402

TARGET = np.outer(np.arange(1.0, 7.0), np.ones(5)) / 6
X0 = np.zeros((6, 5))
OPTIONS = {"shape": (6, 5), "max_queries": 400}


def flat_distance(x):
    assert x.shape == (30,)
    return np.sum((x.reshape(6, 5) - TARGET) ** 2)


def run(fun=flat_distance, options=None, **more):
    options = OPTIONS | (options or {})
    return optimize.minimize(fun, X0.ravel(), method=zo_mopi, options=options, **more)


class TestResult:
    def test_is_that_of_zo_minimize(self):
        found = run(options={"learning_rate": 0.1, "rank": 3, "seed": 4})
        expected = zo.minimize(
            lambda x: float(np.sum((x - TARGET) ** 2)),
            X0,
            method=zo.zo_mopi(learning_rate=0.1, rank=3),
            max_queries=400,
            seed=4,
        )
        assert isinstance(found, optimize.OptimizeResult)
        assert np.array_equal(found.x, expected.x.ravel())
        assert np.array_equal(found.x_last, expected.x_last.ravel())
        assert (found.fun, found.nfev, found.nit) == (expected.fun, expected.nfev, expected.nit)
        assert found.success is True
        assert found.status == 1
        assert found.message == expected.message

    def test_converges(self):
        assert run(options={"max_queries": 6000}).fun < 0.01 * np.sum(TARGET**2)

    def test_target(self):
        found = run(options={"target": 6.0, "max_queries": 9000})
        assert (found.success, found.status) == (True, 0)
        assert found.fun <= 6.0

    def test_args(self):
        def fun(x, a, b):
            return a * np.sum((x - b) ** 2)

        found = run(fun, args=(2.0, 0.1), options={"max_queries": 3000})
        assert found.fun < 0.1
        assert run(fun, args=(2.0, 0.1)).fun == run(lambda x: fun(x, 2.0, 0.1)).fun

    def test_key(self):
        keys = []

        def fun(x, a, key):
            keys.append(key)
            return a * flat_distance(x)

        found = run(fun, args=(2.0,))
        assert len(set(keys[1:-2])) == found.nit

    def test_one_entry_array_is_a_loss(self):
        assert run(lambda x: np.array([flat_distance(x)])).fun == run().fun

    def test_x0_is_untouched(self):
        x0 = np.ones(30)
        x0.flags.writeable = False
        optimize.minimize(flat_distance, x0, method=zo_mopi, options=OPTIONS)


class TestCallback:
    def test_old_form(self):
        seen = []
        found = run(callback=lambda xk: seen.append(xk))
        assert len(seen) == found.nit
        assert seen[-1].shape == (30,)
        assert np.array_equal(seen[-1], found.x_last)

    def test_new_form(self):
        seen = []

        def callback(intermediate_result):
            seen.append(intermediate_result)

        found = run(callback=callback)
        assert len(seen) == found.nit
        assert isinstance(seen[0], optimize.OptimizeResult)
        assert np.array_equal(seen[-1].x, found.x_last)
        assert [s.nit for s in seen] == list(range(1, found.nit + 1))
        assert seen[0].fun == found.history["loss"][0]

    @pytest.mark.parametrize("form", ["old", "new"])
    def test_stop_iteration(self, form):
        def old(xk):
            raise StopIteration

        def new(intermediate_result):
            raise StopIteration

        found = run(callback=old if form == "old" else new)
        assert (found.nit, found.success, found.status) == (1, False, 99)

    def test_what_it_returns_does_not_stop(self):
        assert run(callback=lambda xk: True).nit == run().nit


class TestBounds:
    @pytest.mark.parametrize(
        "bounds",
        [
            optimize.Bounds(0.0, 0.5),
            optimize.Bounds(np.zeros(30), np.full(30, 0.5)),
            [(0.0, 0.5)] * 30,
        ],
    )
    def test_forms(self, bounds):
        found = run(bounds=bounds, options={"learning_rate": 1.0})
        assert np.min(found.x) >= 0
        assert np.max(found.x) <= 0.5
        assert np.min(found.x_last) >= 0

    def test_open_side(self):
        found = run(bounds=[(None, 0.25)] * 15 + [(0.5, None)] * 15)
        assert np.max(found.x[:15]) <= 0.25
        assert np.min(found.x[15:]) >= 0.5

    def test_wrong_number(self):
        with pytest.raises(ValueError, match="bounds has 3 pairs for an x0 with 30 entries"):
            run(bounds=[(0, 1)] * 3)

    def test_keep_feasible(self):
        bounds = optimize.Bounds(0.0, 0.5, keep_feasible=True)
        with pytest.raises(ValueError, match="keep_feasible cannot be honoured by zo_mopi"):
            run(bounds=bounds)


class TestRefused:
    @pytest.mark.parametrize(
        ("given", "name"),
        [
            ({"jac": lambda x: x}, "jac"),
            ({"hess": lambda x: x}, "hess"),
            ({"hessp": lambda x, p: p}, "hessp"),
            ({"constraints": {"type": "eq", "fun": np.sum}}, "constraints"),
            ({"constraints": optimize.LinearConstraint(np.ones(30), 0, 1)}, "constraints"),
            ({"tol": 1e-3}, "tol"),
        ],
    )
    def test_what_cannot_be_honoured(self, given, name):
        with pytest.raises(
            ValueError, match=f"{name} cannot be honoured by zo_mopi; leave it out"
        ):
            run(**given)

    def test_unknown_option(self):
        with pytest.raises(ValueError, match=r"options must be one of .*got 'rang'.*'rank'"):
            run(options={"rang": 10})
        with pytest.raises(ValueError, match="option 'maxiter' goes by the name 'max_steps'"):
            run(options={"maxiter": 10})

    def test_shape(self):
        with pytest.raises(ValueError, match=r'options must hold "shape".* m \* n = 30'):
            optimize.minimize(
                flat_distance, X0.ravel(), method=zo_mopi, options={"max_queries": 100}
            )
        with pytest.raises(ValueError, match=r"shape=\(5, 5\) does not fit x0 with 30 entries"):
            run(options={"shape": (5, 5)})
