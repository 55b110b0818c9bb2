"""Start-up."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

from .common import turns

# Time of the processor: what neighbours take of it is not counted.
_DEPENDENCIES = "import time, numpy, array_api_compat; began = time.process_time(); "
_CLOCK = "; print(time.process_time() - began)"


class Import:
    """A fresh interpreter, which has imported the dependencies before the clock starts."""

    repeats = turns(5)

    @staticmethod
    def seconds(count):
        """Return the seconds that fresh interpreters take to import the package, compiled."""
        command = [sys.executable, "-c", _DEPENDENCIES + "import zomopi_core" + _CLOCK]
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        with tempfile.TemporaryDirectory() as folder:
            kept["PYTHONPYCACHEPREFIX"] = folder  # the first one compiles
            runs = [
                subprocess.run(command, capture_output=True, text=True, check=True, env=kept)
                for _ in range(count + 1)
            ]
        return [float(run.stdout) for run in runs[1:]]

    def track_import_seconds(self):
        return statistics.median(self.seconds(self.repeats))

    track_import_seconds.unit = "seconds"
