"""Runs that are killed; see crashes.py. A process of its own forks them."""

import subprocess
import sys
from pathlib import Path

import pytest

CRASHES = Path(__file__).with_name("crashes.py")


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
@pytest.mark.parametrize("what", [["kills", "300"], ["writes"]], ids=["kills", "writes"])
def test_killed_runs_end_as_if_they_had_not_been(what):
    done = subprocess.run([sys.executable, CRASHES, *what], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the same bits, nothing repeated" in done.stdout
