"""Points evaluated in other processes: the same bits, also when processes die or hang."""

import itertools
import multiprocessing
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import zomopi_core as zo
from worker_functions import (
    Faulty,
    Jump,
    die,
    hang,
    keyed,
    large,
    loss,
    mine,
    odd,
    of_torch,
    pause,
    steep,
)
from zomopi_core import workers as workers_
from zomopi_core.draws import step_key

X0 = np.zeros((6, 4))


def same(a, b):
    np.testing.assert_array_equal(a.x, b.x)
    np.testing.assert_array_equal(a.x_last, b.x_last)
    np.testing.assert_array_equal(a.history["loss"], b.history["loss"])
    assert (a.fun, a.nfev, a.nit) == (b.fun, b.nfev, b.nit)


@pytest.fixture(params=["held", "dense"])
def way(request, monkeypatch):
    """Whether workers hold the parameters."""
    monkeypatch.setattr(workers_, "HELD_BYTES", 0 if request.param == "held" else 2**60)
    return request.param


@pytest.fixture(autouse=True, scope="module")
def clean_processes():
    """Processes that descend from none with threads, which other tests may have started."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)
    multiprocessing.set_forkserver_preload(["zomopi_core", "worker_functions"])
    yield
    multiprocessing.set_start_method(before, force=True)


class TestPool:
    @pytest.mark.parametrize("options", [{}, {"method": "mezo"}, {"bounds": (None, 0.5)}], ids=str)
    def test_same_bits(self, way, options):
        options = {"max_queries": 300, "seed": 3, **options}
        same(zo.minimize(loss, X0, workers=2, **options), zo.minimize(loss, X0, **options))

    def test_keys(self, way):
        options = {"max_queries": 200, "seed": 3}
        same(zo.minimize(keyed, X0, workers=2, **options), zo.minimize(keyed, X0, **options))

    def test_torch(self, way):
        torch = pytest.importorskip("torch")
        fun, x0 = of_torch, torch.zeros(6, 4)
        plain = zo.minimize(fun, x0, max_queries=100)
        result = zo.minimize(fun, x0, max_queries=100, workers=1)
        assert torch.equal(result.x, plain.x)

    def test_divergence(self, way):
        """After the way back workers hold the same parameters as before."""
        method = zo.zo_mopi(learning_rate=zo.constant(0.3), refresh_every=7, probes=1)

        options = {"method": method, "max_queries": 700}
        plain = zo.minimize(steep, X0, **options)
        assert plain.returns
        same(zo.minimize(steep, X0, workers=2, **options), plain)

    def test_retreat(self, way):
        """To the best point seen, of which workers know nothing."""
        fun = Jump(step_key(3, step) for step in range(40, 1000))
        options = {"max_queries": 600, "seed": 3}
        plain = zo.minimize(fun, X0, **options)
        rates = plain.history["learning_rate"]
        assert np.any(rates[1:] < 0.26 * rates[:-1])
        same(zo.minimize(fun, X0, workers=2, **options), plain)

    def test_one_that_dies_is_replaced(self, way, tmp_path):
        plain = zo.minimize(loss, X0, max_queries=200)
        fun = Faulty(tmp_path / "calls", {5, 60, 130}, die)
        result = zo.minimize(fun, X0, max_steps=plain.nit, workers=2)
        np.testing.assert_array_equal(result.x_last, plain.x_last)

    def test_a_point_that_kills_is_dropped(self, tmp_path):
        fun = Faulty(tmp_path / "calls", range(40, 60), die)
        options = {"max_queries": 300, "workers": 2}
        result = zo.minimize(fun, X0, on_failure={"exception": "skip"}, **options)
        assert "WorkerDiedError" in result.message
        assert result.success
        with pytest.raises(zo.WorkerDiedError, match="exit code -9") as caught:
            zo.minimize(Faulty(tmp_path / "others", range(40, 60), die), X0, **options)
        assert caught.value.result.nit > 0

    def test_one_that_hangs_is_ended(self, way, tmp_path):
        plain = zo.minimize(loss, X0, max_queries=100)
        began = time.perf_counter()
        fun = Faulty(tmp_path / "calls", {5, 31}, hang)
        retry = {"timeout": zo.Retry(wait=0.0)}
        result = zo.minimize(
            fun, X0, max_steps=plain.nit, workers=2, timeout=0.3, on_failure=retry
        )
        np.testing.assert_array_equal(result.x_last, plain.x_last)
        assert time.perf_counter() - began < 20

    def test_to_start_is_no_part_of_an_evaluation(self, tmp_path, monkeypatch):
        (tmp_path / "slow_module.py").write_text(
            "import time\ntime.sleep(1.5)\ndef fun(x):\n    return float((x * x).sum())\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        import slow_module

        options = {"workers": 1, "timeout": 1.0, "on_failure": "raise"}
        assert zo.minimize(slow_module.fun, X0, max_queries=20, **options).success

    @pytest.mark.parametrize("start", ["spawn", "forkserver"])
    def test_a_script_that_runs_at_import(self, start, tmp_path):
        script = tmp_path / "script.py"
        script.write_text(_FUNCTION + f"import multiprocessing\n"
            f"multiprocessing.set_start_method({start!r}, force=True)\n"
            "zo.minimize(loss, np.zeros((6, 4)), max_queries=40, workers=2, on_failure='skip')\n"
        )  # fmt: skip
        command = [sys.executable, script]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 1
        assert "protect what starts a run" in done.stderr
        assert done.stderr.count("An attempt has been made to start a new process") <= 2

    def test_none_is_left_behind(self):
        def interrupted(iteration):
            raise KeyboardInterrupt

        for callback in (None, interrupted):
            zo.minimize(loss, X0, max_queries=100, workers=2, callback=callback)
            assert not workers_.multiprocessing.active_children()

    def test_exceptions_come_home(self):
        with pytest.raises(KeyError, match="mine"):
            zo.minimize(mine, X0, max_queries=100, workers=2)
        with pytest.raises(RuntimeError, match="OddError: odd"):
            zo.minimize(odd, X0, max_queries=100, workers=2)

    def test_journal(self, way, tmp_path):
        """Slow evaluations are recorded as they come in."""
        options = {"max_queries": 60, "seed": 3}
        plain = zo.minimize(loss, X0, **options)
        calls = tmp_path / "calls"

        slow = Faulty(calls, "always", pause)

        def stop(iteration):
            raise OSError

        path = tmp_path / "a.zomopi"
        with pytest.raises(OSError):  # noqa: PT011
            zo.minimize(slow, X0, journal=path, workers=2, callback=stop, **options)
        same(zo.resume(path, slow, workers=2), plain)
        assert calls.stat().st_size == plain.nfev

    def test_little_travels_to_those_that_hold_the_parameters(self, monkeypatch):
        sent = []
        send = workers_.pickle.dumps
        monkeypatch.setattr(
            workers_.pickle, "dumps", lambda *a: sent.append(len(send(*a))) or send(*a)
        )
        x0 = np.zeros((400, 400))  # 1.3 MB
        zo.minimize(large, x0, max_queries=100, workers=1)
        assert sum(n > 10_000 for n in sent) == 1  # the optimizer, once
        assert sum(sent) - max(sent) < 10_000

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"workers": 0}, "workers must be an integer"),
            ({"workers": "two"}, "workers must be a number of processes or an executor"),
            ({"workers": 2, "vectorized": True}, "hands all points of a step to one call"),
            ({"workers": ThreadPoolExecutor(1), "reuse_buffers": True}, "one piece of memory"),
        ],
        ids=str,
    )
    def test_bad_options(self, options, text):
        with pytest.raises((TypeError, ValueError), match=text):
            zo.minimize(loss, X0, max_queries=100, **options)

    def test_processes_that_are_not_forked_need_importable_functions(self):
        with pytest.raises(TypeError, match="cannot be sent"):
            zo.minimize(lambda x: 1.0, X0, max_queries=100, workers=1)


class TestExecutors:
    def test_threads(self):
        plain = zo.minimize(loss, X0, max_queries=300)
        with ThreadPoolExecutor(3) as executor:
            same(zo.minimize(loss, X0, max_queries=300, workers=executor), plain)

    def test_processes(self):
        plain = zo.minimize(loss, X0, max_queries=300)
        with ProcessPoolExecutor(2) as executor:
            same(zo.minimize(loss, X0, max_queries=300, workers=executor), plain)

    def test_a_broken_pool_is_an_exception(self, tmp_path):
        fun = Faulty(tmp_path / "calls", {30}, die)
        with (
            ProcessPoolExecutor(2) as executor,
            pytest.raises(Exception, match="terminated abruptly") as caught,
        ):
            zo.minimize(fun, X0, max_queries=300, workers=executor)
        assert caught.value.result.nit > 0

    def test_time_limit(self):
        calls, release = itertools.count(1), threading.Event()

        def fun(x):
            if next(calls) == 20:
                release.wait(60)
            return loss(x)

        with ThreadPoolExecutor(3) as executor:
            options = {"max_queries": 100, "workers": executor, "timeout": 1.0}
            result = zo.minimize(fun, X0, **options)
            release.set()
        assert re.search(r" 1 of \d+ evaluations failed", result.message)

    def test_to_wait_is_no_part_of_an_evaluation(self):
        """Eight points that one thread evaluates in turn take longer than one of them may."""

        def fun(x):
            time.sleep(0.15)
            return loss(x)

        with ThreadPoolExecutor(1) as executor:
            options = {"max_steps": 1, "workers": executor, "timeout": 0.9}
            result = zo.minimize(fun, X0, on_failure="raise", **options)
        assert result.nit == 1

    def test_dask_on_loopback(self):
        distributed = pytest.importorskip("distributed")
        plain = zo.minimize(loss, X0, max_queries=40)
        done = subprocess.run(
            [sys.executable, "-c", DASK], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert float(done.stdout.split()[-1]) == plain.fun, distributed.__version__

    def test_mpi_ranks(self, tmp_path):
        pytest.importorskip("mpi4py")
        launcher = Path(sys.executable).with_name("mpiexec")
        if not launcher.exists():
            pytest.skip("there is no mpiexec beside this Python")
        plain = zo.minimize(loss, X0, max_queries=100)
        script = tmp_path / "ranks.py"
        script.write_text(MPI)
        command = [launcher, "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable]
        done = subprocess.run(
            [*command, "-m", "mpi4py.futures", script], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert float(done.stdout.split()[-1]) == plain.fun


_FUNCTION = """
import numpy as np
import zomopi_core as zo
TARGET = np.outer(np.arange(6.0), np.ones(4)) / 6
def loss(x):
    return float(np.mean((x - TARGET) ** 2))
"""
DASK = (
    _FUNCTION
    + """
from distributed import Client, LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False,
                      dashboard_address=None) as cluster, Client(cluster) as client:
        executor = client.get_executor(pure=False)
        result = zo.minimize(loss, np.zeros((6, 4)), max_queries=40, workers=executor)
    print(repr(result.fun))
"""
)
MPI = (
    _FUNCTION
    + """
from mpi4py.futures import MPIPoolExecutor
if __name__ == "__main__":
    with MPIPoolExecutor() as executor:
        result = zo.minimize(loss, np.zeros((6, 4)), max_queries=100, workers=executor)
    print(repr(result.fun))
"""
)
