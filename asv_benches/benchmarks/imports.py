"""Start-up."""

from __future__ import annotations

import statistics
import subprocess
import sys

_DEPENDENCIES = "import time, numpy, array_api_compat; began = time.perf_counter(); "
_CLOCK = "; print(time.perf_counter() - began)"


class Import:
    """A fresh interpreter, which has imported the dependencies before the clock starts."""

    repeats = 5

    @staticmethod
    def seconds():
        """Return the seconds that a fresh interpreter takes to import the package."""
        command = [sys.executable, "-c", _DEPENDENCIES + "import zomopi_core" + _CLOCK]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout)

    def track_import_seconds(self):
        return statistics.median(self.seconds() for _ in range(self.repeats))

    track_import_seconds.unit = "seconds"
