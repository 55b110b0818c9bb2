"""The work of gpu_check.sh: GPU tests and benchmarks to report.json and report.md.

Each part is a process of its own with a limit of its own: one that hangs, or leaves the device
unusable, ends alone. ``--rehearse`` runs all of them on the CPU with small sizes, to see that
they work where there is no GPU; its figures mean nothing.
"""

import argparse
import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import gpu_parts

import performance

ROOT = Path(__file__).resolve().parents[1]
# seconds; together less than ten minutes
LIMITS = {
    "machine": 25,
    "tests": 150,
    "floor": 105,
    "samplers": 25,
    "stacked": 60,
    "CUDA graph": 35,
    "phase mask": 35,
    "least squares": 60,
    "tuning": 45,
    "devices": 30,
}
# Tests of arrays on every backend; those of a GPU have it in their names. Two classes of tests
# have a host in the place of a GPU.
TESTED = ["arrays", "binding", "cholesky_qr", "golden", "optimizer", "orthogonalize"]
TESTED += ["sampling", "subspace", "transfers"]
ON_GPU = "(cuda or cupy or gpu) and not (TestCupyCalls or TestCudaPhilox)"


def tests(paths, out, limit, keyword):
    """Run the tests that match a keyword and return one row about them.

    The library's own warnings are errors in its tests; here versions that nobody tried together
    may warn.
    """
    log = out / "tests.xml"
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", keyword]
    command += ["--continue-on-collection-errors", "-W", "default", f"--junit-xml={log}"]
    command += ["-c", str(ROOT / "pyproject.toml"), *map(str, paths)]
    problem = stopped_after(limit, command, out / "tests.txt")
    if not log.exists():
        return [{"failed": problem or "pytest wrote no results"}]
    suite = ET.parse(log).getroot().find("testsuite").attrib
    row = {name: int(suite[name]) for name in ("tests", "failures", "errors", "skipped")}
    wrong = row["failures"] + row["errors"]
    if problem or wrong:
        row["failed"] = problem if not wrong else f"{wrong} tests failed, see tests.txt"
    return [row]


def measured(name, options, out, limit):
    """Run a part of gpu_parts.py and return its rows."""
    rows = out / f"{name.replace(' ', '-')}.json"
    rows.unlink(missing_ok=True)
    command = [sys.executable, gpu_parts.__file__, name, "--rows", str(rows), *options]
    problem = stopped_after(limit, command, rows.with_suffix(".txt"))
    found = json.loads(rows.read_text(encoding="utf-8")) if rows.exists() else []
    return found if not problem else [*found, {"failed": problem}]


def stopped_after(limit, command, log):
    """Run a command for a limited time, its output to a file; return what went wrong, or None."""
    with log.open("w", encoding="utf-8") as file:
        try:
            done = subprocess.run(
                command, check=False, cwd=ROOT, stdout=file, stderr=file, timeout=limit
            )
        except subprocess.TimeoutExpired:
            return f"stopped after {limit} s"
    return None if done.returncode == 0 else f"exit status {done.returncode}, see {log.name}"


def report(parts, out):
    """Run parts, functions of no argument by name; write what they return, and return failures."""
    found, lines, failed = {}, [], []
    for name, part in parts.items():
        began = time.perf_counter()
        rows = part()
        found[name] = {"rows": rows, "seconds": time.perf_counter() - began}
        failed += [f"{name}: {row['failed']}" for row in rows if "failed" in row]
        lines += ["", f"## {name}", ""]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        filled = [{key: row.get(key, "") for key in columns} for row in rows]
        lines.append(performance.table(columns, performance.rounded(filled)))
        text = json.dumps({"failed": failed, **found}, indent=1)
        (out / "report.json").write_text(text + "\n", encoding="utf-8")
        (out / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.stdout.write("\n".join([*lines, "", *(f"FAILED {line}" for line in failed)]) + "\n")
    return failed


def main():
    """Run all parts; the exit status is 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--backends", default="")
    chosen = parser.parse_args()
    out = chosen.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    options = ["--rehearse"] if chosen.rehearse else []
    options += ["--backends", chosen.backends] if chosen.backends else []
    paths = [ROOT / "tests" / "gpu", *(ROOT / "tests" / f"test_{name}.py" for name in TESTED)]

    def part(name, limit):
        if name == "tests":
            rows = tests(paths, out, limit, ON_GPU)
            if not chosen.rehearse and rows[0].get("tests", 0) == rows[0].get("skipped"):
                rows[0].setdefault("failed", "no test ran")
            return rows
        return measured(name, options, out, limit)

    parts = {n: lambda n=n, limit=limit: part(n, limit) for n, limit in LIMITS.items()}
    return 1 if report(parts, out) else 0


if __name__ == "__main__":
    sys.exit(main())
