"""Some of the mutations that ``make torture`` makes; see fuzz.py."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz.py")


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGALRM")
def test_mutated_files_are_refused_or_give_the_right_numbers():
    command = [sys.executable, "-W", "error", FUZZ, "400"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _, refused, right = map(int, re.findall(r"\d+", done.stdout)[:3])
    assert refused > 50
    assert right > 50
