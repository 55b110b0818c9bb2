"""Mutated journals and snapshots: an error or the right numbers, never a crash, hang or others.

``python tests/fuzz.py 20000`` makes so many; tests/test_fuzz.py makes some of them.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

import zomopi_core as zo

PAGE = 4096
NUMBERS = (b"\0" * 8, b"\xff" * 8, b"\x7f" + b"\xff" * 7, struct.pack("<Q", 2**40), b"\x80" * 8)


def loss(x):
    return float(np.mean((x - np.arange(24.0).reshape(6, 4) / 24) ** 2))


def flip(data, chance):
    for _ in range(chance.choice([1, 1, 2, 8, 64])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def cut(data, chance):
    del data[chance.randrange(len(data)) :]


def lengthen(data, chance):
    data += bytes(chance.choice([1, 100, PAGE]))


def swap_pages(data, chance):
    pages = -(-len(data) // PAGE)
    i, j = chance.randrange(pages), chance.randrange(pages)
    a, b = slice(i * PAGE, (i + 1) * PAGE), slice(j * PAGE, (j + 1) * PAGE)
    data[a], data[b] = data[b], data[a]


def overwrite(data, chance):
    start = chance.randrange(len(data))
    data[start : start + 8] = chance.choice(NUMBERS)


def absurd_header(data, chance):
    place = chance.randrange(100)
    data[place : place + 4] = chance.choice(NUMBERS)[:4]


def absurd_entry(data, chance):
    """Another number in the JSON header of a snapshot, whose length stays right."""
    (length,) = struct.unpack("<Q", data[:8])
    if length > len(data):
        return
    text = bytes(data[8 : 8 + length])
    numbers = [i for i, c in enumerate(text) if chr(c).isdigit()]
    place = chance.choice(numbers)
    text = text[:place] + chance.choice([b"9" * 30, b"-1", b"1e999", b"null"]) + text[place + 1 :]
    data[: 8 + length] = struct.pack("<Q", len(text)) + text


def copy_bytes(data, chance):
    length = chance.randrange(1, min(500, len(data)))
    a, b = (chance.randrange(len(data) - length + 1) for _ in range(2))
    data[b : b + length] = data[a : a + length]


MUTATIONS = (flip, cut, lengthen, swap_pages, overwrite, absurd_header, absurd_entry, copy_bytes)
FORGED = ("shapes", "dtypes", "backend", "method", "rules", "sampler", "names", "x0", "run")


def forge(path, chance):
    """A header with a right checksum and wrong contents."""
    import sqlite3
    import zlib

    connection = sqlite3.connect(path)
    (text,) = connection.execute("SELECT value FROM header").fetchone()
    header = json.loads(text)
    part, name = header, chance.choice(FORGED)
    while isinstance(part[name], dict) and part[name] and chance.random() < 0.8:
        part, name = part[name], chance.choice(list(part[name]))
    wrong = [
        None,
        -1,
        10**12,
        2**63,
        1e308,
        "x",
        [],
        {},
        [10**9, 10**9],
        {"class": "Method"},
        True,
    ]
    part[name] = chance.choice(wrong)
    text = json.dumps(header, sort_keys=True)
    checksum = zlib.crc32(text.encode())
    checksum -= 2**32 if checksum >= 2**31 else 0
    connection.execute("UPDATE header SET value = ?, checksum = ?", (text, checksum))
    connection.commit()
    connection.close()


class Original:
    """A recorded run and all its iterates."""

    def __init__(self, folder):
        self.folder = folder
        self.path = folder / "run.zomopi"
        points = [np.zeros((6, 4))]
        zo.minimize(
            loss,
            points[0],
            max_queries=300,
            seed=1,
            journal=zo.Journal(self.path, snapshot_steps=9),
            callback=lambda iteration: points.append(iteration.x),
        )
        self.points = {point.tobytes() for point in points}
        self.files = sorted(f.name for f in folder.iterdir())

    def mutated(self, folder, chance):
        """Write a mutated copy into `folder`; return its journal."""
        for file in folder.iterdir():
            file.unlink()
        for name in self.files:
            shutil.copy(self.folder / name, folder / name)
        path = folder / self.path.name
        if chance.random() < 0.15:
            forge(path, chance)
            return path
        file = path if chance.random() < 0.6 else folder / chance.choice(self.files)
        data = bytearray(file.read_bytes())
        mutation = chance.choice(MUTATIONS)
        if mutation is absurd_entry and file == path:
            mutation = flip
        mutation(data, chance)
        file.write_bytes(data)
        return path


class HungError(BaseException):
    """A call took longer than any should."""


def _hang(*which):
    raise HungError


def fuzz(count, seed=0):
    """Return how often there was an error, and how often the right parameters."""
    outcomes = Counter()
    signal.signal(signal.SIGALRM, _hang)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        original = Original(Path(first))
        for i in range(count):
            chance = random.Random(seed * 10**9 + i)
            path = original.mutated(Path(second), chance)
            signal.alarm(20)
            try:
                x = zo.replay(path)
            except zo.JournalError:
                outcomes["refused"] += 1
            else:
                assert x.tobytes() in original.points, f"case {i}: wrong numbers"
                outcomes["right"] += 1
            if chance.random() < 0.1:
                with contextlib.suppress(zo.JournalError):
                    zo.resume(path, loss)
            signal.alarm(0)
    return outcomes


if __name__ == "__main__":
    began = time.perf_counter()
    found = fuzz(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(f"{found.total()} mutations: {found['refused']} refused, {found['right']} right")
    print(f"{time.perf_counter() - began:.0f} s")
