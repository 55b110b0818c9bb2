"""CuPy on a GPU; left out where CuPy finds none."""

import numpy as np
import pytest

import zomopi_core as zo
from zomopi_core import _arrays
from zomopi_core.sampling import native_sampler

cupy = pytest.importorskip("cupy")
if not cupy.cuda.is_available():
    pytest.skip("cupy finds no GPU", allow_module_level=True)


def problem(dtype=np.float64):
    """Return a start and a loss that follows the library of its argument."""
    target = np.random.default_rng(0).standard_normal((7, 5))
    x0 = {"W": np.zeros((7, 5), dtype), "b": np.zeros(4, dtype)}

    def loss(p):
        xp = cupy.get_array_module(p["W"])
        return xp.mean((p["W"] - xp.asarray(target)) ** 2) + xp.sum((p["b"] - 1.0) ** 2)

    return x0, loss


def on_device(x0):
    return {name: cupy.asarray(x) for name, x in x0.items()}


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("rate", [{}, {"learning_rate": 0.05}])
def test_path_is_that_of_numpy(reuse, rate):
    x0, loss = problem()
    method = zo.zo_mopi(rank=3, refresh_every=5, **rate)
    options = {"method": method, "max_steps": 30, "seed": zo.HostSampler(0)}
    options["reuse_buffers"] = reuse
    expected = zo.minimize(loss, x0, **options)
    found = zo.minimize(loss, on_device(x0), **options)
    for name, x in found.x.items():
        assert isinstance(x, cupy.ndarray)
        # sums in another order, over 30 steps
        np.testing.assert_allclose(x.get(), expected.x[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_dtypes_are_kept(dtype):
    x0, loss = problem(dtype)
    result = zo.minimize(loss, on_device(x0), max_queries=400, smoothing=0.05)
    assert {x.dtype for x in result.x.values()} == {np.dtype(dtype)}
    assert result.fun < 0.9 * float(loss(on_device(x0)))


@pytest.mark.parametrize("decay", [None, 0.25])
class TestLowRankUpdate:
    def data(self, rows):
        rng = np.random.default_rng(0)
        shapes = (rows, rows), (rows, 8), (8, rows)
        return [cupy.asarray(rng.standard_normal(s, dtype=np.float32)) for s in shapes]

    @pytest.mark.parametrize("place", ["new", "other", "same"])
    def test_allocates_no_more_than_the_result(self, decay, place):
        """The pool is asked for no matrix on the way."""
        x, a, c = self.data(2048)
        out = {"new": None, "other": cupy.empty_like(x), "same": x}[place]
        _arrays.low_rank_update(x, a, c, 1.0, decay, out=out)  # libraries set themselves up
        sizes = []

        class Watch(cupy.cuda.MemoryHook):
            name = "watch"

            def malloc_preprocess(self, **block):
                sizes.append(block["mem_size"])

        with Watch():
            _arrays.low_rank_update(x, a, c, 1.0, decay, out=out)
        large = [size for size in sizes if size >= x.nbytes // 2]
        assert len(large) == (1 if place == "new" else 0)

    def test_runs_on_the_current_stream(self, decay):
        x, a, c = self.data(256)
        out = cupy.empty_like(x)
        expected = (1 - (decay or 0)) * x.get() + a.get() @ c.get()
        _arrays.low_rank_update(x, a, c, 1.0, decay, out=out)  # libraries set themselves up
        out, replay = captured(lambda: _arrays.low_rank_update(x, a, c, 1.0, decay, out=out))
        assert float(cupy.max(cupy.abs(out))) == 0.0
        replay()
        np.testing.assert_allclose(out.get(), expected, rtol=1e-4, atol=1e-4)


def captured(make):
    """Return the array that `make` fills, with zeros, and a function that fills it.

    A stream that captures executes nothing: what went to another stream would not be done again.
    """
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        out = make()
        graph = stream.end_capture()
    out.fill(0.0)
    cupy.cuda.Device().synchronize()

    def replay():
        graph.launch(stream=stream)
        stream.synchronize()

    return out, replay


def test_draws_are_made_on_the_current_stream():
    sampler, like = native_sampler(0, cupy.zeros(1)), cupy.zeros((3, 4))
    draw = zo.Draw("probe", 0, 1, None)

    def make():
        return sampler.normal(draw, (3, 4), dtype=like.dtype, device=like.device)

    expected = make().get()
    out, replay = captured(make)
    replay()
    np.testing.assert_array_equal(out.get(), expected)


def test_a_stream_of_the_callers_gives_the_same_run():
    x0, loss = problem()
    runs = []
    for stream in (cupy.cuda.Stream.null, cupy.cuda.Stream(non_blocking=True)):
        with stream:
            found = zo.minimize(loss, on_device(x0), max_steps=20)
            assert cupy.cuda.get_current_stream() == stream
        stream.synchronize()
        runs.append({name: x.get() for name, x in found.x.items()})
    for name, x in runs[0].items():
        np.testing.assert_array_equal(runs[1][name], x)


@pytest.mark.parametrize("reuse", [False, True])
def test_the_pool_stops_growing(reuse):
    """Memory that was given back serves the next step: nothing is fragmented."""
    x0 = cupy.zeros((512, 512), dtype="float32")
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        optimizer = zo.Optimizer(cupy.array(x0), reuse_buffers=reuse)
        held = []
        for _ in range(250):  # refreshes among them
            optimizer.tell([cupy.mean((p - 1.0) ** 2) for p in optimizer.ask()])
            held.append(pool.total_bytes())
        del optimizer
    assert held[-1] == held[120]  # a refresh lies before it


@pytest.mark.skipif(cupy.cuda.runtime.getDeviceCount() < 2, reason="there is one GPU")
class TestTwoDevices:
    def test_arrays_stay_on_the_current_device(self):
        x0, loss = problem()
        with cupy.cuda.Device(1):
            result = zo.minimize(loss, on_device(x0), max_steps=20)
            assert {x.device.id for x in result.x.values()} == {1}

    def test_another_device_is_refused(self):
        with cupy.cuda.Device(1):
            x0 = cupy.zeros((3, 4))
        with pytest.raises(ValueError, match=r"x0 lives on .*1.*with x0.device"):
            zo.Optimizer(x0)
