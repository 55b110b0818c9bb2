"""What `tools/gpu_check.sh` does on a machine with a GPU, rehearsed on a CPU."""

import importlib
import json
import os
import subprocess
import sys
import time
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / "tools"


@pytest.fixture(scope="module")
def tool():
    """Return a function that imports a file of the tools, with what the script lets it see."""
    with pytest.MonkeyPatch.context() as patch:
        folders = [str(TOOLS), str(ROOT / "asv_benches")]
        for folder in folders:
            patch.syspath_prepend(folder)
        inherited = os.environ.get("PYTHONPATH", "")
        patch.setenv("PYTHONPATH", os.pathsep.join([*folders, inherited]))
        yield importlib.import_module
        for name in list(sys.modules):
            if name.split(".")[0] in {"benchmarks", "performance", "gpu_parts", "gpu_report"}:
                del sys.modules[name]


def bare_python(folder):
    """Return an interpreter that has NumPy and SciPy, and nothing else of this one's packages."""
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    for name in ("numpy", "scipy"):
        home = Path(importlib.import_module(name).__file__).parent
        for path in (home, home.with_name(f"{name}.libs")):
            if path.exists():
                (packages / path.name).symlink_to(path)
    return folder / "bin" / "python"


def make_wheels(folder):
    """Pack the installed packages that gpu_wheels.txt names, as `pip download` brings them."""
    folder.mkdir()
    lines = (TOOLS / "gpu_wheels.txt").read_text().splitlines()
    for name in (line for line in lines if not line.startswith("#")):
        found = distribution(name)
        with zipfile.ZipFile(folder / f"{name}-{found.version}-py3-none-any.whl", "w") as wheel:
            for path in found.files:
                if path.parts[0] != ".." and path.suffix != ".pyc":
                    wheel.write(path.locate(), str(path))
    return folder


def test_rehearsal(tmp_path):
    """All parts, the tests among them, with the listed packages and NumPy alone."""
    python = bare_python(tmp_path / "machine")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"PYTHON": str(python), "GPU_REPORT_OPTIONS": "--rehearse --backends numpy"}
    done = subprocess.run(
        [TOOLS / "gpu_check.sh", make_wheels(tmp_path / "wheels"), tmp_path / "out"],
        capture_output=True,
        text=True,
        env=environment,
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report.pop("failed") == [], done.stdout[-5000:]
    assert done.returncode == 0, done.stderr
    assert report["machine"]["rows"][1]["version"] == "not installed"
    (row,) = report["tests"]["rows"]
    assert row["tests"] > 100
    assert row["skipped"] == row["tests"]
    for name in set(report) - {"tests", "machine"}:
        assert report[name]["rows"][0]["backend"] == "numpy", name
    assert "## phase mask" in (tmp_path / "out" / "report.md").read_text()


class TestTests:
    def run(self, tool, tmp_path, text, limit=60):
        path = tmp_path / "test_made_up.py"
        path.write_text(text)
        return tool("gpu_report").tests([path], tmp_path, limit, keyword="test")[0]

    def test_passed(self, tool, tmp_path):
        """Warnings of other versions of libraries are no failures."""
        text = "import warnings\ndef test_a(): warnings.warn('old')"
        row = self.run(tool, tmp_path, text)
        assert row == {"tests": 1, "failures": 0, "errors": 0, "skipped": 0}

    def test_failures_and_files_that_cannot_be_collected(self, tool, tmp_path):
        (tmp_path / "test_broken.py").write_text("import not_there")
        (tmp_path / "test_other.py").write_text("def test_a(): assert 0\ndef test_b(): pass")
        row = tool("gpu_report").tests([tmp_path], tmp_path, 60, keyword="test")[0]
        assert (row["tests"], row["failures"], row["errors"]) == (3, 1, 1)
        assert row["failed"] == "2 tests failed, see tests.txt"

    def test_no_test_at_all(self, tool, tmp_path):
        assert "exit status 5" in self.run(tool, tmp_path, "")["failed"]

    def test_are_stopped_at_their_limit(self, tool, tmp_path):
        row = self.run(tool, tmp_path, "import time\ndef test_a(): time.sleep(60)", limit=2)
        assert row["failed"] == "stopped after 2 s"


class TestParts:
    def test_limits_add_up_to_less_than_ten_minutes(self, tool):
        limits = tool("gpu_report").LIMITS
        assert set(limits) == {"tests", *tool("gpu_parts").PARTS}
        assert sum(limits.values()) <= 570  # half a minute is left for what is between them

    def test_a_part_is_stopped_at_its_limit(self, tool, tmp_path):
        began = time.perf_counter()
        rows = tool("gpu_report").measured("floor", ["--rehearse"], tmp_path, 0.05)
        assert rows == [{"failed": "stopped after 0.05 s"}]
        assert time.perf_counter() - began < 5

    def test_a_part_that_breaks_is_reported(self, tool, tmp_path):
        """Here for a backend that does not exist; the rows of an earlier run are not its own."""
        (tmp_path / "phase-mask.json").write_text('[{"old": 1}]')
        options = ["--rehearse", "--backends", "nunpy"]
        (row,) = tool("gpu_report").measured("phase mask", options, tmp_path, 60)
        assert "exit status 1" in row["failed"]
        assert "no backend 'nunpy'" in (tmp_path / "phase-mask.txt").read_text()

    def test_report_says_what_failed(self, tool, tmp_path):
        parts = {"a": lambda: [{"x": 1.0}], "b": lambda: [{"y": 2}, {"failed": "broken"}]}
        assert tool("gpu_report").report(parts, tmp_path) == ["b: broken"]
        found = json.loads((tmp_path / "report.json").read_text())
        assert found["failed"] == ["b: broken"]
        assert found["a"]["rows"] == [{"x": 1.0}]
        assert "| broken |" in (tmp_path / "report.md").read_text()


class TestTorch:
    """The parts of Torch, on the CPU; `captured` calls what a GPU replays."""

    @pytest.fixture(autouse=True)
    def torch(self):
        return pytest.importorskip("torch")

    def test_captured_step_is_the_drivers(self, tool):
        rows = tool("gpu_parts").captured(["numpy", "torch:cpu"], True)
        assert [row["largest_difference"] for row in rows] == [0.0, 0.0]

    def test_a_replay_that_ignores_its_draws_is_told(self, tool, monkeypatch):
        parts = tool("gpu_parts")
        monkeypatch.setattr(parts, "replayed", lambda library, body, arrays: lambda: None)
        (row,) = parts.captured(["torch:cpu"], True)
        assert "not the driver's" in row["failed"]

    def test_tuning(self, tool):
        rows = tool("gpu_parts").tuning(["torch:cpu"], True)
        assert [row["driver"] for row in rows] == ["minimize", "ZOMOPI"]
        assert all(row["loss_over_first"] < 1 for row in rows)
        assert not any("failed" in row for row in rows)
        assert rows[1]["auto_waits_a_step"] > 0  # a search reads losses

    def test_waits_are_counted(self, tool, torch):
        x = torch.ones(3)
        with tool("gpu_parts").counted_waits(x.device) as waited:
            y = x + 1
            assert waited == []
            float(y[0])
            bool(y[1] > 0)
        assert len(waited) == 2

    def test_devices(self, tool):
        rows = tool("gpu_parts").devices(["torch:cpu"], True)
        assert [row.get("lr") for row in rows] == [0.05, "auto", None]
        assert not any("failed" in row for row in rows)

    def test_a_model_that_ends_elsewhere_is_told(self, tool, torch, monkeypatch):
        parts = tool("gpu_parts")
        made = iter(range(9))

        def model_on(places, width=8, original=parts.model_on):
            model, closure = original(places, width)
            return model, lambda: closure() * (1 + (next(made, 9) % 2))

        monkeypatch.setattr(parts, "model_on", model_on)
        row = parts.model_over_two(torch.device("cpu"), 0.05, True)
        assert "ends elsewhere" in row["failed"]


def test_samplers_are_compared_by_equal_counts(tool):
    (row,) = tool("gpu_parts").samplers(["numpy"], True)
    assert row["numbers"] == 8 * 64 * 1024
    assert np.isfinite(row["keyed_over_own"])
