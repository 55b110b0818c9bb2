"""What a loss of power leaves of a journal: any beginning of its log, the last page torn.

No power is cut: SQLite's file and log are copied out of a run, and the log is cut where a disk may
have stopped writing. Frames of the log are checksummed one after the other, so that one that is
torn ends it.
"""

import shutil

import numpy as np
import pytest

import zomopi_core as zo
from zomopi_core._journal_file import read_journal

X0 = np.zeros((6, 4))
TARGET = np.outer(np.arange(6.0), np.ones(4)) / 6
OPTIONS = {"max_queries": 100, "seed": 5}
_HEADER, _FRAME = 32, 24 + 4096  # bytes of a log's header, and of a page in it


def loss(x):
    return float(np.mean((x - TARGET) ** 2))


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    """A run, and the files that it had at its last step, with the log that was not closed yet."""
    folder = tmp_path_factory.mktemp("live")
    path, copies = folder / "run.zomopi", folder / "copies"
    copies.mkdir()

    def copy(iteration):
        for file in folder.glob("run.zomopi*"):
            if "-shm" not in file.name and "-lock" not in file.name:
                shutil.copy(file, copies)

    kept = zo.Journal(path, snapshot_steps=4, keep=100)
    return zo.minimize(loss, X0, journal=kept, callback=copy, **OPTIONS), copies


def after(copies, folder, change):
    """Return the journal of which `change` made what is left of the log."""
    folder.mkdir()
    for file in copies.iterdir():
        shutil.copy(file, folder)
    log = folder / "run.zomopi-wal"
    log.write_bytes(change(log.read_bytes()))
    return folder / "run.zomopi"


def is_resumed(path, whole):
    """Resume a journal, raise unless the run ends as the whole one, return its rows before."""
    rows = len(read_journal(path)[1])
    calls = []
    result = zo.resume(path, lambda x: calls.append(1) or loss(x))
    np.testing.assert_array_equal(result.x, whole.x)
    np.testing.assert_array_equal(result.x_last, whole.x_last)
    np.testing.assert_array_equal(result.history["loss"], whole.history["loss"])
    assert result.nfev == whole.nfev
    assert len(calls) <= whole.nfev
    return rows


def frames(copies):
    size = (copies / "run.zomopi-wal").stat().st_size
    count, rest = divmod(size - _HEADER, _FRAME)
    assert not rest
    return count


def test_cut_at_every_page_and_within(journal, tmp_path):
    """Snapshots are there whose rows are lost: they are not used."""
    whole, copies = journal
    count, found = frames(copies), []
    assert count > 10
    for i in range(count + 1):
        for j, part in enumerate((0, 1, 24, 2000)):
            end = _HEADER + i * _FRAME + part
            path = after(copies, tmp_path / f"{i}.{j}", lambda log, end=end: log[:end])
            found.append(is_resumed(path, whole))
            if i == count:
                break
    assert found[0] == 0
    assert found == sorted(found)
    assert set(found) == set(range(found[-1] + 1))  # step by step, without a gap


@pytest.mark.parametrize("left", [b"", bytes(_HEADER), bytes(_HEADER - 1), b"\xff" * 5000])
def test_log_that_never_reached_the_disk(journal, tmp_path, left):
    whole, copies = journal
    assert is_resumed(after(copies, tmp_path / "a", lambda log: left), whole) == 0


@pytest.mark.parametrize("what", ["zeros", "noise", "old"])
def test_pages_whose_length_reached_the_disk_before_them(journal, tmp_path, what):
    whole, copies = journal
    rng, count, found = np.random.default_rng(0), frames(copies), []
    for i in range(0, count, 3):

        def change(log, i=i):
            end = _HEADER + i * _FRAME
            lost = len(log) - end
            tail = {"zeros": bytes(lost), "noise": rng.bytes(lost), "old": log[-lost:][::-1]}[what]
            return log[:end] + tail

        found.append(is_resumed(after(copies, tmp_path / str(i), change), whole))
    assert found == sorted(found)


def test_a_page_in_the_middle_was_lost(journal, tmp_path):
    """What comes behind it is not taken for a part of the run."""
    whole, copies = journal
    count = frames(copies)
    for i in range(0, count, 3):

        def change(log, i=i):
            begin = _HEADER + i * _FRAME
            return log[:begin] + bytes(_FRAME) + log[begin + _FRAME :]

        assert is_resumed(after(copies, tmp_path / str(i), change), whole) <= i
