"""Kill real runs, by SIGKILL at random instants and at every write, and compare what is resumed.

``python tests/crashes.py kills 300`` and ``python tests/crashes.py writes`` print what they found;
tests/test_crashes.py runs both. A process of its own forks the runs, so that one takes
milliseconds.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import zomopi_core as zo
from zomopi_core import _journal_file

X0 = np.zeros((6, 4))
TARGET = np.outer(np.arange(6.0), np.ones(4)) / 6
QUERIES = 400


def loss(x):
    return float(np.mean((x - TARGET) ** 2) + 0.1 * np.mean(np.cos(3 * x)))


class Logged:
    """A function that leaves a line for each of its calls before it begins."""

    def __init__(self, log, seconds=0.0):
        self.file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.seconds = seconds

    def __call__(self, x):
        os.write(self.file, hashlib.md5(x.tobytes()).hexdigest().encode() + b"\n")
        if self.seconds:
            time.sleep(self.seconds)
        return loss(x)


def live(journal, log, seconds=0.0, queries=QUERIES):
    """Begin the run, or go on with it."""
    fun = Logged(log, seconds)
    if Path(journal.path).exists():
        return zo.resume(journal, fun)
    return zo.minimize(fun, X0, max_queries=queries, seed=5, journal=journal)


def lines(log):
    return log.read_text().split() if log.exists() else []


def recorded(path):
    """Return the rows of a journal without their times, and the number of recorded losses."""
    _, rows = _journal_file.read_journal(path)
    rows = [row._replace(elapsed=0.0) for _, row in rows]
    return rows, rows[-1].queries if rows else 0


def probes_recorded(path):
    connection = _journal_file._connect(path, write=False)
    count = connection.execute(
        "SELECT count(*) FROM probe WHERE id > (SELECT count(*) FROM evaluation)"
    ).fetchone()[0]
    connection.close()
    return count


class Reference:
    """The run that nobody interrupts."""

    def __init__(self, folder, queries=QUERIES):
        log, path = folder / "reference.log", folder / "reference.zomopi"
        began = time.perf_counter()
        self.result = live(zo.Journal(path), log, queries=queries)
        self.seconds = time.perf_counter() - began
        self.calls, self.rows = lines(log), recorded(path)[0]

    def check(self, result, path):
        """Raise unless a result and a journal are those of this run."""
        same = np.array_equal(result.x, self.result.x) and result.fun == self.result.fun
        assert same, "another result"
        assert np.array_equal(result.x_last, self.result.x_last), "another last iterate"
        for name in ("queries", "loss", "best", "learning_rate"):
            there, here = self.result.history[name], result.history[name]
            assert np.array_equal(there, here, equal_nan=True), f"another history of {name}"
        assert recorded(path)[0] == self.rows, "another journal"


def in_child(function):
    """Run `function` in a fork; return its process."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    return child


def kill_at_random(count, seed=0, seconds=0.0, queries=QUERIES):
    """Kill and resume runs until `count` were killed; return (kills, runs)."""
    chance, kills, runs = random.Random(seed), 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference = Reference(folder, queries)
        longest = 0.5 * (reference.seconds + seconds * queries)
        while kills < count:
            path, log = folder / f"{runs}.zomopi", folder / f"{runs}.log"
            steps = chance.choice([3, 10, None])
            options = {"snapshot_steps": steps} if runs % 3 else {"durable": runs % 2 == 0}
            journal = zo.Journal(path, **options)
            for _ in range(60):  # lives of one run
                before = len(lines(log))
                known = 0
                if path.exists():
                    known = recorded(path)[1] + probes_recorded(path)
                child = in_child(lambda: live(journal, log, seconds, queries))  # noqa: B023
                time.sleep(chance.uniform(0.0, longest))
                os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                made = lines(log)[before:]
                assert made == reference.calls[known : known + len(made)], (
                    "what was recorded was evaluated again, or something else"
                )
                if not os.WIFSIGNALED(status):
                    assert os.WEXITSTATUS(status) == 0, "a resumed run failed"
                    break
                kills += 1
            reference.check(live(journal, folder / "last.log", 0.0, queries), path)
            runs += 1
    return kills, runs


class Deadly:
    """Ends the process at the n-th of the places where something is written."""

    def __init__(self, deadline=None):
        self.places, self.deadline = 0, deadline

    def place(self):
        if self.places == self.deadline:
            os.kill(os.getpid(), signal.SIGKILL)
        self.places += 1

    def around(self, function):
        def wrapped(*args, **keywords):
            self.place()
            result = function(*args, **keywords)
            self.place()
            return result

        return wrapped

    def install(self):
        """Put a place before and after each call that changes a file."""
        for name in ("link", "rename", "replace", "fsync", "unlink", "open"):
            setattr(os, name, self.around(getattr(os, name)))
        deadly, opened, connect = self, _journal_file._opened, sqlite3.connect

        class Proxy:
            def __init__(self, connection):
                self._connection = connection
                self.execute = deadly.around(connection.execute)
                self.close = deadly.around(connection.close)

            def __getattr__(self, name):
                return getattr(self._connection, name)

        _journal_file._opened = lambda *a: Proxy(opened(*a))
        sqlite3.connect = lambda *a, **k: (
            connect(*a, **k) if k.get("uri") else Proxy(connect(*a, **k))
        )
        return self


def kill_at_every_write(queries=90):
    """Kill a run at each place where it writes, resume it, and compare; return the number."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference = Reference(folder, queries)
        out, into = os.pipe()

        def count():
            deadly = Deadly().install()
            live(
                zo.Journal(folder / "count.zomopi", snapshot_steps=2), folder / "c.log", 0, queries
            )
            os.write(into, str(deadly.places).encode())

        os.waitpid(in_child(count), 0)
        places = int(os.read(out, 100))
        for place in range(places):
            path, log = folder / f"{place}.zomopi", folder / f"{place}.log"
            journal = zo.Journal(path, snapshot_steps=2)

            def die():
                Deadly(place).install()  # noqa: B023
                live(journal, log, 0, queries)  # noqa: B023

            _, status = os.waitpid(in_child(die), 0)
            assert os.WIFSIGNALED(status), f"place {place} was not reached"
            before, known = len(lines(log)), recorded(path)[1] if path.exists() else 0
            result = live(journal, log, 0, queries)
            assert lines(log)[before:] == reference.calls[known:], "not what was missing"
            reference.check(result, path)
            for file in folder.glob(f"{place}.*"):
                file.unlink()
    return places


if __name__ == "__main__":
    began = time.perf_counter()
    if sys.argv[1] == "kills":
        kills, runs = kill_at_random(int(sys.argv[2]))
        slow, _ = kill_at_random(max(1, kills // 20), seed=1, seconds=0.022, queries=60)
        print(
            f"{kills} kills of {runs} runs, {slow} of slow ones: the same bits, nothing repeated"
        )
    else:
        print(f"killed at each of {kill_at_every_write()} places: the same bits, nothing repeated")
    print(f"{time.perf_counter() - began:.1f} s")
