"""Journals of the Torch optimizer: weights that follow from losses alone."""

import itertools
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import zomopi_core as zo
from zomopi_core import _journal_attachments, _journal_file, _journal_rows

torch = pytest.importorskip("torch")

from zomopi_adapters.torch import ZOMOPI, default_groups  # noqa: E402

X = torch.linspace(-1, 1, 160, dtype=torch.float64).reshape(20, 8).sin()
Y = X.sum(dim=1, keepdim=True)


def model_of(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1)).to(
        dtype
    )


def closure_of(model, calls=None):
    dtype = next(model.parameters()).dtype
    x, y = X.to(dtype), Y.to(dtype)

    def closure():
        if calls is not None:
            next(calls)
        return torch.nn.functional.mse_loss(model(x), y)

    return closure


def same(a, b):
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y)


class TestResume:
    @pytest.mark.parametrize("binding", ["in_place", "overlay"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    def test_goes_on_to_the_same_bits(self, tmp_path, binding, dtype):
        options = {"lr": 0.02, "binding": binding, "refresh_every": 4, "seed": 3}
        options["smoothing"] = 0.05  # to be seen in 16 bits
        plain = model_of(dtype)
        whole = ZOMOPI(plain, **options)
        for _ in range(15):
            whole.step(closure_of(plain))

        first = model_of(dtype)
        optimizer = ZOMOPI(first, journal=tmp_path / "a.zomopi", **options)
        for _ in range(9):
            optimizer.step(closure_of(first))
        optimizer._stepper.journal.close()  # as a process that ends

        second = model_of(dtype)
        optimizer = ZOMOPI(second, **options)
        optimizer.resume(tmp_path / "a.zomopi")
        calls = itertools.count()
        for _ in range(6):
            optimizer.step(closure_of(second, calls))
        assert next(calls) == 6 * len(optimizer._stepper.tuner.estimator.evaluations)
        optimizer.close()
        whole.merge()
        optimizer.merge()
        same(second, plain)

    def test_overlaid_models_act_the_same(self, tmp_path):
        options = {"lr": 0.02, "binding": "overlay", "seed": 3}
        first, second = model_of(), model_of()
        one = ZOMOPI(first, journal=tmp_path / "a.zomopi", **options)
        for _ in range(5):
            one.step(closure_of(first))
        one.close()
        two = ZOMOPI(second, **options)
        two.resume(tmp_path / "a.zomopi")
        one.merge()
        two.merge()
        same(first, second)

    def test_schedules(self, tmp_path):
        first, second = model_of(), model_of()
        one = ZOMOPI(first, lr=0.05, journal=tmp_path / "a.zomopi")
        scheduler = torch.optim.lr_scheduler.ExponentialLR(one, 0.8)
        for _ in range(6):
            one.step(closure_of(first))
            scheduler.step()
        one.close()
        ZOMOPI(second, lr=0.05).resume(tmp_path / "a.zomopi")
        same(first, second)

    def test_from_a_checkpoint(self, tmp_path):
        first, second = model_of(), model_of()
        one = ZOMOPI(first, lr=0.05, journal=tmp_path / "a.zomopi")
        for _ in range(6):
            one.step(closure_of(first))
            if one._stepper.step == 4:
                saved = one.state_dict()
                weights = {k: v.clone() for k, v in first.state_dict().items()}
        one.close()
        two = ZOMOPI(second, lr=0.05)
        second.load_state_dict(weights)
        two.load_state_dict(saved)
        two.resume(tmp_path / "a.zomopi")
        same(first, second)

    def test_failures(self, tmp_path):
        first, second = model_of(), model_of()
        one = ZOMOPI(first, lr=0.05, journal=tmp_path / "a.zomopi")
        count = itertools.count()

        def closure():
            loss = closure_of(first)()
            return loss * float("nan") if next(count) % 5 == 0 else loss

        for _ in range(6):
            one.step(closure)
        one.close()
        ZOMOPI(second, lr=0.05).resume(tmp_path / "a.zomopi")
        same(first, second)


class TestRefusals:
    @pytest.fixture
    def path(self, tmp_path):
        model = model_of()
        optimizer = ZOMOPI(model, lr=0.05, journal=tmp_path / "a.zomopi")
        optimizer.step(closure_of(model))
        optimizer.close()
        return tmp_path / "a.zomopi"

    def test_another_start(self, path):
        model = model_of()
        with torch.no_grad():
            model[0].weight[0, 0] += 1
        with pytest.raises(zo.JournalError, match="other numbers"):
            ZOMOPI(model, lr=0.05).resume(path)

    @pytest.mark.parametrize(
        ("options", "text"),
        [({"lr": 0.1}, "its methods were others"), ({"lr": 0.05, "seed": 1}, "its seed was 0")],
    )
    def test_other_options(self, path, options, text):
        with pytest.raises(zo.JournalError, match=text):
            ZOMOPI(model_of(), **options).resume(path)

    def test_other_drivers(self, path):
        with pytest.raises(zo.JournalError, match="was written by torch"):
            zo.resume(path, lambda x: 0.0)

    def test_no_snapshots_of_models(self, tmp_path):
        with pytest.raises(ValueError, match="has no use here"):
            ZOMOPI(model_of(), journal=zo.Journal(tmp_path / "a.zomopi", snapshot_steps=3))
        assert not list(tmp_path.iterdir())

    def test_another_sketch(self, path):
        with pytest.raises(zo.JournalError, match="its methods were others"):
            ZOMOPI(model_of(), lr=0.05, sketch="activation").resume(path)

    def test_statistics_need_names(self, tmp_path):
        model = watched_model()
        before = [p.clone() for p in model.parameters()]
        optimizer = ZOMOPI(model.named_parameters(), lr=0.05, journal=tmp_path / "a.zomopi")
        with pytest.raises(ValueError, match="pass model=model"):
            optimizer.step(closure_of(model))
        for x, y in zip(model.parameters(), before, strict=True):
            torch.testing.assert_close(x.detach(), y)
        optimizer.close()

        run = Watched(tmp_path / "b.zomopi")
        run.steps(2)
        run.optimizer.close()
        plain = ZOMOPI(default_groups(watched_model()), **OPTIONS)
        with pytest.raises(ValueError, match="pass model=model"):
            plain.resume(tmp_path / "b.zomopi")


def watched_model(dtype=torch.float64):
    """Forward passes of this one leave traces: frames from activations, running statistics."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(8, 12), torch.nn.BatchNorm1d(12), torch.nn.Tanh(), torch.nn.Linear(12, 1)
    ).to(dtype)


OPTIONS = {
    "lr": 0.05, "vector_lr": 0.01, "smoothing": 0.02, "rank": 3, "refresh_every": 3, "seed": 3,
    "sketch": "activation", "binding": "in_place",
}  # fmt: skip


class Watched:
    """A run of such a model, on another batch at each step."""

    def __init__(self, journal=None, dtype=torch.float64, **options):
        self.model, self.dtype = watched_model(dtype), dtype
        self.optimizer = ZOMOPI(self.model, **{**OPTIONS, **options}, journal=journal)

    def steps(self, count, on_call=lambda: None):
        for _ in range(count):
            x = X.to(self.dtype).roll(self.optimizer._stepper.step, dims=1)

            def closure(x=x):
                on_call()
                return (self.model(x) - Y.to(self.dtype)).pow(2).mean()

            self.optimizer.step(closure)

    def state(self):
        """All bits of the model and of the optimizer."""
        plain = [v.clone() for v in self.model.state_dict().values()]
        for entry in self.optimizer.state_dict()["state"].values():
            plain += [v.clone() for v in entry.values() if isinstance(v, torch.Tensor)]
        return plain


def same_state(a, b):
    assert len(a) == len(b)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class TestTraces:
    """Runs of which losses do not tell all: frames from activations, batch normalisation."""

    @pytest.mark.parametrize("binding", ["in_place", "overlay"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("sketch", ["activation", None])
    def test_goes_on_to_the_same_bits(self, tmp_path, binding, dtype, sketch):
        options = {"dtype": dtype, "binding": binding, "sketch": sketch}
        whole = Watched(**options)
        whole.steps(14)
        for steps in (2, 3, 8):  # before a refresh, at it, after several
            path = tmp_path / f"{steps}.zomopi"
            first = Watched(path, **options)
            first.steps(steps)
            first.optimizer._stepper.journal.close()  # as a process that ends
            second = Watched(**options)
            second.optimizer.resume(path)
            same_state(second.state(), first.state())
            second.steps(14 - steps)
            second.optimizer.close()
            same_state(second.state(), whole.state())

    def test_from_a_checkpoint(self, tmp_path):
        first, second = Watched(tmp_path / "a.zomopi"), Watched()
        first.steps(5)
        saved = first.optimizer.state_dict()
        weights = {k: v.clone() for k, v in first.model.state_dict().items()}
        first.steps(5)
        first.optimizer.close()
        second.model.load_state_dict(weights)
        second.optimizer.load_state_dict(saved)
        second.optimizer.resume(tmp_path / "a.zomopi")
        same_state(second.state(), first.state())

    def test_from_a_checkpoint_of_a_step_that_failed_after_its_refresh(self, tmp_path):
        """It is not refreshed again, and its frames are recorded all the same."""
        first, second = Watched(), Watched(tmp_path / "a.zomopi")
        first.steps(3)
        calls = itertools.count()

        def fails():
            if next(calls) == 2:
                raise RuntimeError("no memory")

        with pytest.raises(RuntimeError, match="no memory"):
            first.steps(1, fails)
        assert first.optimizer._stepper.refreshed_at == 3
        second.model.load_state_dict(first.model.state_dict())
        second.optimizer.load_state_dict(first.optimizer.state_dict())
        second.steps(4)
        second.optimizer.close()
        _, rows = _journal_file.read_journal(tmp_path / "a.zomopi")
        assert [bool("frames" in row.note) for _, row in rows] == [True, False, False, True]

    def test_only_the_last_statistics_are_kept(self, tmp_path):
        run = Watched(tmp_path / "a.zomopi", sketch=None)
        run.steps(3)
        small = (tmp_path / "a.zomopi").stat().st_size
        run.steps(3)
        run.optimizer.close()
        rows = sqlite3.connect(tmp_path / "a.zomopi").execute("SELECT name, id FROM attachment")
        assert rows.fetchall() == [("statistics", 6)]
        assert (tmp_path / "a.zomopi").stat().st_size < small + 40_000

    def test_statistics_of_a_model_that_is_evaluated_later(self, tmp_path):
        """From the fourth step on nothing is tracked, and the last statistics stay."""
        first, second = Watched(tmp_path / "a.zomopi"), Watched()
        first.steps(3)
        first.model.eval()
        first.steps(3)
        first.optimizer.close()
        second.optimizer.resume(tmp_path / "a.zomopi")
        same_state(second.state(), first.state())

    def test_a_leaf_that_is_first_seen_at_a_later_refresh(self, tmp_path):
        """Its frame moves to the other side, and its momentum begins anew."""

        def run(journal=None):
            torch.manual_seed(0)
            layers = torch.nn.ModuleList([torch.nn.Linear(8, 5), torch.nn.Linear(8, 5)]).double()
            optimizer = ZOMOPI(layers, **OPTIONS, journal=journal)
            return layers, optimizer

        layers, optimizer = run(tmp_path / "a.zomopi")
        for step in range(8):
            used = layers[: 1 + (step >= 4)]
            optimizer.step(lambda used=used: sum(layer(X).pow(2).mean() for layer in used))
        assert [leaf.state.frame.shape for leaf in optimizer._leaves if leaf.param.ndim == 2] == [
            (8, 3),
            (8, 3),
        ]
        optimizer.close()
        again, resumed = run()
        resumed.resume(tmp_path / "a.zomopi")
        same(again, layers)

    def test_merges(self, tmp_path):
        first, second = Watched(tmp_path / "a.zomopi", torch.float32, binding="overlay"), None
        plain = Watched(None, torch.float32, binding="overlay")
        for run in (first, plain):
            run.steps(4)
        first.optimizer.merge()
        first.steps(4)
        plain.steps(4)
        first.optimizer.close()
        second = Watched(None, torch.float32, binding="overlay")
        second.optimizer.resume(tmp_path / "a.zomopi")
        same_state(second.state(), first.state())
        plain.optimizer.merge()
        second.optimizer.merge()
        pairs = zip(plain.state(), second.state(), strict=True)
        assert not all(torch.equal(x, y) for x, y in pairs)  # a merge in between is to be seen

    def test_large_frames_are_written_in_pieces(self, tmp_path, monkeypatch):
        monkeypatch.setattr(_journal_attachments, "_PIECE", 100)
        first, second = Watched(tmp_path / "a.zomopi"), Watched()
        first.steps(7)
        first.optimizer.close()
        rows = sqlite3.connect(tmp_path / "a.zomopi").execute("SELECT max(part) FROM attachment")
        assert rows.fetchone()[0] > 3
        second.optimizer.resume(tmp_path / "a.zomopi")
        same_state(second.state(), first.state())

    def test_a_journal_of_format_1_goes_on(self, tmp_path):
        """One without attachments has the format that it always had."""
        path = tmp_path / "a.zomopi"
        first = Watched(path, sketch=None)
        first.model.eval()
        first.steps(3)
        first.optimizer.close()
        assert version(path) == 1
        second = Watched(sketch=None)
        second.model.eval()
        second.optimizer.resume(path)
        second.model.train()
        second.steps(2)
        second.optimizer.close()
        assert version(path) == 2
        third = Watched(sketch=None)
        third.optimizer.resume(path)
        same_state(third.state(), second.state())


def version(path):
    return sqlite3.connect(path).execute("PRAGMA user_version").fetchone()[0]


STEPS = 8


@pytest.fixture(scope="module")
def recorded_run(tmp_path_factory):
    """All states of a run, and its journal's files while it was at work."""
    folder = tmp_path_factory.mktemp("live")
    run = Watched(folder / "run.zomopi")
    states = [run.state()]
    for _ in range(STEPS):
        run.steps(1)
        states.append(run.state())
    copies = folder / "copies"
    copies.mkdir()
    for file in folder.glob("run.zomopi*"):
        if file.name.endswith(("zomopi", "-wal")):
            shutil.copy(file, copies)
    run.optimizer.close()
    shutil.copy(folder / "run.zomopi", folder / "closed")
    return states, copies, folder / "closed"


def contents(path):
    connection = sqlite3.connect(path)
    tables = [connection.execute(f"SELECT * FROM {t}") for t in ("evaluation", "attachment")]
    return [table.fetchall() for table in tables]


def run_and_kill(folder, kills):
    """Record a run for each of these calls, at which it is killed."""
    for kill_at in kills:
        child = os.fork()
        if child == 0:
            calls = itertools.count()

            def call(calls=calls, kill_at=kill_at):
                if next(calls) == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

            try:
                Watched(Path(folder) / f"{kill_at}.zomopi").steps(STEPS, call)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL


class TestFaults:
    """A journal with attachments, killed, cut and changed."""

    @staticmethod
    def resumed(path):
        run = Watched()
        run.optimizer.resume(path)
        run.optimizer.close()
        return run

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_killed_at_any_call(self, recorded_run, tmp_path):
        states, _, _ = recorded_run
        kills = (1, 20, 33, 50)
        # A process of its own forks the runs: this one may hold threads of other libraries.
        code = f"import test_torch_journal as t; t.run_and_kill({str(tmp_path)!r}, {kills})"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
        for kill_at in kills:
            again = self.resumed(tmp_path / f"{kill_at}.zomopi")
            done = again.optimizer._stepper.step
            same_state(again.state(), states[done])
            again.steps(STEPS - done)
            same_state(again.state(), states[-1])

    def test_cut_at_every_page(self, recorded_run, tmp_path):
        """What is attached to a row is there if the row is."""
        states, copies, _ = recorded_run
        size, frame = (copies / "run.zomopi-wal").stat().st_size, 24 + 4096
        found = []
        for i, end in enumerate(range(32, size + 1, frame)):
            folder = tmp_path / str(i)
            shutil.copytree(copies, folder)
            os.truncate(folder / "run.zomopi-wal", end + (i % 3) * 1000)
            again = self.resumed(folder / "run.zomopi")
            found.append(again.optimizer._stepper.step)
            same_state(again.state(), states[found[-1]])
        assert found == sorted(found)
        assert set(found) == set(range(STEPS + 1))

    def test_mutations_are_refused_or_give_the_right_numbers(self, recorded_run, tmp_path):
        states, _, closed = recorded_run
        outcomes = {"refused": 0, "right": 0}
        path = tmp_path / "a.zomopi"
        for case in range(150):
            chance = random.Random(case)
            data = bytearray(closed.read_bytes())
            for _ in range(chance.choice([1, 2, 8])):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            path.write_bytes(data)
            try:
                again = self.resumed(path)
            except zo.JournalError:
                outcomes["refused"] += 1
            else:
                same_state(again.state(), states[again.optimizer._stepper.step])
                outcomes["right"] += 1
        assert min(outcomes.values()) > 10

    @pytest.mark.parametrize(
        "statement",
        [
            "DELETE FROM attachment WHERE name = 'frames' AND id = 4",
            "DELETE FROM attachment WHERE name = 'statistics'",
            "UPDATE attachment SET data = substr(data, 2) WHERE id = 4",
            "UPDATE attachment SET data = 'text' WHERE id = 4",
            "UPDATE attachment SET id = 5 WHERE id = 4",
            "UPDATE attachment SET data = (SELECT data FROM attachment WHERE id = 7) WHERE id = 4",
            "INSERT INTO attachment SELECT name, id, 1, data FROM attachment WHERE id = 1",
        ],
    )
    def test_changed_attachments(self, recorded_run, tmp_path, statement):
        path = tmp_path / "a.zomopi"
        shutil.copy(recorded_run[2], path)
        connection = sqlite3.connect(path)
        connection.execute(statement)
        connection.commit()
        connection.close()
        before = contents(path)
        with pytest.raises(zo.JournalError, match=r"attached to row \d is not what was written"):
            self.resumed(path)
        assert contents(path) == before

    @pytest.mark.parametrize(
        ("name", "tree", "text"),
        [
            ("frames", {"0.weight": ("right", torch.ones(3, 3))}, "its frames are not"),
            ("frames", {"0.weight": ("up", torch.ones(8, 3))}, "its frames are not"),
            ("frames", {"5.weight": ("right", torch.ones(8, 3))}, "its frames are not"),
            ("frames", {"0.weight": torch.ones(8, 3)}, "its frames are not"),
            ("frames", (1, 2), "its frames are not"),
            ("statistics", {"1.running_mean": torch.ones(5)}, "its normalisation layers are not"),
            ("statistics", {"1.running_mean": 3}, "its normalisation layers are not"),
            ("statistics", None, "its normalisation layers are not"),
        ],
    )
    def test_forged_attachments(self, recorded_run, tmp_path, name, tree, text):
        """Right checksums, and contents that no run has."""
        path = tmp_path / "a.zomopi"
        shutil.copy(recorded_run[2], path)
        file = _journal_file.JournalFile(path)
        last = [row for _, row in file.rows()][-1]
        forged = [_journal_attachments.attachment(name, tree)]
        note = _journal_rows.read_note(last) | _journal_attachments.noted(forged)
        file.begin()
        file.append(last._replace(step=STEPS, note=_journal_rows.note_of(**note)), forged)
        file.close()
        with pytest.raises(zo.JournalError, match=text):
            self.resumed(path)
