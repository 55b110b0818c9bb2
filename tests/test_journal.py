"""The file of a journal, its lock and its snapshots: what is refused, and what costs what."""

import contextlib
import dataclasses
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

import zomopi_core as zo
from zomopi_core import _journal_file, _method_json, _safetensors, _tree
from zomopi_core._file_lock import FileLock
from zomopi_core._journal_rows import Row, pack_losses, unpack_losses

X0 = np.zeros((6, 4))


def distance(x):
    return float(np.sum((x - 1.0) ** 2))


def recorded(path, **options):
    return zo.minimize(distance, X0, max_queries=200, seed=1, journal=path, **options)


def rows_of(path):
    return [row for _, row in _journal_file.read_journal(path)[1]]


@pytest.fixture
def nobody():
    """A folder, and a context in which permissions count, whoever runs the tests."""
    superuser = os.geteuid() == 0

    @contextlib.contextmanager
    def nobody():
        if superuser:
            os.seteuid(65534)
        try:
            yield
        finally:
            if superuser:
                os.seteuid(0)

    with tempfile.TemporaryDirectory() as folder:
        if superuser:
            os.chown(folder, 65534, -1)
        yield Path(folder), nobody


class TestRecording:
    def test_changes_nothing(self, tmp_path):
        plain = zo.minimize(distance, X0, max_queries=200, seed=1)
        result = recorded(tmp_path / "a.zomopi")
        np.testing.assert_array_equal(result.x, plain.x)
        np.testing.assert_array_equal(result.history["loss"], plain.history["loss"])

    def test_any_tool_can_read_it(self, tmp_path):
        result = recorded(tmp_path / "a.zomopi")
        connection = sqlite3.connect(tmp_path / "a.zomopi")
        rows = connection.execute(
            "SELECT queries, loss, learning_rate FROM evaluation WHERE kind = '' ORDER BY step"
        ).fetchall()
        connection.close()
        np.testing.assert_array_equal([r[0] for r in rows], result.history["queries"])
        np.testing.assert_array_equal([r[1] for r in rows], result.history["loss"])
        np.testing.assert_array_equal([r[2] for r in rows], result.history["learning_rate"])

    def test_leaves_one_file_and_the_snapshots(self, tmp_path):
        result = recorded(tmp_path / "a.zomopi")
        assert sorted(f.name for f in tmp_path.iterdir()) == [
            "a.zomopi",
            f"a.zomopi.{result.nit:09d}.safetensors",
            "a.zomopi.x0.safetensors",
        ]

    def test_keeps_the_last_snapshots(self, tmp_path):
        recorded(zo.Journal(tmp_path / "a.zomopi", snapshot_steps=3, keep=3))
        assert len(list(tmp_path.glob("a.zomopi.0*"))) == 3

    def test_without_snapshots_there_are_none(self, tmp_path):
        recorded(zo.Journal(tmp_path / "a.zomopi", snapshots=False))
        assert [f.name for f in tmp_path.iterdir()] == ["a.zomopi"]

    def test_each_step_is_there_before_the_next_begins(self, tmp_path):
        counts = []

        def count(iteration):
            path = tmp_path / "a.zomopi"
            counts.append((iteration.step, sum(row.kind == "" for row in rows_of(path))))

        recorded(tmp_path / "a.zomopi", callback=count)
        assert counts == [(i + 1, i + 1) for i in range(len(counts))]

    def test_size_of_ten_thousand_steps(self, tmp_path):
        """8 probes with two evaluations each, whatever the size of the model."""
        file = _journal_file.create(tmp_path / "a.zomopi", {})
        file.begin()
        losses = np.random.default_rng(0).standard_normal((10_000, 16))
        for step, row in enumerate(losses):
            packed = pack_losses(row)
            file.append(Row(step, "", 16 * step, row.mean(), 0.1 / (step + 1), step / 7, packed))
        file.close()
        assert (tmp_path / "a.zomopi").stat().st_size < 2_000_000


class TestRefusals:
    def test_nothing_is_overwritten(self, tmp_path):
        path = tmp_path / "a.zomopi"
        path.write_text("precious")
        with pytest.raises(zo.JournalError, match="exists and is not overwritten"):
            recorded(path)
        assert path.read_text() == "precious"
        assert [f.name for f in tmp_path.iterdir()] == ["a.zomopi"]

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no journal"):
            zo.resume(tmp_path / "a.zomopi", distance)

    @pytest.mark.parametrize("content", [b"", b"SQLite format 3\0" + bytes(100), b"x" * 5000])
    def test_another_file(self, tmp_path, content):
        path = tmp_path / "a.zomopi"
        path.write_bytes(content)
        with pytest.raises(zo.JournalError, match="cannot be read as a journal"):
            zo.resume(path, distance)
        assert path.read_bytes() == content

    def test_another_database(self, tmp_path):
        path = tmp_path / "a.zomopi"
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE t (x)")
        connection.close()
        with pytest.raises(zo.JournalError, match="another application"):
            zo.replay(path)

    def test_a_table_more(self, tmp_path):
        path = tmp_path / "a.zomopi"
        recorded(path)
        connection = sqlite3.connect(path)
        connection.execute("CREATE TRIGGER t AFTER INSERT ON evaluation BEGIN SELECT 1; END")
        connection.close()
        with pytest.raises(zo.JournalError, match="its tables are not those of a journal"):
            zo.replay(path)

    @pytest.mark.parametrize(
        ("version", "text"),
        [(3, "format 3, and this release"), (2, "its tables are not"), (-1, "its tables are not")],
    )
    def test_another_format(self, tmp_path, version, text):
        path = tmp_path / "a.zomopi"
        recorded(path)
        connection = sqlite3.connect(path)
        connection.execute(f"PRAGMA user_version={version}")
        connection.close()
        with pytest.raises(zo.JournalError, match=text):
            zo.replay(path)

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE evaluation SET loss = loss + 1 WHERE id = 5",
            "UPDATE evaluation SET losses = zeroblob(length(losses)) WHERE id = 5",
            "DELETE FROM evaluation WHERE id = 5",
            "UPDATE evaluation SET id = id + 1000 WHERE id >= 5",
            "UPDATE evaluation SET step = 'five' WHERE id = 5",
        ],
    )
    def test_changed_rows(self, tmp_path, statement):
        path = tmp_path / "a.zomopi"
        recorded(path)
        connection = sqlite3.connect(path)
        connection.execute(statement)
        connection.commit()
        connection.close()
        before = path.read_bytes()
        for call in (lambda: zo.resume(path, distance), lambda: zo.replay(path)):
            with pytest.raises(zo.JournalError, match="row 5 is not what was written"):
                call()
        assert path.read_bytes() == before

    def test_a_shorter_journal_is_a_shorter_run(self, tmp_path):
        """As after a loss of power: the last rows are evaluated again, to the same bits."""
        path = tmp_path / "a.zomopi"
        result = recorded(path)
        for file in tmp_path.glob("*.0*"):
            file.unlink()
        connection = sqlite3.connect(path)
        connection.execute("DELETE FROM evaluation WHERE id > 9")
        connection.commit()
        connection.close()
        again = zo.resume(path, distance)
        np.testing.assert_array_equal(again.x, result.x)

    def test_changed_header(self, tmp_path):
        path = tmp_path / "a.zomopi"
        recorded(path)
        connection = sqlite3.connect(path)
        connection.execute("UPDATE header SET value = replace(value, '200', '300')")
        connection.commit()
        connection.close()
        with pytest.raises(zo.JournalError, match="its header is not what was written"):
            zo.resume(path, distance)

    def test_gradients(self, tmp_path):
        with pytest.raises(TypeError, match="journal records losses"):
            zo.minimize(
                distance,
                X0,
                method="muon",
                gradient=lambda x: 2 * (x - 1),
                max_steps=3,
                journal=tmp_path / "a",
            )

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"path": 3}, "must be a path"),
            ({"path": b"run"}, "must be a path"),
            ({"durable": 1}, "durable must be True or False"),
            ({"snapshot_steps": 0}, "snapshot_steps must be an integer"),
            ({"snapshot_seconds": -1.0}, "snapshot_seconds must be a positive number"),
            ({"keep": 0}, "keep must be an integer"),
            ({"on_error": "skip"}, "on_error must be one of 'warn', 'raise'"),
        ],
    )
    def test_bad_options(self, options, text):
        with pytest.raises((TypeError, ValueError), match=text):
            zo.Journal(**{"path": "run.zomopi", **options})


class TestPaths:
    """What a careless caller may give as a path; nothing is left behind."""

    def test_folder_that_is_missing(self, tmp_path):
        with pytest.raises(zo.JournalError, match=r"there is no folder .*; make it first"):
            recorded(tmp_path / "no" / "a.zomopi")
        assert not list(tmp_path.iterdir())

    def test_folder_as_a_file(self, tmp_path):
        with pytest.raises(zo.JournalError, match="exists and is not overwritten"):
            recorded(tmp_path)
        for read in (zo.replay, lambda path: zo.resume(path, distance)):
            with pytest.raises(zo.JournalError, match="it is not a file"):
                read(tmp_path)

    def test_link_to_nothing(self, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path / "target")
        with pytest.raises(zo.JournalError, match="exists and is not overwritten"):
            recorded(tmp_path / "link")
        assert [f.name for f in tmp_path.iterdir()] == ["link"]

    @pytest.mark.parametrize("path", ["", ".", "/", "a\0b"])
    def test_no_file_name(self, path):
        for use in (recorded, zo.replay, lambda path: zo.resume(path, distance)):
            with pytest.raises(ValueError, match="must be the path of a file"):
                use(path)

    @pytest.mark.parametrize("length", [240, 300])
    def test_name_that_is_too_long(self, tmp_path, length):
        path = tmp_path / ("x" * length)
        with pytest.raises(zo.JournalError, match=r"cannot be written: .*nothing was evaluated"):
            recorded(path)
        for read in (zo.replay, lambda path: zo.resume(path, distance)):
            with pytest.raises(FileNotFoundError, match="there is no journal"):
                read(path)
        assert not list(tmp_path.iterdir())

    def test_lock_that_cannot_be_made(self, tmp_path):
        """As in a folder that is read-only, which a superuser's test cannot have."""
        path = tmp_path / "a.zomopi"
        recorded(path)
        (tmp_path / "a.zomopi-lock").mkdir()
        with pytest.raises(zo.JournalError, match=r"lock cannot be made .*replay needs none"):
            zo.resume(path, distance)
        zo.replay(path)

    def test_any_letters(self, tmp_path):
        path = tmp_path / "läuf β?#%41 '\".zomopi"
        result = recorded(path)
        np.testing.assert_array_equal(zo.resume(path, distance).x, result.x)
        np.testing.assert_array_equal(zo.replay(path), result.x_last)

    @pytest.mark.parametrize("path", [None, b"run", 3])
    def test_no_path(self, path):
        for use in (zo.replay, lambda path: zo.resume(path, distance), zo.Optimizer.resume):
            with pytest.raises(TypeError, match="must be a path"):
                use(path)

    def test_no_function(self, tmp_path):
        recorded(tmp_path / "a.zomopi")
        with pytest.raises(TypeError, match="fun must be callable, got NoneType"):
            zo.resume(tmp_path / "a.zomopi", None)

    @pytest.mark.parametrize("step", [2.5, "3", True, -1])
    def test_steps_are_counted(self, tmp_path, step):
        recorded(tmp_path / "a.zomopi")
        with pytest.raises(ValueError, match="step must be an integer of at least 0"):
            zo.replay(tmp_path / "a.zomopi", step=step)

    def test_another_folder_during_the_run(self, tmp_path, monkeypatch):
        """A path is that of the folder in which the run began."""
        (tmp_path / "there").mkdir()
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "there")

        def move(iteration):
            if iteration.step == 5:
                os.chdir(tmp_path / "elsewhere")

        recorded(zo.Journal("a.zomopi", snapshot_steps=3), callback=move)
        assert not list((tmp_path / "elsewhere").iterdir())
        assert len(list((tmp_path / "there").iterdir())) == 4
        os.chdir(tmp_path / "there")
        assert zo.resume("a.zomopi", None.__eq__).success

    @pytest.mark.parametrize("replaced", [False, True])
    def test_removed_during_the_run(self, tmp_path, replaced):
        path = tmp_path / "a.zomopi"

        def remove(iteration):
            if iteration.step == 5:
                path.unlink()
                if replaced:
                    path.write_text("another")

        with pytest.warns(zo.JournalWarning, match="removed or replaced while the run wrote it"):
            assert recorded(path, callback=remove).success
        assert path.exists() == replaced

    def test_no_permission(self, nobody):
        folder, as_nobody = nobody
        path = folder / "a.zomopi"
        with as_nobody():
            recorded(path)
            before = path.read_bytes()
            for mode in (0o400, 0):
                path.chmod(mode)
                with pytest.raises(zo.JournalError, match=r"cannot be written: .*denied"):
                    zo.resume(path, None.__eq__)
            with pytest.raises(zo.JournalError, match=r"cannot be read .*denied"):
                zo.replay(path)
            path.chmod(0o600)
            assert path.read_bytes() == before
            folder.chmod(0o500)
            for call in (lambda: recorded(folder / "b.zomopi"), lambda: zo.resume(path, len)):
                with pytest.raises(zo.JournalError, match=r"cannot be written: .*denied"):
                    call()
            assert np.all(np.isfinite(zo.replay(path)))
            folder.chmod(0o700)

    def test_copied_while_it_is_written(self, tmp_path):
        """With all files of its name, the copy is a journal up to the last step."""
        (tmp_path / "copy").mkdir()

        def copy(iteration):
            if iteration.step == 10:
                for file in tmp_path.glob("a.zomopi*"):
                    (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())

        result = recorded(zo.Journal(tmp_path / "a.zomopi", snapshot_steps=3), callback=copy)
        again = zo.resume(tmp_path / "copy" / "a.zomopi", distance)
        np.testing.assert_array_equal(again.x, result.x)

    def test_interrupted_while_a_snapshot_is_written(self, tmp_path, monkeypatch):
        plain = zo.minimize(distance, X0, max_queries=200, seed=1)
        replace = os.replace

        def interrupt(source, target, **options):
            if ".000000006." in str(target):
                raise KeyboardInterrupt
            replace(source, target, **options)

        monkeypatch.setattr(os, "replace", interrupt)
        path = tmp_path / "a.zomopi"
        assert recorded(zo.Journal(path, snapshot_steps=3)).status == "interrupted"
        monkeypatch.undo()
        assert not list(tmp_path.glob(".*"))  # no half of a file
        np.testing.assert_array_equal(zo.resume(path, distance).x, plain.x)


class TestLock:
    def test_two_writers_in_one_process(self, tmp_path):
        path = tmp_path / "a.zomopi"
        recorded(path)
        file = _journal_file.JournalFile(path)
        with pytest.raises(zo.JournalError, match="written by a run that is alive"):
            zo.resume(path, distance)
        file.close()
        zo.resume(path, distance)

    def test_another_process(self, tmp_path):
        path = tmp_path / "a.zomopi"
        recorded(path)
        code = (
            "import sys\nfrom pathlib import Path\nfrom zomopi_core import _journal_file\n"
            "file = _journal_file.JournalFile(Path(sys.argv[1]))\nprint('held', flush=True)\n"
            "sys.stdin.read()"
        )
        command = [sys.executable, "-c", code, str(path)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, **pipes) as holder:
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(zo.JournalError, match="written by a run that is alive"):
                zo.resume(path, distance)
            holder.kill()
        zo.resume(path, distance)  # what a dead process left behind locks nothing

    def test_readers_do_not_wait(self, tmp_path):
        path = tmp_path / "a.zomopi"
        recorded(path)
        file = _journal_file.JournalFile(path)
        zo.replay(path)
        file.close()

    def test_a_removed_lock_file_is_no_lock(self, tmp_path):
        lock = FileLock(tmp_path / "lock")
        assert (tmp_path / "lock").exists()
        lock.release()
        lock.release()
        assert not (tmp_path / "lock").exists()

    def test_threads_that_race_for_it(self, tmp_path):
        got = []

        def take():
            try:
                got.append(FileLock(tmp_path / "lock"))
            except BlockingIOError:
                got.append(None)

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(lock is not None for lock in got) == 1
        next(lock for lock in got if lock).release()


class TestFull:
    """What cannot be written."""

    @staticmethod
    def breaking(monkeypatch, after):
        append, count = _journal_file.JournalFile.append, [0]

        def full(self, *args):
            count[0] += 1
            if count[0] > after:
                raise sqlite3.OperationalError("database or disk is full")
            return append(self, *args)

        monkeypatch.setattr(_journal_file.JournalFile, "append", full)

    def test_the_run_goes_on(self, tmp_path, monkeypatch):
        plain = zo.minimize(distance, X0, max_queries=200, seed=1)
        self.breaking(monkeypatch, 5)
        with pytest.warns(zo.JournalWarning, match="the run goes on without it"):
            result = recorded(tmp_path / "a.zomopi")
        np.testing.assert_array_equal(result.x, plain.x)
        monkeypatch.undo()
        again = zo.resume(tmp_path / "a.zomopi", distance)
        np.testing.assert_array_equal(again.x, plain.x)

    def test_or_stops(self, tmp_path, monkeypatch):
        self.breaking(monkeypatch, 5)
        with pytest.raises(zo.JournalError, match="disk is full") as caught:
            recorded(zo.Journal(tmp_path / "a.zomopi", on_error="raise"))
        assert caught.value.result.nit == 4


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", place]
    try:
        done = subprocess.run(command, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip("may not mount a small file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


class TestSmallDisk:
    OPTIONS = MappingProxyType(
        {"max_queries": 8000, "seed": 1, "learning_rate": 1e-3, "smoothing": 1e-3}
    )

    def test_the_run_goes_on(self, small_disk, tmp_path):
        plain = zo.minimize(distance, X0, **self.OPTIONS)
        journal = zo.Journal(small_disk / "a.zomopi", snapshot_steps=50)
        with pytest.warns(zo.JournalWarning, match="the run goes on without it"):
            result = zo.minimize(distance, X0, journal=journal, **self.OPTIONS)
        np.testing.assert_array_equal(result.x, plain.x)
        # What was written before the disk was full is a journal: elsewhere the run goes on.
        for file in small_disk.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        again = zo.resume(tmp_path / "a.zomopi", distance)
        np.testing.assert_array_equal(again.x, plain.x)

    def test_or_stops(self, small_disk):
        journal = zo.Journal(small_disk / "a.zomopi", on_error="raise")
        with pytest.raises(zo.JournalError, match="cannot be written") as caught:
            zo.minimize(distance, X0, journal=journal, **self.OPTIONS)
        assert caught.value.result.nit > 10

    def test_no_room_to_begin(self, small_disk):
        (small_disk / "filler").write_bytes(bytes(190 * 1024))
        with pytest.raises(zo.JournalError, match="cannot be written"):
            recorded(small_disk / "a.zomopi")
        assert sorted(f.name for f in small_disk.iterdir()) == ["filler"]


class TestSafetensors:
    def arrays(self):
        x = np.arange(6.0).reshape(2, 3)
        return {"a": _safetensors.Stored("float64", (2, 3), x.view(np.uint8).reshape(-1))}

    def test_round_trip_with_the_package(self, tmp_path):
        library = pytest.importorskip("safetensors.numpy")
        path = tmp_path / "a.safetensors"
        _safetensors.write(path, self.arrays(), {"of": "a test"})
        np.testing.assert_array_equal(library.load_file(path)["a"], np.arange(6.0).reshape(2, 3))
        arrays, metadata = _safetensors.read(path)
        assert metadata == {"of": "a test"}
        np.testing.assert_array_equal(arrays["a"].data, self.arrays()["a"].data)

    def test_what_others_wrote_has_no_digest(self, tmp_path):
        library = pytest.importorskip("safetensors.numpy")
        library.save_file({"a": np.arange(6.0)}, tmp_path / "a")
        with pytest.raises(ValueError, match="digest"):
            _safetensors.read(tmp_path / "a")

    @pytest.mark.parametrize(
        ("entry", "text"),
        [
            ({"shape": [2**61, 2**61]}, "one behind the other"),
            ({"shape": [-1, 6]}, "a shape is none"),
            ({"shape": [True, 6]}, "a shape is none"),
            ({"dtype": "O"}, "the dtype 'O'"),
            ({"data_offsets": [0, 96]}, "one behind the other"),
            ({"more": 1}, "incomplete"),
        ],
    )
    def test_absurd_headers(self, tmp_path, entry, text):
        entry = {"dtype": "F64", "shape": [2, 3], "data_offsets": [0, 48], **entry}
        header = json.dumps({"a": entry}).encode()
        path = tmp_path / "a"
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(48))
        with pytest.raises(ValueError, match=text):
            _safetensors.read(path)

    @pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02" + bytes(7) + b"[]", b"\x01"])
    def test_no_header(self, tmp_path, content):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(ValueError, match=r"cut off|longer than|no table|no JSON"):
            _safetensors.read(tmp_path / "a")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files here")
    def test_only_regular_files(self, tmp_path):
        _safetensors.write(tmp_path / "a", self.arrays(), {})
        (tmp_path / "link").symlink_to(tmp_path / "a")
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(OSError, match="symbolic"):
            _safetensors.read(tmp_path / "link")
        with pytest.raises(ValueError, match="regular"):
            _safetensors.read(tmp_path / "pipe")

    def test_a_failed_write_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "a"
        _safetensors.write(path, self.arrays(), {})
        before = path.read_bytes()

        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            _safetensors.write(path, self.arrays(), {"new": "yes"})
        assert path.read_bytes() == before
        assert len(list(tmp_path.iterdir())) == 1


class TestTree:
    def test_layout_and_identity(self, backend):
        x = backend.array(np.arange(12.0).reshape(3, 4))
        turned = backend.xp.permute_dims(x, (1, 0))
        structure, arrays = _tree.encode((x, turned, x))
        a, b, c = _tree.decode(json.loads(json.dumps(structure)), arrays, x, None)
        np.testing.assert_array_equal(backend.numpy(a), backend.numpy(x))
        np.testing.assert_array_equal(backend.numpy(b), backend.numpy(turned))
        assert a is c
        if hasattr(x, "strides"):
            assert b.strides == turned.strides

    @pytest.mark.parametrize("value", [1.5, float("inf"), np.float32(0.1), None, True, "a", 7])
    def test_numbers_keep_their_type(self, value):
        structure, _ = _tree.encode({"v": value})
        found = _tree.decode(json.loads(json.dumps(structure)), {}, X0, None)["v"]
        assert type(found) is type(value)
        assert found == value

    @pytest.mark.parametrize(
        "structure",
        [
            [1],
            1.5,
            {"class": "Popen", "fields": []},
            {"class": "Point", "fields": []},
            {"array": "0", "order": [0], "host": True},
            {"scalar": "O", "hex": ""},
            {"tuple": 3},
            {},
        ],
    )
    def test_anything_else_is_refused(self, structure):
        with pytest.raises(ValueError, match=r"its structure|it holds"):
            _tree.decode(structure, {}, X0, None)

    def test_depth_is_bounded(self):
        deep = None
        for _ in range(100):
            deep = {"tuple": [deep]}
        with pytest.raises(ValueError, match="too deeply"):
            _tree.decode(deep, {}, X0, None)

    def test_what_has_no_form(self):
        with pytest.raises(_tree.CannotStoreError, match=r"builtins\.object"):
            _tree.encode((object(),))


class TestMethods:
    @pytest.mark.parametrize("name", zo.methods())
    def test_round_trip(self, name):
        options = {}
        if name in {"mopi", "muon", "low_rank_muon", "low_rank_msgd", "dion", "adago", "aro"}:
            options = {"learning_rate": 0.1}
        method = getattr(zo, name)(**options)
        method = zo.Optimizer(X0, method=method).method.with_horizon(100)
        method = dataclasses.replace(method, automatic=None)
        text = json.dumps(_method_json.method_to_json(method))
        assert _method_json.method_from_json(json.loads(text)) == method

    @pytest.mark.parametrize(
        "schedule",
        [zo.constant(0.1), zo.linear_decay(0.1, 10), zo.cosine_decay(0.1, 10, warmup=3)],
    )
    def test_schedules(self, schedule):
        method = zo.mezo(learning_rate=schedule)
        assert _method_json.method_from_json(_method_json.method_to_json(method)) == method

    def test_code_is_not_stored(self):
        with pytest.raises(_method_json.UnknownPartError, match="function"):
            _method_json.method_to_json(zo.mezo(learning_rate=lambda step: 0.1))

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            (["class"], "Popen"),
            (["estimator", "probes"], 2**60),
            (["estimator", "probes"], -1),
            (["estimator", "probes"], [1]),
            (["estimator", "difference"], "sideways"),
            (["matrices"], None),
            (["matrices", "subspace", "rank"], "eval('1')"),
        ],
    )
    def test_what_is_no_method_is_refused(self, path, value):
        data = _method_json.method_to_json(zo.zo_mopi())
        part = data
        for name in path[:-1]:
            part = part[name]
        part[path[-1]] = value
        with pytest.raises(ValueError):  # noqa: PT011
            zo.Optimizer(X0, method=_method_json.method_from_json(data)).ask()


class TestLosses:
    def test_keep_their_precision_and_place(self, backend):
        x = backend.array(np.zeros(2))
        for name in ("float32", "float64"):
            losses = backend.array([0.1, float("inf"), float("nan")], name)
            found = unpack_losses(pack_losses(losses), x)
            expected = np.float64 if isinstance(losses, np.ndarray) else np.dtype(name)
            assert backend.numpy(found).dtype == expected
            np.testing.assert_array_equal(backend.numpy(found), backend.numpy(losses))

    @pytest.mark.parametrize(
        "packed", [b"", b"x" + bytes(8), b"h" + bytes(7), b"h" + bytes(2**21)]
    )
    def test_anything_else_is_refused(self, packed):
        with pytest.raises(zo.JournalError):
            unpack_losses(packed, X0)
