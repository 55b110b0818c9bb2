"""The bars of overhead hold, and every benchmark of asv_benches runs."""

import doctest
import importlib
import inspect
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SUITE = Path(__file__).resolve().parents[1] / "asv_benches"
TOPICS = sorted(
    path.stem
    for path in (SUITE / "benchmarks").glob("*.py")
    if path.stem not in {"__init__", "common"}
)
KINDS = ("time_", "track_", "peakmem_")


@pytest.fixture(scope="module")
def load():
    """Return a function that imports a file of the suite the way asv does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SUITE)
        yield lambda name: importlib.import_module(f"benchmarks.{name}")
        for name in list(sys.modules):
            if name.split(".")[0] == "benchmarks":
                del sys.modules[name]


class TestBars:
    """Costs beside the formulas, timed in one run.

    A neighbour on a shared machine makes steps slower, never faster, and comes in bursts. So both
    sides take turns; the median of 200 steps, each far shorter than a burst, stands for a round,
    and the median of the rounds' ratios for the run. With three busy processes beside it on two
    cores the ratios stayed where they were: over 13 runs, eight of them quiet, within 2.5 % of
    each other. Mean times or the ratio of two separate runs would carry the neighbour in.
    """

    @staticmethod
    def ratio(load, measure, dtype, most):
        """Return the ratio of a run; above the bar the least of three, further apart in time."""
        ratios = []
        while not ratios or (ratios[-1] > most and len(ratios) < 3):
            ratios.append(load("common").median_ratio(measure(dtype, rounds=15, steps=200)))
        return min(ratios)

    @pytest.mark.parametrize(("dtype", "most"), [("float64", 1.5), ("float32", 1.6)])
    def test_step_over_bare_numpy(self, load, dtype, most):
        """The goal is 1.5; in float32 a run is as often above it as below."""
        measure = load("overhead").step_and_bare_numpy_seconds
        # measured 1.39 to 1.45 in float64, 1.44 to 1.51 in float32
        assert self.ratio(load, measure, dtype, most) <= most

    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    def test_minimize_over_step(self, load, dtype):
        measure = load("overhead").minimize_and_step_seconds
        # measured 1.08 in float64, 1.09 in float32, of a step that takes 30 % less than it did
        assert self.ratio(load, measure, dtype, 1.10) <= 1.10

    def test_steps_of_torch_are_not_nothing(self, load):
        """Losses that are all equal would make steps of zero, whose parts take other ways."""
        pytest.importorskip("torch")
        suite = load("torch_step")
        (weight,) = suite.weights([(80, 70)])
        before = weight.detach().clone()
        suite.ours([weight])()
        moved = (weight.detach() - before).norm()
        assert 0.9e-3 * 32**0.5 < moved < 1.1e-3 * 32**0.5  # the rate, times the root of k

    @pytest.mark.parametrize("backend", ["numpy", "torch:cpu"])
    def test_draw_over_the_librarys_own_generator(self, load, backend):
        pytest.importorskip(backend.split(":")[0])
        small = load("sampling").SmallDraw()
        small.setup(backend)
        # of each the lowest of rounds of 2 ms, which a neighbour cannot make lower still
        ours, own = small.seconds().min(axis=0)
        assert (ours - own) * 1e6 <= 20.0  # measured 7 for NumPy, 9 for Torch

    def test_import(self, load):
        """Beyond the dependencies, seconds of the processor; the least of three."""
        assert min(load("imports").Import.seconds(3)) <= 0.15

    def test_twice_the_time_would_be_noticed(self, load):
        overhead = load("overhead")
        ours = overhead.LibraryStep(overhead.start("float64"))
        leaf = ours.state.leaves[0]
        bare = overhead.BareStep(ours.x, leaf.frame, leaf.right)
        fun = overhead.free_function()
        runs = [lambda: ours.run(fun, 100).reshape(-1, 2).sum(axis=1), lambda: bare.run(fun, 100)]
        assert load("common").median_ratio(overhead.median_steps(runs, rounds=9)) > 2.0


class PhiloxOfBareStep:
    """The draws of `BareStep`, as a sampler."""

    def normal(self, draw, shape, *, dtype, device):
        step = draw.step if draw.stream == "probe" else 1000
        generator = np.random.Generator(np.random.Philox(key=step))
        return generator.standard_normal(shape, dtype=dtype)


def test_bare_numpy_computes_the_step(load):
    # The bar means nothing if the two sides do different work.
    overhead = load("overhead")
    ours = overhead.LibraryStep(overhead.start("float64"), seed=PhiloxOfBareStep())
    leaf = ours.state.leaves[0]
    bare = overhead.BareStep(ours.x, leaf.frame, leaf.right)
    ours.run(overhead.free_function(), 20)
    bare.run(overhead.free_function(), 20)
    # rounding in another order, over 20 steps of size 1e-3; measured 2e-16
    np.testing.assert_allclose(bare.x, ours.x, rtol=0, atol=1e-12)
    assert np.max(np.abs(ours.x - overhead.start("float64"))) > 1e-3


@pytest.mark.parametrize("topic", TOPICS)
def test_every_benchmark_runs(load, topic):
    module = load(topic)
    ran = 0
    for cls in vars(module).values():
        if not inspect.isclass(cls) or cls.__module__ != module.__name__:
            continue
        names = [name for name in vars(cls) if name.startswith(KINDS)]
        # the first value of each parameter is NumPy or the smallest size
        values = [column[0] for column in getattr(cls, "params", [])]
        for name in names:
            benchmark = cls()
            if hasattr(benchmark, "setup"):
                benchmark.setup(*values)
            result = getattr(benchmark, name)(*values)
            if name.startswith("track_"):
                assert isinstance(result, float), name
                assert math.isfinite(result), name
                assert getattr(cls, name).unit, name
            else:
                assert result is None, name
            ran += 1
    assert ran > 0


class TestBackendBenchmark:
    def test_what_is_missing_shows_as_not_available(self, load):
        with pytest.raises(NotImplementedError, match="CPU only"):
            load("common").BackendBenchmark().setup("numpy:cuda")

    @pytest.mark.parametrize("topic", ["floor.Floor", "step.Step"])
    def test_the_largest_steps_are_for_gpus(self, load, topic):
        """They show as n/a on a host, before anything of that size is made."""
        module, name = topic.split(".")
        benchmark = getattr(load(module), name)
        size = (16384, 16384, 64) if name == "Step" else 16384
        with pytest.raises(NotImplementedError, match="16384 x 16384 is measured on GPUs"):
            benchmark().setup("numpy", size)

    def test_a_misspelt_backend_is_an_error(self, load):
        with pytest.raises(ValueError, match="no backend 'nunpy'"):
            load("common").BackendBenchmark().setup("nunpy")

    def test_numbers_are_the_same_after_every_setup(self, load):
        benchmark = load("common").BackendBenchmark()
        draws = []
        for _ in range(2):
            benchmark.setup("numpy")
            draws.append((benchmark.normal((2, 3)), benchmark.normal((2, 3), "float64")))
        (x, y), (x_again, y_again) = draws
        assert x.dtype == np.float32
        assert y.dtype == np.float64
        np.testing.assert_array_equal(x, x_again)
        np.testing.assert_array_equal(y, y_again)
        assert not np.array_equal(x, y.astype(np.float32))

    def test_the_example_runs(self, load):
        results = doctest.testmod(load("common"))
        assert results.attempted > 0
        assert results.failed == 0


class TestReports:
    """The commands behind docs/performance.md and the page of results, with small sizes."""

    def test_performance(self, tmp_path):
        report = tmp_path / "report.json"
        command = [sys.executable, "-m", "performance", "--backends", "numpy", "--size", "128"]
        command += ["--only", "floor,memory", "--json", str(report)]
        done = subprocess.run(command, cwd=SUITE, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = json.loads(report.read_text())
        assert [row["buffers"] for row in found["floor"]] == ["fresh", "reused"]
        assert all(row["ratio"] > 0 for row in found["floor"])
        assert "| numpy | float32 | fresh |" in done.stdout
        assert {row["run"] for row in found["memory"]} == {"given", "tuned", "noisy"}
        for row in found["memory"]:
            assert row["beyond_X"] < (2.75 if row["reuse_buffers"] else 3.25)

    def test_page_without_scripts(self, tmp_path):
        """What `asv publish` wrote: two choices of parameters, one never measured."""
        name, folder = "floor.Floor.time_step", tmp_path / "graphs" / "branch-main" / "machine-a&b"
        benchmark = {"params": [["'numpy'", "'cupy'"], ["64"]], "unit": "seconds"}
        index = {
            "project": "zomopi",
            "revision_to_hash": {"3": "a" * 40, "7": "b" * 40},
            "benchmarks": {
                name: benchmark,
                "step.Step.time_step": {"params": [], "unit": "seconds"},
            },
        }
        folder.mkdir(parents=True)
        (tmp_path / "graphs" / "summary").mkdir()
        (tmp_path / "index.json").write_text(json.dumps(index))
        rows = [[3, [0.25, None]], [7, [0.5, None]]]
        (folder / f"{name}.json").write_text(json.dumps(rows))
        (tmp_path / "graphs" / "summary" / f"{name}.json").write_text("[[3, 9.0]]")
        command = [sys.executable, SUITE / "results_page.py", tmp_path]
        subprocess.run(command, check=True)
        page = (tmp_path / "results.html").read_text()
        assert "0.5 seconds" in page
        assert ">2.00<" in page
        assert "bbbbbbbb" in page
        assert "a&amp;b" in page
        assert page.count("<polyline") == 1
        assert "cupy" not in page
        assert "<script" not in page
        (folder / f"{name}.json").unlink()
        subprocess.run(command, check=True)
        assert "make bench" in (tmp_path / "results.html").read_text()
