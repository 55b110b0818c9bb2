"""What bad input gets: the argument's name, its value, the remedy; before any evaluation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zomopi_core as zo
from zomopi_core import _arrays

X0 = np.ones((3, 4))


def never(x):
    raise AssertionError("evaluated")


def rejected(x0, error, text):
    with pytest.raises(error, match=text):
        zo.Optimizer(x0)
    with pytest.raises(error, match=text):
        zo.minimize(never, x0, max_queries=100)


class TestParameters:
    @pytest.mark.parametrize("x0", [[[1.0, 2.0]], 3.0, None, "x", np.float64(2.0)])
    def test_type(self, x0):
        name = type(x0).__name__
        rejected(
            x0, TypeError, f"x0 must be an array or a dict of arrays, got {name}; pass a list"
        )

    def test_type_in_a_dict(self):
        rejected({"a": X0, "b": [1.0]}, TypeError, "x0 must be an array or a dict .* got list")

    def test_keys(self):
        rejected({0: X0}, TypeError, "the keys of x0 must be strings, got 0; flatten nested")
        rejected({"a": {"b": X0}}, TypeError, "x0 must be an array or a dict of arrays, got dict")

    @pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
    @pytest.mark.parametrize("make", [np.ma.masked_array, np.asmatrix])
    def test_subclasses_with_a_meaning(self, make):
        name = type(make(X0)).__name__
        rejected(make(X0), TypeError, f"x0 is a {name}, whose mask or operators would be lost")

    def test_harmless_subclass(self):
        class Mine(np.ndarray):
            pass

        assert type(zo.Optimizer(X0.view(Mine)).x) is np.ndarray

    def test_empty_dict(self):
        rejected({}, ValueError, "x0 is an empty dict: there is nothing to optimise; pass")

    def test_integers(self, backend):
        x0 = backend.array([[1, 2]], "int64")
        rejected(x0, TypeError, r"x0 has dtype .*int64.*convert it to a floating-point dtype")

    def test_booleans(self):
        rejected(
            {"w": X0 > 0},
            TypeError,
            r"x0\['w'\] has dtype bool, which cannot hold a small real step",
        )

    def test_complex(self, backend):
        x0 = backend.array([[1j, 2]], "complex128")
        rejected(x0, TypeError, r"complex dtype .*complex128.*pass a real view, for example numpy")

    @pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 2)])
    def test_empty(self, shape):
        rejected(
            np.ones(shape), ValueError, r"x0 has shape \(.*\) and so no entries; leave it out"
        )

    def test_off_the_current_device(self, monkeypatch):
        """As with CuPy, which computes on its current device, wherever the arguments live."""
        monkeypatch.setattr(_arrays, "current_device", lambda x: "device 1")
        text = r"x0 lives on cpu, while its library computes on device 1; make .* x0.device:"
        rejected(X0, ValueError, text)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, backend, value):
        values = np.ones((2, 2))
        values[1, 0] = value
        x0 = {"ok": backend.array(X0), "bad": backend.array(values)}
        rejected(x0, ValueError, r"x0\['bad'\] holds NaN or infinity; start from finite numbers")

    def test_mixed_libraries(self, make_backend):
        x0 = {"a": X0, "b": make_backend("array_api_strict").array(X0)}
        rejected(x0, TypeError, "x0 mixes arrays of array_api_strict, numpy; convert them all")

    def test_mixed_devices(self, make_backend):
        cpu, other = make_backend("array_api_strict"), make_backend("array_api_strict:device1")
        x0 = {"a": cpu.array(X0), "b": other.array(X0)}
        rejected(x0, ValueError, "x0 mixes the devices .*CPU_DEVICE.*device1.*; move all arrays")


class TestMethod:
    def test_unknown_name(self):
        with pytest.raises(
            ValueError, match=r"method must be one of 'zo_mopi'.*got 'zo-mopy'; did"
        ):
            zo.minimize(never, X0, method="zo-mopy", max_queries=100)

    @pytest.mark.parametrize("method", [None, 3, zo.zo_mopi])
    def test_wrong_type(self, method):
        with pytest.raises(
            TypeError, match=r"method must be a name or a Method, got .*zo.methods"
        ):
            zo.minimize(never, X0, method=method, max_queries=100)

    def test_hyphens_and_underscores(self):
        for name in ("zo-mopi", "zo_mopi"):
            assert zo.Optimizer(X0, method=name).method == zo.zo_mopi()

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"rank": 0}, "rank must be an integer of at least 1, got 0"),
            ({"rank": 2.5}, "rank must be an integer of at least 1, got 2.5"),
            ({"rank": True}, "rank must be an integer of at least 1, got True"),
            ({"spectral_rank": 0}, "spectral_rank must be an integer of at least 1, got 0"),
            ({"probes": 0}, "probes must be an integer of at least 2, got 0"),
            (
                {"probes": 1, "difference": "leave-one-out"},
                "probes must be an integer of at least 2, got 1",
            ),
            ({"refresh_every": 0}, "refresh_every must be an integer of at least 1, got 0"),
            ({"smoothing": 0.0}, "smoothing must be a positive number, got 0.0"),
            ({"smoothing": float("inf")}, "smoothing must be a positive number, got inf"),
            ({"learning_rate": -1.0}, "^learning_rate must be a positive number, got -1.0"),
            ({"learning_rate": "fast"}, "^learning_rate must be a positive number, got 'fast'"),
            ({"vector_learning_rate": 0}, "vector_learning_rate must be a positive number, got 0"),
            (
                {"momentum": 1.0},
                "momentum must be a number from 0 up to, not including, 1, got 1.0",
            ),
            ({"weight_decay": -0.1}, "weight_decay must be a number of at least 0, got -0.1"),
            (
                {"refresh": "harr"},
                "refresh must be one of .*'haar', got 'harr'; did you mean 'haar'",
            ),
            ({"difference": "both"}, "difference must be one of 'central', 'forward', 'leave-one"),
            ({"side": "top"}, "side must be one of 'left', 'right', got 'top'"),
            ({"stacked": "yes"}, "stacked must be True or False, got 'yes'"),
        ],
    )
    def test_options(self, options, text):
        with pytest.raises(ValueError, match=text):
            zo.zo_mopi(**options)

    def test_one_positional_option_is_refused(self):
        with pytest.raises(TypeError):
            zo.zo_mopi(0.1)


class TestLoss:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (np.ones(1), r"one real number per call, got an array of shape \(1,\); reduce it"),
            (np.ones((2, 3)), r"got an array of shape \(2, 3\)"),
        ],
    )
    def test_shape(self, value, text):
        with pytest.raises(ValueError, match=text):
            zo.minimize(lambda x: value, X0, max_queries=100)

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (None, "an object of type NoneType"),
            ("1.0", "an object of type str"),
            (1j, "an object of type complex"),
            ([1.0], "an object of type list"),
            (10**400, "an integer too large for a float"),
            (np.array(1j), "the complex dtype complex128"),
        ],
    )
    def test_type(self, value, text):
        with pytest.raises(TypeError, match=f"fun must return a real number, got {text}"):
            zo.minimize(lambda x: value, X0, max_queries=100)

    @pytest.mark.parametrize("value", [1, True, np.int32(1), np.float32(1), np.array(1.0), 1.5])
    def test_real_numbers_of_all_kinds(self, value):
        assert zo.minimize(lambda x: value, X0, max_queries=20).fun == float(value)

    def test_said_at_the_first_call(self):
        calls = []

        def fun(x):
            calls.append(1)

        with pytest.raises(TypeError):
            zo.minimize(fun, X0, max_queries=1000)
        assert len(calls) == 1

    def test_not_callable(self):
        with pytest.raises(TypeError, match="fun must be callable, got float"):
            zo.minimize(1.0, X0, max_queries=100)


class TestSchedule:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, None, "1", [1.0, 2.0]])
    def test_bad_rate(self, value):
        for name in ("learning_rate", "vector_learning_rate"):
            method = zo.zo_mopi(**{name: lambda t: 0.1 if t < 3 else value})
            x0 = {"W": X0, "b": X0[0]}
            with pytest.raises(
                ValueError, match=f"^{name} returned .* at step 3; a schedule must"
            ):
                zo.minimize(lambda p: 1.0, x0, method=method, max_queries=100)

    def test_number_of_another_library(self, make_backend):
        rate = make_backend("torch").array(0.05)
        method = zo.zo_mopi(learning_rate=lambda t: rate)
        assert zo.minimize(np.sum, X0, method=method, max_queries=100).fun < 12


class TestSampler:
    @pytest.mark.parametrize("seed", ["7", np.random.default_rng(0), zo.HostSampler, None])
    def test_wrong_type(self, seed):
        with pytest.raises(
            TypeError, match=r"seed must be an integer or a sampler .*rng.integers"
        ):
            zo.Optimizer(X0, seed=seed)

    @pytest.mark.parametrize("values", [[[1.0]], None, np.ones((3, 3), dtype=complex)])
    def test_wrong_values(self, values):
        class Wrong:
            def normal(self, draw, shape, *, dtype, device):
                return values

        with pytest.raises(TypeError, match=r"the sampler returned .* for Draw\(.*a real array"):
            zo.Optimizer(X0, seed=Wrong())

    def test_wrong_shape(self):
        class Short:
            def normal(self, draw, shape, *, dtype, device):
                return np.ones(3)

        with pytest.raises(ValueError, match=r"the sampler returned shape \(3,\) for Draw\("):
            zo.Optimizer(X0, seed=Short())

    def test_numpy_integer_is_a_seed(self):
        keys = []

        def fun(x, key):
            keys.append(key)
            return 1.0

        for seed in (np.int64(5), 5, 6):
            zo.minimize(fun, X0, max_queries=8, seed=seed)
        assert keys[0] == keys[8] != keys[16]


@given(
    options=st.fixed_dictionaries(
        {},
        optional={
            "rank": st.one_of(st.integers(-1, 9), st.floats(), st.none()),
            "spectral_rank": st.one_of(st.integers(-1, 9), st.text(max_size=2)),
            "probes": st.one_of(st.integers(-1, 4), st.booleans()),
            "smoothing": st.floats(),
            "momentum": st.floats(),
            "learning_rate": st.one_of(st.none(), st.floats()),
            "weight_decay": st.floats(),
            "refresh_every": st.integers(-1, 5),
            "refresh": st.sampled_from(["anchored", "haar", "", None]),
            "difference": st.sampled_from(["central", "forward", "leave-one-out", 1]),
            "side": st.sampled_from(["left", "right", []]),
        },
    )
)
@settings(max_examples=300, deadline=None)
def test_any_option_gives_a_method_or_the_documented_error(options):
    try:
        method = zo.zo_mopi(**options)
    except (ValueError, TypeError) as error:
        assert any(name in str(error) for name in options)  # noqa: PT017
    else:
        assert method.evaluations_per_step >= 1
