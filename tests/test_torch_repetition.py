"""Losses of a closure that are not finite: left out, evaluated again, or raised."""

import io
import itertools

import pytest

import zomopi_core as zo
from zomopi_core._journal_file import JournalFile
from zomopi_core._journal_rows import note_of, read_note

torch = pytest.importorskip("torch")

from zomopi_adapters import _torch_repetition  # noqa: E402
from zomopi_adapters.torch import ZOMOPI, per_probe, tiled  # noqa: E402

X = torch.linspace(-1, 1, 160, dtype=torch.float64).reshape(20, 8).sin()
Y = X.sum(dim=1, keepdim=True)
BINDINGS = {
    "in place": {"binding": "in_place"},
    "overlay": {"binding": "overlay"},
    "batched": {"binding": "overlay", "batched": True},
    "batched in chunks": {"binding": "overlay", "batched": True, "chunk": 3},
}


class Run:
    """Steps whose losses are not finite at some of the evaluations, counted from 0."""

    def __init__(self, fails=lambda call: False, dtype=torch.float64, layers=(), **options):
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(8, 6), torch.nn.Tanh(), *layers, torch.nn.Linear(6, 1)
        ).to(dtype)
        options = {"lr": 0.05, "vector_lr": 0.01, "smoothing": 0.02, "rank": 3, **options}
        self.optimizer = ZOMOPI(self.model, **options)
        self.fails, self.calls, self.dtype = fails, 0, dtype

    def closure(self):
        y = self.model(tiled(X.to(self.dtype))) - tiled(Y.to(self.dtype))
        losses = per_probe(y.pow(2).mean(dim=1))
        count = losses.numel()
        bad = [self.fails(call) for call in range(self.calls, self.calls + count)]
        self.calls += count
        return losses.masked_fill(torch.tensor(bad).view(losses.shape), torch.nan)

    def steps(self, count):
        return [float(self.optimizer.step(self.closure)) for _ in range(count)]

    def bits(self):
        self.optimizer.merge()
        return [p.detach().clone() for p in self.model.parameters()]


def same(a, b):
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def by_accident(call):
    return call * 7919 % 97 < 15


class TestRuns:
    @pytest.mark.parametrize("binding", BINDINGS)
    def test_what_fails_by_accident_is_made_good(self, binding):
        """To rounding, which goes another way in place; to the bit where weights do not move."""
        clean, flaky = (
            Run(fails, on_failure="auto", probes=4, **BINDINGS[binding])
            for fails in (lambda call: False, by_accident)
        )
        assert flaky.steps(25) == pytest.approx(clean.steps(25), rel=1e-12)
        assert 25 * 8 * 1.1 < flaky.calls < 25 * 8 * 1.4
        ends = clean.bits(), flaky.bits()
        if binding == "in place":
            for x, y in zip(*ends, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)
        else:
            same(*ends)

    def test_by_default_it_is_left_out(self, monkeypatch):
        """Nobody looks at the losses, which would wait for a device."""

        def looks(x):
            raise AssertionError("it looks at the losses")

        run = Run(by_accident, probes=4)
        monkeypatch.setattr(_torch_repetition._arrays, "to_host", looks)
        run.steps(25)
        assert run.calls == 25 * 8

    def test_a_closure_that_fails_again_is_soon_left_alone(self):
        """Thirteen repetitions, then one of 16 failures."""
        run = Run(lambda call: True, on_failure="auto", probes=4, binding="overlay")
        before = run.bits()
        run.steps(100)
        assert 13 <= run.calls - 800 <= 13 + 800 / 15
        same(run.bits(), before)

    def test_points_where_the_loss_is_not_defined(self):
        """At most a twentieth of a long run is repeated, and it goes on."""

        class Walled(Run):
            def closure(self):
                loss = super().closure()
                weight = self.model[0].weight
                return torch.where(weight[0, 0] > 0.1, torch.nan, loss)

        run = Walled(on_failure="auto", probes=4)
        with torch.no_grad():
            run.model[0].weight[0, 0] = 0.1
        losses = run.steps(150)
        assert run.optimizer._stepper.failures.count > 100
        assert run.calls < 150 * 8 * 1.05 + 13
        assert losses[-1] < losses[0]

    def test_so_often_as_is_said(self):
        policy = zo.Retry(times=2, wait=0.0)
        run = Run(lambda call: call >= 8, on_failure=policy, probes=4)
        run.steps(2)
        assert run.calls == 8 + 8 * 3

    def test_or_raised(self):
        run = Run(lambda call: call == 9, on_failure="raise", probes=2, binding="overlay")
        run.steps(2)
        with pytest.raises(zo.NonFiniteLossError, match=r"losses of step 2: \[.*nan"):
            run.steps(1)

    @pytest.mark.parametrize("value", ["again", 3, None, {"non-finite": "auto"}])
    def test_other_values(self, value):
        with pytest.raises((TypeError, ValueError), match="on_failure must be one of"):
            Run(on_failure=value)

    def test_holes_along_a_line(self):
        """Without them all of a search is lost: repeated beside failed probes, as in the core."""
        run = Run(lambda call: call in {0, 6}, lr="auto", probes=2)
        run.steps(1)
        plain = Run(lr="auto", probes=2)
        plain.steps(1)
        assert run.calls == plain.calls + 1

    @pytest.mark.parametrize("batched", [False, True])
    def test_a_repetition_sees_what_the_evaluation_saw(self, batched):
        """The same dropout masks; the generator moves on as by one pass."""
        options = {"layers": [torch.nn.Dropout(0.5)], "binding": "overlay", "batched": batched}
        clean, flaky = (
            Run(fails, on_failure="auto", **options) for fails in (lambda call: False, by_accident)
        )
        ends = []
        for run in (clean, flaky):
            torch.manual_seed(4)
            run.steps(6)
            ends.append([*run.bits(), torch.rand(())])
        assert flaky.calls > clean.calls
        same(*ends)

    def test_statistics_are_those_of_one_pass(self):
        clean, flaky = (
            Run(fails, on_failure="auto", layers=[torch.nn.BatchNorm1d(6)], binding="overlay")
            for fails in (lambda call: False, lambda call: call == 0)
        )
        for run in (clean, flaky):
            run.steps(1)
        # of another probe, whose outputs differ a little
        for x, y in zip(clean.model.buffers(), flaky.model.buffers(), strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0.02)
        assert flaky.model[2].num_batches_tracked == 1


class TestState:
    @pytest.mark.parametrize("binding", BINDINGS)
    def test_resumes_with_what_was_learned(self, binding):
        first, second = (
            Run(lambda call: True, on_failure="auto", probes=4, **BINDINGS[binding])
            for _ in range(2)
        )
        first.steps(5)
        file = io.BytesIO()
        torch.save(first.optimizer.state_dict(), file)
        file.seek(0)
        second.optimizer.load_state_dict(torch.load(file, weights_only=True))
        assert (
            second.optimizer._stepper.failures.state() == first.optimizer._stepper.failures.state()
        )
        before = first.calls
        first.steps(5)
        second.steps(5)
        assert second.calls == first.calls - before < 5 * 8 + 13

    def test_a_state_of_before_has_none(self):
        first, second = Run(), Run()
        first.steps(2)
        saved = first.optimizer.state_dict()
        del saved["zomopi"]["failures"]
        second.model.load_state_dict(first.model.state_dict())
        second.optimizer.load_state_dict(saved)
        assert second.steps(3) == first.steps(3)

    def test_another_state_is_refused(self):
        saved = Run().optimizer.state_dict()
        saved["zomopi"]["failures"]["repetition"] = (1.0, 2.0, 3.0)
        with pytest.raises(ValueError, match="no state of repetitions"):
            Run().optimizer.load_state_dict(saved)

    def test_a_step_that_ends_in_an_exception_teaches_nothing(self):
        calls = itertools.count()

        def fails(call):
            if next(calls) == 9:
                raise RuntimeError("no memory")
            return True

        run = Run(fails, on_failure="auto", probes=4)
        before = run.optimizer._stepper.failures.state()
        with pytest.raises(RuntimeError, match="no memory"):
            run.steps(1)
        assert run.optimizer._stepper.failures.state() == before


class TestJournal:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("binding", BINDINGS)
    @pytest.mark.parametrize("probes", [2, 8])  # that are kept, and that are drawn again
    def test_resumes_to_the_bit(self, tmp_path, binding, dtype, probes):
        """In place each repetition leaves its rounding in the weights, and is followed."""
        options = {"dtype": dtype, "on_failure": "auto", "probes": probes, **BINDINGS[binding]}
        whole = Run(by_accident, **options)
        whole.steps(12)
        first = Run(by_accident, journal=tmp_path / "a.zomopi", **options)
        first.steps(7)
        first.optimizer.close()
        second = Run(by_accident, **options)
        second.optimizer.resume(tmp_path / "a.zomopi")
        second.calls = first.calls  # a function that does not begin anew
        # batched and one by one
        second.optimizer._stepper.compared = first.optimizer._stepper.compared
        second.steps(5)
        assert second.calls == whole.calls
        second.optimizer.close()
        assert (
            second.optimizer._stepper.failures.state() == whole.optimizer._stepper.failures.state()
        )
        same(second.bits(), whole.bits())

    def test_evaluations_are_counted(self, tmp_path):
        run = Run(by_accident, journal=tmp_path / "a.zomopi", on_failure="auto")
        run.steps(7)
        assert run.optimizer._stepper.journal._recorder.queries == run.calls
        run.optimizer.close()

    @pytest.mark.parametrize(
        ("forged", "text"),
        [
            ({"repeated": [[99]]}, "no list of points"),
            ({"repeated": [["1"]]}, "no list of points"),
            ({"repeated": 3}, "no list of points"),
            ({"repetition": [2, 1]}, "the note of step 1"),
            ({"failed": -1}, "counts no failures"),
        ],
    )
    def test_forged_notes(self, tmp_path, forged, text):
        run = Run(journal=tmp_path / "a.zomopi")
        run.steps(1)
        run.optimizer.close()
        file = JournalFile(tmp_path / "a.zomopi")
        (row,) = (row for _, row in file.rows())
        file.begin()
        file.append(row._replace(step=1, note=note_of(**read_note(row) | forged)))
        file.close()
        with pytest.raises(zo.JournalError, match=text):
            Run().optimizer.resume(tmp_path / "a.zomopi")

    def test_too_many_losses(self, tmp_path):
        run = Run(journal=tmp_path / "a.zomopi")
        run.steps(1)
        run.optimizer.close()
        file = JournalFile(tmp_path / "a.zomopi")
        (row,) = (row for _, row in file.rows())
        file.begin()
        file.append(row._replace(step=1, losses=row.losses + row.losses[1:]))
        file.close()
        with pytest.raises(zo.JournalError, match="too many losses"):
            Run().optimizer.resume(tmp_path / "a.zomopi")
