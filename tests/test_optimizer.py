"""Ask and tell."""

import copy
import pickle
import sys
import warnings

import numpy as np
import pytest

import zomopi_core as zo
from zomopi_core.objective import Candidates


def quadratic(target):
    return lambda x: float(np.sum((np.asarray(x) - target) ** 2))


class TestAskTell:
    def test_is_the_pure_functions(self, backend):
        method = zo.zo_mopi(rank=3, probes=2, refresh_every=3, learning_rate=0.1)
        x0 = np.random.default_rng(0).standard_normal((6, 5))
        optimizer = zo.Optimizer(backend.array(x0), method=method, seed=5)
        x = backend.array(x0)
        state = method.init(x, 5)
        for t in range(8):
            losses = np.random.default_rng(t).standard_normal(4)
            optimizer.ask()
            optimizer.tell(losses)
            state = method.refresh(state) if t > 0 and t % 3 == 0 else state
            state, step = method.update(state, losses)
            x = zo.apply_step(x, step)
        assert np.allclose(backend.numpy(optimizer.x), backend.numpy(x), rtol=1e-10)
        assert optimizer.nit == 8

    def test_points_are_plus_and_minus_the_probes(self, backend):
        x = np.random.default_rng(0).standard_normal((5, 4))
        optimizer = zo.Optimizer(backend.array(x), method=zo.zo_mopi(rank=2, smoothing=0.5))
        points = [backend.numpy(p) for p in optimizer.ask()]
        assert len(points) == 8
        probes = optimizer.method.propose(optimizer.state)
        frame = backend.numpy(optimizer.state.leaves[0].frame)
        for i in range(4):
            B = backend.numpy(probes[0].right)[i]
            assert np.allclose(points[2 * i], x + 0.5 * frame @ B)
            assert np.allclose(points[2 * i + 1], x - 0.5 * frame @ B)

    def test_baseline_comes_first(self):
        x = np.ones((5, 4))
        optimizer = zo.Optimizer(x, method=zo.zo_mopi(difference="forward"))
        points = optimizer.ask()
        assert len(points) == 5
        assert np.array_equal(points[0], x)
        points[0][:] = 7  # a copy: spoiling it spoils nothing
        assert np.array_equal(optimizer.x, x)

    def test_ask_again_gives_the_same_points(self):
        optimizer = zo.Optimizer(np.ones((5, 4)))
        first = [np.array(p) for p in optimizer.ask()]
        again = optimizer.ask()
        assert isinstance(again, Candidates)
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert all(np.array_equal(first[i], again[i]) for i in range(len(again)))
        assert np.array_equal(again[-1], first[-1])
        assert len(again[1:3]) == 2
        with pytest.raises(IndexError):
            again[len(again)]

    @pytest.mark.parametrize("form", ["floats", "array", "scalars", "numpy"])
    def test_forms_of_losses(self, backend, form):
        values = np.array([0.5, 1.0, 2.0, 4.0])
        losses = {
            "floats": values.tolist(),
            "array": backend.array(values),
            "scalars": [backend.array(v) for v in values],
            "numpy": list(values),
        }[form]
        method = zo.zo_mopi(probes=2, learning_rate=0.1)
        optimizer = zo.Optimizer(backend.array(np.ones((4, 3))), method=method)
        reference = zo.Optimizer(backend.array(np.ones((4, 3))), method=method)
        for o, told in ((optimizer, losses), (reference, values.tolist())):
            o.ask()
            o.tell(told)
        assert np.allclose(backend.numpy(optimizer.x), backend.numpy(reference.x), rtol=1e-12)

    def test_large_constant_in_host_losses_survives_float32(self, make_backend):
        """Differences of Python floats are taken in float64, whatever the parameters are."""
        for name in ("numpy", "torch", "jax"):
            backend = make_backend(name)
            found = []
            for constant in (0.0, 2.0**30):
                optimizer = zo.Optimizer(
                    backend.array(np.ones((4, 3)), "float32"),
                    method=zo.zo_mopi(probes=2, learning_rate=0.1),
                )
                optimizer.ask()
                optimizer.tell([constant + v for v in (0.5, 1.0, 2.0, 4.0)])
                found.append(backend.numpy(optimizer.x))
            assert np.array_equal(*found)

    def test_integer_losses(self, backend):
        """Counts of errors: beyond 2**24 float32 would not tell them apart."""
        if backend.name == "jax:cuda":
            pytest.skip("runs on the CPU alone")
        counts = [2**24 + 1, 2**24, 2**24 + 3, 2**24 + 1]
        method = zo.zo_mopi(probes=2, learning_rate=0.1)
        found = []
        for told in ([backend.array(c, "int64") for c in counts], counts):
            optimizer = zo.Optimizer(backend.array(np.ones((4, 3)), "float32"), method=method)
            optimizer.ask()
            optimizer.tell(told)
            found.append(backend.numpy(optimizer.x))
        assert np.array_equal(*found)

    def test_integer_losses_beside_a_failure(self, backend):
        optimizer = zo.Optimizer(backend.array(np.ones((4, 3))), method=zo.zo_mopi(probes=2))
        optimizer.ask()
        optimizer.tell([backend.array(3, "int64"), backend.array(1, "int64"), np.nan, 2.0])
        assert np.all(np.isfinite(backend.numpy(optimizer.x)))
        assert not np.array_equal(backend.numpy(optimizer.x), np.ones((4, 3)))

    def test_losses_on_another_device(self, make_backend):
        host, device = make_backend("array_api_strict"), make_backend("array_api_strict:device1")
        optimizer = zo.Optimizer(device.array(np.ones((4, 3))), method=zo.zo_mopi(probes=2))
        for losses in (host.array([1.0, 2.0, 0.5, 4.0]), [host.array(v) for v in (1.0, 2, 3, 5)]):
            optimizer.ask()
            optimizer.tell(losses)
        assert not np.array_equal(device.numpy(optimizer.x), np.ones((4, 3)))

    def test_losses_with_a_graph(self):
        torch = pytest.importorskip("torch", reason="torch is not installed")
        weight = torch.ones((4, 3), requires_grad=True)
        optimizer = zo.Optimizer(weight, method=zo.zo_mopi(probes=2))
        scale = torch.tensor(2.0, requires_grad=True)
        optimizer.tell([scale * p.sum() for p in optimizer.ask()])
        assert not optimizer.x.requires_grad
        assert weight.grad is None


class TestOrder:
    def test_tell_before_ask(self):
        optimizer = zo.Optimizer(np.ones((3, 3)))
        with pytest.raises(RuntimeError, match="tell was called without a pending ask"):
            optimizer.tell([1.0])

    @pytest.mark.parametrize(
        ("losses", "got"),
        [([1.0] * 7, "got 7"), (np.ones(9), "got 9"), (np.ones((8, 1)), r"shape \(8, 1\)")],
    )
    def test_wrong_number(self, losses, got):
        optimizer = zo.Optimizer(np.ones((3, 3)))
        optimizer.ask()
        with pytest.raises(ValueError, match=f"one loss for each of the 8 points of ask.*{got}"):
            optimizer.tell(losses)
        optimizer.tell([1.0] * 8)  # the ask is still pending
        assert optimizer.nit == 1

    def test_wrong_kind_of_losses(self):
        optimizer = zo.Optimizer(np.ones((3, 3)))
        optimizer.ask()
        with pytest.raises(TypeError, match=r"8 losses are needed, .*got float 1\.0"):
            optimizer.tell(1.0)
        for losses, text in (
            ([None] * 8, "NoneType"),
            ([1j] * 8, "complex"),
            (np.ones(8) * 1j, "complex128"),
        ):
            with pytest.raises(TypeError, match=f"must return a real number, got .*{text}"):
                optimizer.tell(losses)
        with pytest.raises(ValueError, match=r"got an array of shape \(2,\)"):
            optimizer.tell([np.ones(2)] * 8)


class TestOwnership:
    def test_arrays_handed_out_are_not_changed_later(self):
        optimizer = zo.Optimizer(np.ones((4, 4)))
        first, copy = optimizer.x, np.array(optimizer.x)
        optimizer.ask()
        optimizer.tell(np.arange(8.0))
        assert np.array_equal(first, copy)
        assert not np.array_equal(optimizer.x, copy)

    def test_caller_may_change_x0_afterwards(self):
        x0 = np.ones((4, 4))
        optimizer = zo.Optimizer(x0)
        x0[:] = 5
        assert np.array_equal(optimizer.x, np.ones((4, 4)))

    def test_dict_keeps_its_form_and_order(self):
        x0 = {"b": np.ones(2), "a": np.ones((2, 2))}
        optimizer = zo.Optimizer(x0)
        assert list(optimizer.ask()[0]) == ["b", "a"]
        assert list(optimizer.x) == ["b", "a"]

    def test_order_of_a_dict_does_not_matter(self):
        """Compiling libraries sort the names of a dict."""
        a, b = np.ones((60, 4)), np.ones((4, 60))
        found = []
        for x0 in ({"b": b, "a": a}, {"a": a, "b": b}):
            optimizer = zo.Optimizer(x0, method=zo.zo_mopi(rank=3))
            optimizer.ask()
            optimizer.tell(np.arange(8.0))
            found.append(optimizer.x)
        assert all(np.array_equal(found[0][k], found[1][k]) for k in "ab")

    def test_x_cannot_be_changed_by_accident(self):
        optimizer = zo.Optimizer(np.ones((3, 3)))
        for _ in range(2):
            with pytest.raises(ValueError, match="read-only"):
                optimizer.x[0, 0] = 7
            optimizer.ask()
            optimizer.tell(np.arange(8.0))

    @pytest.mark.parametrize("pending", [False, True])
    @pytest.mark.parametrize("how", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
    def test_copies_go_on_alike(self, backend, how, pending):
        if how is not copy.deepcopy and backend.name.startswith("array_api_strict:"):
            pytest.skip("array_api_strict does not pickle arrays of its second device")
        optimizer = zo.Optimizer({"W": backend.array(np.ones((6, 4)))}, seed=3)
        optimizer.ask()
        optimizer.tell(np.arange(8.0))
        if pending:
            optimizer.ask()
        twin = how(optimizer)
        for o in (optimizer, twin):
            o.ask()
            o.tell(np.arange(8.0) ** 2)
        assert np.array_equal(backend.numpy(optimizer.x["W"]), backend.numpy(twin.x["W"]))


class TestConstraints:
    def test_bounds_hold_after_each_step(self, backend):
        x0 = np.random.default_rng(0).standard_normal((4, 5))
        low = np.full((4, 5), -0.5)
        optimizer = zo.Optimizer(
            backend.array(x0),
            method=zo.zo_mopi(learning_rate=1.0, probes=2),
            bounds=(backend.array(low), 0.25),
        )
        for t in range(4):
            x = backend.numpy(optimizer.x)
            assert np.all(x >= -0.5)
            assert np.all(x <= 0.25)
            optimizer.ask()
            optimizer.tell(np.random.default_rng(t).standard_normal(4))

    def test_bounds_of_a_dict(self):
        x0 = {"W": np.zeros((3, 3)), "b": np.zeros(3)}
        optimizer = zo.Optimizer(
            x0,
            method=zo.zo_mopi(learning_rate=5.0, vector_learning_rate=5.0),
            bounds=({"b": 0.0}, {"b": 1.0, "W": np.full((3, 3), 0.5)}),
        )
        for t in range(4):
            optimizer.ask()
            optimizer.tell(np.random.default_rng(t).standard_normal(8))
        assert np.min(optimizer.x["W"]) < -1
        assert np.max(optimizer.x["W"]) <= 0.5
        assert 0 <= np.min(optimizer.x["b"]) <= np.max(optimizer.x["b"]) <= 1

    @pytest.mark.parametrize(
        ("bounds", "text"),
        [
            (3.0, "got float"),
            ((0.0, 1.0, 2.0), "got tuple"),
            ((1.0, 0.0), "lower bound is above"),
            ((np.zeros((2, 2)), None), r"shape \(2, 2\) does not fit an array of shape \(3, 3\)"),
            (("a", None), "'a' does not fit"),
            ((float("nan"), None), "NaN"),
            ((float("inf"), None), "a bound of inf leaves nothing"),
            ((None, -float("inf")), "a bound of -inf leaves nothing"),
            (({"W": 0.0}, None), "unknown names"),
        ],
    )
    def test_bad_bounds(self, bounds, text):
        with pytest.raises(ValueError, match=f"bounds must be a pair.*{text}"):
            zo.Optimizer(np.zeros((3, 3)), bounds=bounds)

    def test_projection(self, backend):
        def unit(x):
            xp = backend.xp
            return x / xp.sqrt(xp.sum(x * x))

        optimizer = zo.Optimizer(backend.array(np.ones((3, 4))), project=unit)
        for t in range(3):
            assert np.isclose(np.linalg.norm(backend.numpy(optimizer.x)), 1)
            optimizer.ask()
            optimizer.tell(np.random.default_rng(t).standard_normal(8))

    @pytest.mark.parametrize(
        ("project", "text"),
        [
            (lambda x: None, "came back as NoneType"),
            (lambda x: x[0], r"came back with shape \(3,\)"),
            (lambda x: x.astype("f4"), "dtype float32"),
        ],
    )
    def test_bad_projection(self, project, text):
        with pytest.raises(ValueError, match=f"project must return the parameters.*{text}"):
            zo.Optimizer(np.zeros((3, 3)), project=project)
        with pytest.raises(TypeError, match="project must be callable, got float"):
            zo.Optimizer(np.zeros((3, 3)), project=1.0)

    def test_projection_of_the_start_that_is_not_finite(self):
        with pytest.raises(ValueError, match=r"project\(x0\) holds NaN or infinity"):
            zo.Optimizer(np.zeros((3, 3)), project=lambda x: x * np.nan)


class TestPrecisionWarning:
    def test_invisible_probe(self, backend):
        optimizer = zo.Optimizer(backend.array(np.full((6, 5), 1e6), "float32"))
        with pytest.warns(zo.PrecisionWarning, match=r"of x .*raise smoothing, scale"):
            optimizer.ask()
        with warnings.catch_warnings():  # once
            warnings.simplefilter("error")
            optimizer.tell([0.0] * 8)
            optimizer.ask()

    def test_names_the_leaf(self):
        x0 = {"fine": np.zeros((3, 3), "f4"), "coarse": np.full((3, 3), 1e6, "f4")}
        with pytest.warns(zo.PrecisionWarning, match="coarse"):
            zo.Optimizer(x0).ask()

    def test_found_at_a_refresh(self):
        """Parameters may grow out of the range of the probe."""
        method = zo.zo_mopi(learning_rate=1e6, refresh_every=2, rank=2)
        optimizer = zo.Optimizer(np.ones((6, 5), "f4"), method=method)
        for t in range(2):
            optimizer.ask()
            optimizer.tell(np.random.default_rng(t).standard_normal(8))
        with pytest.warns(zo.PrecisionWarning):
            optimizer.ask()

    def test_silent_where_the_probe_is_seen(self, backend):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            zo.Optimizer(backend.array(np.full((6, 5), 100.0), "float32")).ask()


class TestInterruption:
    def test_a_step_is_taken_once_wherever_it_is_interrupted(self):
        """An interrupted tell has taken the step, and then needs no answer, or has not."""

        def interrupt(frame, event, argument):
            if event == "line" and frame.f_code.co_filename == filename:
                left[0] -= 1
                if left[0] == 0:
                    raise KeyboardInterrupt
            return interrupt

        filename = zo.Optimizer.tell.__code__.co_filename
        losses, outcomes = np.arange(8.0), set()
        for stop_at in range(1, 60):
            optimizer = zo.Optimizer(np.ones((4, 3)), method=zo.zo_mopi(learning_rate=0.1))
            optimizer.ask()
            left = [stop_at]
            before = sys.gettrace()
            sys.settrace(interrupt)
            try:
                optimizer.tell(losses)
                break
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(before)
            outcomes.add(optimizer.nit)
            assert (optimizer.nit == 0) == np.array_equal(optimizer.x, np.ones((4, 3)))
            if optimizer.nit == 1:
                with pytest.raises(RuntimeError, match="without a pending ask"):
                    optimizer.tell(losses)
            else:
                optimizer.tell(losses)
            assert optimizer.nit == 1
        else:
            raise AssertionError("tell has more lines than were interrupted")
        assert 0 in outcomes
