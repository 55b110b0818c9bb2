"""The low-rank update: one function, a fused call in each library."""

import importlib.util
import sys
import tracemalloc
import types

import numpy as np
import pytest

from zomopi_core import _arrays
from zomopi_core._arrays import products

SHAPES = {
    "square": ((7, 7), (7, 3), (3, 7)),
    "one row": ((1, 9), (1, 1), (1, 9)),
    "one column": ((9, 1), (9, 1), (1, 1)),
    "rank of m": ((3, 8), (3, 3), (3, 8)),
    "more axes": ((6, 2, 4), (6, 2), (2, 8)),
    "stacked": ((3, 5, 4), (3, 5, 2), (3, 2, 4)),
    "full": ((5, 4), None, (5, 4)),
    "vector": ((6,), None, (6,)),
    "number": ((), None, ()),
}


@pytest.fixture(params=["as it is", "blocks", "blocks without SciPy"])
def how(request, monkeypatch):
    """Small arrays as large ones are treated: in blocks of rows, with BLAS and without."""
    if request.param != "as it is":
        monkeypatch.setattr(products, "_SHARED_PRODUCT", 0)
        monkeypatch.setattr(products, "_BLOCK", 16)
        monkeypatch.setattr(products, "_LEAST_ROWS", 1)
    if request.param == "blocks without SciPy":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    products._blas_product.cache_clear()
    yield request.param
    products._blas_product.cache_clear()


def data(name, seed=0):
    shape, left, right = SHAPES[name]
    rng = np.random.default_rng(seed)
    draw = [None if s is None else rng.standard_normal(s) for s in (shape, left, right)]
    x, a, c = draw
    change = (c if a is None else a @ c).reshape(shape)
    return x, a, c, change


def narrow(backend, x, dtype):
    """Return `x` in 16 bits, which NumPy knows one of."""
    if dtype == "bfloat16":
        return backend.xp.astype(backend.array(x, "float32"), backend.xp.bfloat16)
    return backend.array(x, dtype)


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize("decay", [None, 0.25])
@pytest.mark.parametrize("place", ["new", "other", "same"])
class TestLowRankUpdate:
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_formula(self, backend, how, name, decay, place, dtype):
        x, a, c, change = data(name)
        scale = backend.array(-0.5, dtype) if decay else -0.5
        expected = (1 - (decay or 0)) * x - 0.5 * change
        given = backend.array(x, dtype)
        out = {"new": None, "other": _arrays.empty_like(given), "same": given}[place]
        if place == "same" and _arrays.empty_like(given) is None:
            pytest.skip("arrays of this library are not written to")
        if place == "same" and backend.read_only:
            pytest.skip("the array cannot be written to")
        factors = (None if a is None else backend.array(a, dtype)), backend.array(c, dtype)
        found = _arrays.low_rank_update(given, *factors, scale, decay, out=out)
        assert out is None or found is out
        assert found.dtype == given.dtype
        error = 1e-14 if dtype == "float64" else 2e-6  # 20 units in the last place
        np.testing.assert_allclose(backend.numpy(found), expected, rtol=0, atol=error)
        if place != "same":
            assert np.array_equal(backend.numpy(given), x.astype(dtype))

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_16_bits_are_rounded_once(self, make_backend, how, name, decay, place, dtype):
        for library in ("numpy", "torch", "jax"):
            backend = make_backend(library)
            if library == "numpy" and dtype == "bfloat16":
                continue
            x, a, c, change = data(name)
            given = narrow(backend, x, dtype)
            wide = backend.numpy(backend.xp.astype(given, backend.xp.float32)).astype(float)
            out = {"new": None, "other": _arrays.empty_like(given), "same": given}[place]
            if library == "jax":
                out = None
            factors = [None if f is None else backend.array(f, "float32") for f in (a, c)]
            found = _arrays.low_rank_update(given, *factors, 0.01, decay, out=out)
            assert found.dtype == given.dtype
            found = backend.numpy(backend.xp.astype(found, backend.xp.float32))
            expected = (1 - (decay or 0)) * wide + 0.01 * change
            # half a unit in the last place of 11 or 8 bits, and what float32 adds
            error = (2.0**-11 if dtype == "float16" else 2.0**-8) * 1.01
            np.testing.assert_allclose(found, expected, rtol=error, atol=1e-6)


def test_order_of_memory_does_not_matter(how):
    x, a, c, change = data("square")
    for order in ("C", "F"):
        x2, a2, c2 = (np.asarray(f, order=order) for f in (x, a, c))
        for left, right in ((a2, c2), (a2[::1, ::-1][:, ::-1], c2[:, ::-1][:, ::-1])):
            found = _arrays.low_rank_update(x2, left, right, 2.0)
            np.testing.assert_allclose(found, x + 2.0 * change, rtol=0, atol=1e-14)


@pytest.mark.parametrize("decay", [None, 0.25])
@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_memory_of_torch_that_forbids_a_view(decay, dtype):
    torch = pytest.importorskip("torch")
    x, a, c, change = data("more axes")
    given = torch.from_numpy(np.moveaxis(np.moveaxis(x, 0, -1).copy(), -1, 0)).to(
        getattr(torch, dtype)
    )
    assert not given.is_contiguous()
    kind = torch.float64 if dtype == "float64" else torch.float32
    factors = (torch.from_numpy(f).to(kind) for f in (a, c))
    found = _arrays.low_rank_update(given, *factors, 0.5, decay)
    expected = (1 - (decay or 0)) * given.to(torch.float64).numpy() + 0.5 * change
    error = 1e-14 if dtype == "float64" else 2e-3
    np.testing.assert_allclose(found.to(torch.float64), expected, rtol=error, atol=error)


@pytest.mark.parametrize("scipy", [True, False])
def test_makes_no_other_array_of_that_size(monkeypatch, scipy):
    if not scipy:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    products._blas_product.cache_clear()
    rng = np.random.default_rng(0)
    x, a, c = (
        rng.standard_normal(s, dtype=np.float32) for s in ((4096, 1024), (4096, 8), (8, 1024))
    )
    out = np.empty_like(x)
    _arrays.low_rank_update(x, a, c, 1.0, out=out)  # imports
    tracemalloc.start()
    try:
        for given, place in ((x, out), (x, x)):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            _arrays.low_rank_update(given, a, c, 1.0, 0.1, out=place)
            # without SciPy a block and, with decay, the old one: 4 MiB each of 16
            assert (
                tracemalloc.get_traced_memory()[1] - before < (0.02 if scipy else 0.6) * x.nbytes
            )
    finally:
        tracemalloc.stop()
        products._blas_product.cache_clear()


class TestWeightedMean:
    @pytest.mark.parametrize("shape", [(), (6,), (1, 9), (7, 5), (3, 2, 4)])
    @pytest.mark.parametrize("place", [False, True])
    def test_is_the_formula(self, backend, how, shape, place):
        rng = np.random.default_rng(0)
        x, y = (np.asarray(rng.standard_normal(shape)) for _ in range(2))
        given = [backend.array(v) for v in (x, y)]
        out = _arrays.empty_like(given[0]) if place else None
        found = _arrays.weighted_mean(*given, 0.25, out=out)
        assert out is None or found is out
        np.testing.assert_allclose(
            backend.numpy(found), 0.75 * x + 0.25 * y, rtol=1e-14, atol=1e-15
        )
        for before, after in zip((x, y), given, strict=True):
            np.testing.assert_array_equal(backend.numpy(after), before)

    def test_keeps_the_dtype_and_has_no_order(self):
        x = np.asfortranarray(np.arange(6.0, dtype=np.float16).reshape(2, 3))
        found = _arrays.weighted_mean(x, x[:, ::-1], 0.5)
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, [[1, 1, 1], [4, 4, 4]])

    def test_makes_no_other_array_of_that_size(self):
        x, y = np.ones((2, 4096, 1024), dtype=np.float32)
        out = np.empty_like(x)
        tracemalloc.start()
        try:
            _arrays.weighted_mean(x, y, 0.5, out=out)
            # two blocks of 4 MiB, of 16 that x has
            assert tracemalloc.get_traced_memory()[1] < 0.6 * x.nbytes
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("mirrored", [False, True])
def test_stack_is_one_product(backend, mirrored):
    rng = np.random.default_rng(0)
    x, a, rights = (rng.standard_normal(s) for s in ((5, 2, 3), (5, 2), (4, 2, 6)))
    given, change = backend.array(x), (a @ rights).reshape(4, 5, 2, 3)
    expected = x + change
    if mirrored:
        expected = np.stack([x + change, x - change], axis=1).reshape(8, 5, 2, 3)
    for out in (None, _arrays.empty_like(given, len(expected))):
        found = _arrays.low_rank_stack(
            given, backend.array(a), backend.array(rights), mirrored=mirrored, out=out
        )
        np.testing.assert_allclose(backend.numpy(found), expected, rtol=0, atol=1e-14)
        assert out is None or found is out


class TestCupyCalls:
    """What is asked of CuPy, with NumPy in its place: there is no GPU here."""

    @pytest.fixture
    def cupy(self, monkeypatch):
        calls = []

        def gemm(transa, transb, a, b, out=None, alpha=1.0, beta=0.0):
            calls.append((a.shape, b.shape))
            assert (transa, transb, a.dtype) == ("N", "N", b.dtype)
            out[...] = alpha * (a @ b) + beta * out
            return out

        stub = types.SimpleNamespace(copyto=np.copyto, multiply=np.multiply)
        monkeypatch.setitem(sys.modules, "cupy", stub)
        monkeypatch.setitem(sys.modules, "cupy.cublas", types.SimpleNamespace(gemm=gemm))
        return calls

    @pytest.mark.parametrize("name", list(SHAPES))
    @pytest.mark.parametrize("decay", [None, 0.25])
    @pytest.mark.parametrize("place", ["new", "other", "same"])
    def test_formula(self, cupy, name, decay, place):
        x, a, c, change = data(name)
        given = np.array(x)
        out = {"new": None, "other": np.empty_like(given), "same": given}[place]
        found = products._update_cupy(given, a, c, -0.5, decay, out)
        expected = (1 - (decay or 0)) * x - 0.5 * change
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
        assert len(cupy) == (0 if a is None else 3 if name == "stacked" else 1)

    def test_16_bits(self, cupy):
        x, a, c, change = data("square")
        a, c = a.astype("f4"), c.astype("f4")
        found = products._update_cupy(x.astype("f2"), a, c, 0.01, None, None)
        assert found.dtype == np.float16
        np.testing.assert_allclose(found, x.astype("f2") + 0.01 * change, rtol=5e-4, atol=1e-6)

    def test_devices(self, monkeypatch):
        """New memory is asked for on the device of the array, and that device is waited for."""

        class Device:
            waited = 0

            def synchronize(self):
                self.waited += 1

        class Array:
            device, dtype, shape = Device(), np.dtype(np.float32), (2, 3)

        current = Device()
        cuda = types.SimpleNamespace(Device=lambda: current)
        monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(ndarray=Array, cuda=cuda))
        made, namespace = [], types.ModuleType("array_api_compat.cupy")
        namespace.empty = lambda shape, dtype, device: made.append((shape, dtype, device))
        monkeypatch.setitem(_arrays.namespaces._NAMESPACES, Array, namespace)
        x = Array()
        assert _arrays.current_device(x) is current
        assert _arrays.device(x) is Array.device
        _arrays.empty_like(x)
        assert made == [((2, 3), np.float32, Array.device)]
        _arrays.synchronize(x)
        assert (Array.device.waited, current.waited) == (1, 0)

    def test_the_current_device_of_other_libraries_is_that_of_the_array(self, backend):
        x = backend.array([1.0])
        assert _arrays.current_device(x) == _arrays.device(x)


class TestDecisions:
    """What a host may look at gives what a mask gives."""

    @pytest.mark.parametrize("value", [0.0, 3.0])
    def test_select(self, backend, value):
        x = backend.array([1.0, 2.0])
        condition = backend.xp.max(x * value) > 1.0
        found = _arrays.select(condition, x, 5.0 * x)
        assert backend.numpy(found).tolist() == ([1.0, 2.0] if value else [5.0, 10.0])

    @pytest.mark.parametrize("values", [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    def test_select_for_each_matrix_of_a_stack(self, backend, values):
        x = backend.array(np.arange(1.0, 13.0).reshape(2, 2, 3))
        condition = backend.array(np.reshape(values, (2, 1, 1))) > 0.5
        found = backend.numpy(_arrays.select(condition, x, 5.0 * x))
        factors = np.where(np.reshape(values, (2, 1, 1)) > 0.5, 1.0, 5.0)
        np.testing.assert_array_equal(found, factors * backend.numpy(x))

    @pytest.mark.parametrize("weight", [0.0, 0.1, 0.9, 1.0])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_between(self, backend, weight, dtype):
        start, end = (backend.array([v, 3.0], dtype) for v in (-2.0, 1e-3))
        found = _arrays.between(start, end, _arrays.number(weight, start))
        assert found.dtype == start.dtype
        # a rounding or two of numbers up to 3, none where nothing is added
        tolerance = 4 * float(np.finfo(dtype).eps) if weight else 0.0
        expected = [-2.0 + weight * 2.001, 3.0]
        np.testing.assert_allclose(backend.numpy(found), expected, rtol=0, atol=tolerance)

    @pytest.mark.parametrize(
        ("values", "all_do"), [([1.0], True), ([2.0, 1.0], True), ([1.0, 0.0, 1.0], False)]
    )
    def test_all_hold(self, backend, values, all_do):
        found = _arrays.all_hold(backend.array(values) > 0.5)
        assert found is (all_do and isinstance(backend.array(values), np.ndarray))

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_number_and_largest(self, backend, dtype):
        x = backend.array([[1.0, -4.0], [2.5, 0.0]], dtype)
        for found, expected in ((_arrays.number(0.1, x), 0.1), (_arrays.largest(x), 2.5)):
            assert found.shape == ()
            assert found.dtype == x.dtype
            assert float(found) == np.dtype(dtype).type(expected)


class TestMemory:
    def test_changes_are_counted_where_the_library_does(self, backend):
        x = backend.array([1.0, 2.0])
        before = _arrays.changes(x)
        if backend.name.startswith("torch"):
            x += 1.0
            assert _arrays.changes(x) == before + 1
        assert before == 0

    def test_tensors_of_inference_mode_have_no_count(self):
        torch = pytest.importorskip("torch")
        with torch.inference_mode():
            x = torch.zeros(3)
        assert _arrays.changes(x) == 0

    def test_lies_in_rows(self, backend):
        x = backend.array(np.zeros((4, 3)))
        assert _arrays.lies_in_rows(x)
        if backend.name.startswith(("numpy", "torch", "cupy")):
            assert not _arrays.lies_in_rows(x.T)
            assert not _arrays.lies_in_rows(x[:, :2])

    def test_read_only(self, backend):
        x = backend.array([1.0, 2.0])
        lent = _arrays.read_only(x)
        if isinstance(x, np.ndarray):
            assert not lent.flags.writeable
            assert np.shares_memory(lent, x)
        else:
            assert lent is x


class TestRowBlocks:
    def test_cover_all_rows_once(self):
        for rows, columns, least in ((7, 3, 1), (1000, 2**18, 1), (1030, 2**20, 512), (1, 1, 9)):
            blocks = list(_arrays.row_blocks(rows, columns, least))
            assert [i for b in blocks for i in range(b.start, b.stop)] == list(range(rows))

    def test_wide_matrices_are_not_cut_into_slivers(self):
        """Each block reads the whole right factor."""
        assert len(list(_arrays.row_blocks(1024, 2**17, 512))) == 2
        assert len(list(_arrays.row_blocks(1024, 2**17))) == 128

    @pytest.mark.parametrize("place", ["new", "other", "same"])
    def test_wide(self, make_backend, place, monkeypatch):
        monkeypatch.setattr(products, "_BLOCK", 64)
        monkeypatch.setattr(products, "_SHARED_PRODUCT", 0)
        monkeypatch.setattr(products, "_LEAST_ROWS", 3)
        rng = np.random.default_rng(0)
        x, a, c = (rng.standard_normal(s) for s in ((8, 50), (8, 2), (2, 50)))
        for name in ("numpy", "torch"):
            given, *factors = (make_backend(name).array(v) for v in (x, a, c))
            out = {"new": None, "other": _arrays.empty_like(given), "same": given}[place]
            found = _arrays.low_rank_update(given, *factors, 0.5, out=out)
            np.testing.assert_allclose(make_backend(name).numpy(found), x + 0.5 * a @ c)
