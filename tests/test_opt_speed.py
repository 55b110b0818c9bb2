"""The script that measures steps at the shapes of OPT, on a tiny one."""

import importlib.util
import json
import math
from pathlib import Path

import pytest

pytest.importorskip("torch")


def load():
    path = Path(__file__).parents[1] / "tools" / "opt_speed.py"
    spec = importlib.util.spec_from_file_location("opt_speed", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_measures_all_ways_to_evaluate(tmp_path, dtype, capsys):
    out = tmp_path / "figures.json"
    found = load().main(
        ["--size", "tiny", "--device", "cpu", "--dtype", dtype, "--rank", "4", "--repeats", "1",
         "--tokens", "8", "--out", str(out)]
    )  # fmt: skip
    stored = json.loads(out.read_text())
    assert stored["figures"] == found
    assert stored["options"]["dtype"] == dtype
    assert [row["binding"] for row in found] == ["in_place", "overlay", "batched"]
    assert len(capsys.readouterr().out.splitlines()) == 3
    for row in found:
        assert row["peak beyond it, GB"] is None  # known on a GPU
        for name in ("seconds a step", "forward passes a second", "of pure inference"):
            assert math.isfinite(row[name])
            assert row[name] > 0


def test_shapes_are_those_of_opt():
    """1.3 and 13 thousand million numbers, counted without making them."""
    import torch

    module = load()
    for size, numbers in (("125m", 125e6), ("1.3b", 1.316e9), ("13b", 12.85e9)):
        with torch.device("meta"):
            model = module.Decoder(*module.SIZES[size])
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(numbers, rel=0.01)
