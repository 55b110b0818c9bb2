"""Runs that end early and go on: the same bits as without the break."""

import contextlib
import copy
import json
import re
import zlib

import numpy as np
import pytest

import zomopi_core as zo
from zomopi_core import _header, _journal_file, evaluation
from zomopi_core._snapshots import SnapshotFiles
from zomopi_core.best import Best
from zomopi_core.draws import step_key
from zomopi_core.noise import Noise
from zomopi_core.rate_search import RateSearch
from zomopi_core.resume import _Given, _Saved

TARGET = np.outer(np.arange(6.0), np.ones(4)) / 6
X0 = np.zeros((6, 4))


class Stopped(BaseException):
    """Like the end of a process: no policy for failures sees it."""


def loss(x):
    return float(np.mean((x - TARGET) ** 2))


class Stopping:
    """A function that stops once, at its n-th call, and counts."""

    def __init__(self, fun, at, error=Stopped):
        self.fun, self.at, self.error, self.calls = fun, at, error, 0

    def __call__(self, x):
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return self.fun(x)


def same(a, b):
    assert_equal(a.x, b.x)
    assert_equal(a.x_last, b.x_last)
    assert (a.fun, a.nfev, a.nit, a.status, a.success) == (
        b.fun,
        b.nfev,
        b.nit,
        b.status,
        b.success,
    )
    for name in ("queries", "loss", "best", "learning_rate"):
        np.testing.assert_array_equal(a.history[name], b.history[name])


def assert_equal(a, b):
    if isinstance(a, dict):
        assert list(a) == list(b)
        for name in a:
            np.testing.assert_array_equal(np.asarray(a[name]), np.asarray(b[name]))
    else:
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def broken_and_resumed(path, fun, x0, at, snapshots=True, again=None, **options):
    """Return the result of a run that stops at call `at` and is resumed, and its calls."""
    stopping = Stopping(fun, at)
    journal = zo.Journal(path, snapshots=snapshots, snapshot_steps=5)
    with pytest.raises(Stopped):
        zo.minimize(stopping, x0, journal=journal, **options)
    again = {} if again is None else again
    if not snapshots:
        again = {**again, "x0": x0}
    return zo.resume(path, stopping, **again), stopping.calls


ZEROTH = [name for name in zo.methods() if getattr(zo, name)().estimator is not None]


class TestSameBits:
    @pytest.mark.parametrize("snapshots", [True, False])
    @pytest.mark.parametrize("name", ZEROTH)
    def test_every_method(self, tmp_path, name, snapshots):
        options = {"method": name, "max_queries": 500, "seed": 3}
        part = 1e-3 if name == "mezo_svrg" else 0.0

        def fun(x, key=None):
            return loss(x) + (0.0 if key is None else part * (key % 7))

        plain = zo.minimize(fun, X0, **options)
        path = tmp_path / "a.zomopi"
        calls = [0]

        def stopping(x, key=None):
            calls[0] += 1
            if calls[0] == 317:
                raise Stopped
            return fun(x, key=key)

        journal = zo.Journal(path, snapshots=snapshots, snapshot_steps=5)
        with pytest.raises(Stopped):
            zo.minimize(stopping, X0, journal=journal, **options)
        result = zo.resume(path, stopping, x0=None if snapshots else X0)
        same(result, plain)
        # of the step in flight, what was evaluated and not recorded is evaluated again
        assert calls[0] - plain.nfev <= 24
        assert_equal(zo.replay(path, None if snapshots else X0), plain.x_last)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_every_library(self, tmp_path, backend, dtype):
        xp = backend.xp
        target = backend.array(TARGET, dtype)

        def fun(x):
            return xp.mean((x - target) ** 2)

        x0 = backend.array(X0, dtype)
        options = {"max_queries": 300, "seed": 3}
        plain = zo.minimize(fun, x0, **options)
        path = tmp_path / "a.zomopi"
        again = {} if backend.name.split(":")[0] in {"numpy", "torch", "jax"} else {"x0": x0}
        if backend.name == "numpy_read_only":
            again = {"x0": x0}
        result, _ = broken_and_resumed(path, fun, x0, 150, again=again, **options)
        for name in ("x", "x_last"):
            pair = backend.numpy(getattr(result, name)), backend.numpy(getattr(plain, name))
            np.testing.assert_array_equal(*pair)
        assert result.fun == plain.fun
        replayed = zo.replay(path, **again)
        assert replayed.dtype == x0.dtype
        np.testing.assert_array_equal(backend.numpy(replayed), backend.numpy(plain.x_last))

    def test_at_every_call(self, tmp_path):
        options = {"max_queries": 60, "seed": 3}
        plain = zo.minimize(loss, X0, **options)
        for at in range(1, plain.nfev + 1):
            path = tmp_path / f"{at}.zomopi"
            result, _ = broken_and_resumed(path, loss, X0, at, **options)
            same(result, plain)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_failures(self, tmp_path, bad):
        calls = [0]

        def fun(x):
            calls[0] += 1
            return bad if float(np.sum(x) * 1e6) % 5 < 1 else loss(x)

        options = {"max_queries": 300, "seed": 3}
        plain = zo.minimize(fun, X0, **options)
        result, _ = broken_and_resumed(tmp_path / "a.zomopi", fun, X0, 200, **options)
        same(result, plain)
        assert result.message == plain.message

    @pytest.mark.parametrize("difference", ["central", "forward"])
    @pytest.mark.parametrize("snapshots", [True, False])
    def test_bounds(self, tmp_path, difference, snapshots):
        method = zo.zo_mopi(learning_rate="auto", difference=difference)
        bounds = (None, np.full((6, 4), 0.5))
        options = {"max_queries": 300, "seed": 3, "bounds": bounds, "method": method}
        plain = zo.minimize(loss, X0, **options)
        again = None if snapshots else {"bounds": bounds}
        path = tmp_path / "a.zomopi"
        result, _ = broken_and_resumed(path, loss, X0, 200, snapshots, again, **options)
        same(result, plain)

    def test_projection(self, tmp_path):
        def project(x):
            return x / np.maximum(np.linalg.norm(x), 1.0)

        x0, options = X0 + 1.0, {"max_queries": 300, "seed": 3, "project": project}
        plain = zo.minimize(loss, x0, **options)
        path, again = tmp_path / "a.zomopi", {"project": project}
        result, _ = broken_and_resumed(path, loss, x0, 200, again=again, **options)
        same(result, plain)
        with pytest.raises(zo.JournalError, match="it had a projection"):
            zo.replay(path)

    def test_dict_vectors_and_names(self, tmp_path):
        x0 = {"w": np.zeros((5, 3)), "b": np.zeros(3), "a": np.zeros((2, 3, 2), dtype=np.float32)}

        def fun(p):
            return float(sum(np.sum((v - 1.0) ** 2) for v in p.values()))

        options = {"max_queries": 300, "seed": 3}
        plain = zo.minimize(fun, x0, **options)
        result, _ = broken_and_resumed(tmp_path / "a.zomopi", fun, x0, 200, **options)
        same(result, plain)

    def test_vectorized(self, tmp_path):
        def fun(stack):
            return np.mean((stack - TARGET) ** 2, axis=(1, 2))

        options = {"max_queries": 300, "seed": 3, "vectorized": True}
        plain = zo.minimize(fun, X0, **options)
        result, _ = broken_and_resumed(tmp_path / "a.zomopi", fun, X0, 20, **options)
        same(result, plain)

    def test_reused_buffers(self, tmp_path, monkeypatch):
        """In the middle of a step: the points that are left have the bits of a whole stack."""
        monkeypatch.setattr(evaluation, "SLOW_SECONDS", 0.0)
        options = {"max_queries": 300, "seed": 3, "reuse_buffers": True}
        plain = zo.minimize(loss, X0, **options)
        for at in (5, 50, 200, 203):
            path = tmp_path / f"{at}.zomopi"
            result, calls = broken_and_resumed(path, loss, X0, at, **options)
            same(result, plain)
            assert calls == plain.nfev + 1

    @pytest.mark.parametrize("library", ["numpy", "torch"])
    @pytest.mark.parametrize("snapshots", [True, False])
    def test_points_made_of_points(self, tmp_path, make_backend, library, snapshots, monkeypatch):
        """In the middle of a step, some of whose losses were recorded."""
        monkeypatch.setattr(evaluation, "SLOW_SECONDS", 0.0)
        backend = make_backend(library)
        target = backend.array(np.random.default_rng(0).standard_normal((150, 120)), "float32")

        def fun(x):
            return float(((x - target) ** 2).mean())

        x0 = backend.array(np.zeros((150, 120)), "float32")
        method = zo.zo_mopi(learning_rate=0.1, rank=8, probes=5)
        options = {"method": method, "max_queries": 80, "reuse_buffers": True}
        plain = zo.minimize(fun, x0, **options)
        for at in (27, 34):
            path = tmp_path / f"{at}.zomopi"
            result, calls = broken_and_resumed(path, fun, x0, at, snapshots, **options)
            same(result, plain)
            assert calls == plain.nfev + 1

    def test_target_and_stagnation(self, tmp_path):
        options = {"max_queries": 4000, "seed": 3, "target": 0.05, "stagnation": 400}
        plain = zo.minimize(loss, X0, **options)
        assert plain.status == "target"
        result, _ = broken_and_resumed(tmp_path / "a.zomopi", loss, X0, 100, **options)
        same(result, plain)

    def test_host_sampler_and_large_seeds(self, tmp_path):
        for i, seed in enumerate((zo.HostSampler(2**63 + 1), 2**64 - 1)):
            options = {"max_queries": 200, "seed": seed}
            plain = zo.minimize(loss, X0, **options)
            result, _ = broken_and_resumed(tmp_path / f"{i}.zomopi", loss, X0, 100, **options)
            same(result, plain)

    @pytest.mark.parametrize("reuse", [False, True])
    def test_a_retreat_to_the_best_point(self, tmp_path, monkeypatch, reuse):
        """F has risen for good at step 40; the run is broken before that, and after."""
        late = {step_key(3, step) for step in range(40, 1000)}
        retreats, retreated = [], RateSearch.retreated
        monkeypatch.setattr(
            RateSearch, "retreated", lambda search: (retreats.append(1), retreated(search))[1]
        )

        def fun(x, key=None):
            return loss(x) + 50.0 * (key in late)

        options = {"max_queries": 700, "seed": 3, "reuse_buffers": reuse}
        plain = zo.minimize(fun, X0, **options)
        assert retreats
        for at in (300, 400, 500, 600):
            calls = [0]

            def stopping(x, key=None, at=at, calls=calls):
                calls[0] += 1
                if calls[0] == at:
                    raise Stopped
                return fun(x, key)

            path = tmp_path / f"{at}.zomopi"
            with pytest.raises(Stopped):
                zo.minimize(stopping, X0, journal=zo.Journal(path, snapshot_steps=5), **options)
            same(zo.resume(path, stopping), plain)
            assert_equal(zo.replay(path), plain.x_last)

    @pytest.mark.parametrize("reuse", [False, True])
    def test_an_average(self, tmp_path, monkeypatch, reuse):
        """Noise hides the minimum: the best point has given way to the average of iterates."""
        gave_way, give_way = [], Best.give_way
        monkeypatch.setattr(Best, "give_way", lambda best: (gave_way.append(1), give_way(best))[1])

        def noisy(x):  # the same at the same point, as a resumed run needs it
            bits = zlib.crc32(np.ascontiguousarray(x).tobytes())
            return loss(x) + 3.0 * np.random.default_rng(bits).standard_normal()

        random = Noise.with_repetition  # which sees no noise in values at one point
        monkeypatch.setattr(
            Noise, "with_repetition", lambda noise, a, b: random(noise, a, b + 3.0)
        )
        options = {"max_queries": 1500, "seed": 3, "reuse_buffers": reuse}
        plain = zo.minimize(noisy, X0, **options)
        assert gave_way
        assert not np.array_equal(plain.x, plain.x_last)
        for at in (300, 700, 1200, plain.nfev - 1, plain.nfev):
            path = tmp_path / f"{at}.zomopi"
            result, _ = broken_and_resumed(path, noisy, X0, at, **options)
            same(result, plain)

    def test_memory_of_another_layout(self, tmp_path):
        x0 = np.asfortranarray(np.linspace(0, 1, 24).reshape(6, 4))
        options = {"max_queries": 200, "seed": 3}
        plain = zo.minimize(loss, x0, **options)
        result, _ = broken_and_resumed(tmp_path / "a.zomopi", loss, x0, 100, **options)
        same(result, plain)


class TestSnapshotsOfOthers:
    @pytest.mark.parametrize("part", ["best", "history", "calls", "elapsed", "failures", "guard"])
    @pytest.mark.parametrize("value", [None, "?", 1.5])
    def test_of_another_form(self, tmp_path, part, value):
        """One with the right checksums whose state is none is refused."""
        path = tmp_path / "a.zomopi"
        plain = zo.minimize(loss, X0, max_queries=100, journal=zo.Journal(path, snapshot_steps=4))
        header, rows = _journal_file.read_journal(path)
        run = _Saved(path, header, _Given(None, None, None, None, None), True).run(loss)
        files = SnapshotFiles(path, header["run"])
        found = next(files.usable(len(rows), None, X0, run.optimizer.state.random))
        files.save(plain.nit, found.row, found.tree | {part: value})
        refused = pytest.raises(zo.JournalError, match="its snapshot cannot be used")
        harmless = (part, value) == ("elapsed", 1.5)
        with contextlib.nullcontext() if harmless else refused:
            np.testing.assert_array_equal(zo.resume(path, loss).x, plain.x)


class TestEnds:
    def test_a_finished_run_costs_nothing(self, tmp_path):
        for options in (
            {"max_queries": 100},
            {"max_steps": 9},
            {"max_time": 0.05},
            {"max_time": 1e-9},  # up when x0 was evaluated, before the first step
            {"max_steps": 9, "callback": lambda iteration: iteration.step == 4},
        ):
            path = tmp_path / f"{len(list(tmp_path.iterdir()))}.zomopi"
            plain = zo.minimize(loss, X0, journal=path, **options)
            for file in path.parent.glob(path.name + ".0*"):
                same(zo.resume(path, None.__eq__), plain)  # never called
                file.unlink()
            same(zo.resume(path, None.__eq__), plain)

    def test_ctrl_c_in_the_function(self, tmp_path):
        plain = zo.minimize(loss, X0, max_queries=300)
        fun = Stopping(loss, 200, KeyboardInterrupt)
        path = tmp_path / "a.zomopi"
        first = zo.minimize(fun, X0, max_queries=300, journal=path)
        assert first.status == "interrupted"
        same(zo.resume(path, fun), plain)

    def test_exceptions_and_memory(self, tmp_path):
        plain = zo.minimize(loss, X0, max_queries=300)
        for error in (ValueError, MemoryError):
            fun = Stopping(loss, 200, error)
            path = tmp_path / f"{error.__name__}.zomopi"
            with pytest.raises(error) as caught:
                zo.minimize(fun, X0, max_queries=300, journal=path)
            assert caught.value.result.nit > 0
            same(zo.resume(path, fun), plain)

    def test_the_callback_is_called_for_the_last_recorded_step(self, tmp_path):
        seen = []

        def callback(iteration):
            seen.append(iteration.step)
            if iteration.step == 7:
                raise Stopped

        path = tmp_path / "a.zomopi"
        with pytest.raises(Stopped):
            zo.minimize(loss, X0, max_steps=10, callback=callback, journal=path)
        zo.resume(path, loss, callback=lambda iteration: seen.append(iteration.step))
        assert seen == [1, 2, 3, 4, 5, 6, 7, 7, 8, 9, 10]

    def test_time_goes_on_where_it_stopped(self, tmp_path):
        path = tmp_path / "a.zomopi"
        fun = Stopping(loss, 100)
        with pytest.raises(Stopped):
            zo.minimize(fun, X0, max_queries=300, journal=path)
        result = zo.resume(path, fun)
        assert np.all(np.diff(result.history["elapsed"]) >= 0)


class TestReplay:
    def test_any_step(self, tmp_path):
        points = {}
        zo.minimize(
            loss,
            X0,
            max_steps=23,
            journal=zo.Journal(tmp_path / "a.zomopi", snapshot_steps=4, keep=3),
            callback=lambda iteration: points.update({iteration.step: iteration.x}),
        )
        assert_equal(zo.replay(tmp_path / "a.zomopi", step=0), X0)
        for step, point in points.items():
            assert_equal(zo.replay(tmp_path / "a.zomopi", step=step), point)
        assert_equal(zo.replay(tmp_path / "a.zomopi"), points[23])
        for step in (-1, 24):
            with pytest.raises(ValueError, match=r"that of a recorded step|of at least 0"):
                zo.replay(tmp_path / "a.zomopi", step=step)

    def test_the_journal_alone_travels(self, tmp_path):
        result = zo.minimize(loss, X0, max_queries=300, journal=tmp_path / "a.zomopi")
        (tmp_path / "a.zomopi").rename(tmp_path / "sent.zomopi")
        assert_equal(zo.replay(tmp_path / "sent.zomopi", X0), result.x_last)
        with pytest.raises(zo.JournalError, match="pass x0= as it was"):
            zo.replay(tmp_path / "sent.zomopi")

    def test_of_a_run_that_is_alive(self, tmp_path):
        points = []

        def callback(iteration):
            points.append((zo.replay(tmp_path / "a.zomopi"), iteration.x))

        zo.minimize(loss, X0, max_steps=6, journal=tmp_path / "a.zomopi", callback=callback)
        for replayed, live in points:
            assert_equal(replayed, live)

    def test_a_damaged_snapshot_is_passed_over(self, tmp_path):
        journal = zo.Journal(tmp_path / "a.zomopi", snapshot_steps=4)
        result = zo.minimize(loss, X0, max_steps=23, journal=journal)
        for file in tmp_path.glob("*.0*"):
            content = bytearray(file.read_bytes())
            content[-3] ^= 1
            file.write_bytes(content)
        assert_equal(zo.replay(tmp_path / "a.zomopi"), result.x_last)

    def test_result_may_be_changed(self, tmp_path):
        zo.minimize(loss, X0, max_steps=3, journal=tmp_path / "a.zomopi")
        zo.replay(tmp_path / "a.zomopi")[0, 0] = 1.0


class TestOtherRuns:
    @pytest.fixture
    def path(self, tmp_path):
        zo.minimize(loss, X0, max_queries=100, journal=tmp_path / "a.zomopi")
        return tmp_path / "a.zomopi"

    @pytest.mark.parametrize(
        ("x0", "text"),
        [
            (np.zeros((5, 4)), "shapes"),
            (np.zeros((6, 4), dtype=np.float32), "float64"),
            (np.full((6, 4), 1e-300), "other numbers"),
            ({"x": X0}, "names"),
        ],
    )
    def test_another_start(self, path, x0, text):
        for call in (lambda: zo.replay(path, x0), lambda: zo.resume(path, loss, x0=x0)):
            with pytest.raises(zo.JournalError, match=text):
                call()

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"method": zo.mezo()}, "method is recorded"),
            ({"seed": zo.HostSampler(1)}, "seed is recorded"),
            ({"bounds": (0.0, 1.0)}, "its bounds were others"),
            ({"project": lambda x: x}, "it had no projection"),
        ],
    )
    def test_other_arguments(self, path, options, text):
        for call in (zo.replay, lambda p, **k: zo.resume(p, loss, **k)):
            with pytest.raises(zo.JournalError, match=text):
                call(path, **options)

    def test_another_driver(self, path, tmp_path):
        with pytest.raises(zo.JournalError, match=r"by zo\.resume"):
            zo.Optimizer.resume(path)
        zo.Optimizer(X0, journal=tmp_path / "b.zomopi").close()
        with pytest.raises(zo.JournalError, match=r"by zo\.Optimizer\.resume"):
            zo.resume(tmp_path / "b.zomopi", loss)

    @pytest.mark.parametrize(
        ("name", "value", "drawn"),
        [
            ("version", "0.0.1", True),
            ("library", "torch", True),
            ("threads", "97", False),
            ("device", "Abacus", False),
            ("scipy", "0.0.1", False),
        ],
    )
    def test_other_surroundings(self, path, monkeypatch, name, value, drawn):
        known = _header._arrays.surroundings
        monkeypatch.setattr(_header._arrays, "surroundings", lambda x: {**known(x), name: value})
        remedy = "HostSampler" if drawn else "exact=False"
        for call in (lambda: zo.replay(path), lambda: zo.resume(path, loss)):
            with pytest.raises(zo.JournalError, match=f"{name} .* there, {value} here.*{remedy}"):
                call()
        if drawn:
            with pytest.raises(zo.JournalError):
                zo.replay(path, exact=False)
        else:
            with pytest.warns(zo.JournalWarning, match="differ by rounding"):
                zo.replay(path, exact=False)

    def test_the_host_sampler_travels_between_libraries(self, tmp_path):
        torch = pytest.importorskip("torch")
        path = tmp_path / "a.zomopi"
        result = zo.minimize(loss, X0, max_queries=300, seed=zo.HostSampler(4), journal=path)
        x0 = torch.zeros((6, 4), dtype=torch.float64)
        with pytest.raises(zo.JournalError, match="exact=False"):
            zo.replay(path, x0)
        with pytest.warns(zo.JournalWarning, match="library numpy there, torch here"):
            found = zo.replay(path, x0, exact=False)
        # 300 evaluations apart in rounding alone: 3e-13 was measured
        np.testing.assert_allclose(found.numpy(), result.x_last, rtol=0, atol=1e-9)

    def test_code_of_ones_own_is_passed_again(self, tmp_path):
        path = tmp_path / "a.zomopi"

        class Own:
            def normal(self, draw, shape, *, dtype, device):
                return zo.HostSampler(3).normal(draw, shape, dtype=dtype)

        method = zo.mezo(learning_rate=lambda step: 1e-3)
        result = zo.minimize(loss, X0, method=method, seed=Own(), max_queries=60, journal=path)
        with pytest.raises(zo.JournalError, match="pass method="):
            zo.replay(path)
        with pytest.raises(zo.JournalError, match="pass seed="):
            zo.replay(path, method=method)
        with pytest.raises(zo.JournalError, match="its method was mezo"):
            zo.replay(path, method=zo.lozo(), seed=Own())
        assert_equal(zo.replay(path, method=method, seed=Own()), result.x_last)

    @pytest.mark.parametrize(
        ("pattern", "replacement"),
        [(r'"probes": \d+', '"probes": 3'), (r'"max_queries": 100', '"max_queries": 4')],
    )
    def test_rows_of_another_run(self, path, tmp_path, pattern, replacement):
        """Every checksum is right, and the rows are not those of the header."""
        header, rows = _journal_file.read_journal(path)
        header = json.loads(re.sub(pattern, replacement, json.dumps(header)))
        forged = _journal_file.create(tmp_path / "b.zomopi", header)
        forged.begin()
        for _, row in rows:
            forged.append(row)
        forged.close()
        for call in (zo.replay, lambda path, x0: zo.resume(path, loss, x0=x0)):
            with pytest.raises(zo.JournalError, match="does not fit this run"):
                call(tmp_path / "b.zomopi", X0)


class TestAskAndTell:
    def run(self, optimizer, steps):
        while optimizer.nit < steps:
            optimizer.tell([loss(x) for x in optimizer.ask()])
        return optimizer

    @pytest.mark.parametrize("method", ["zo_mopi", "mezo", zo.zo_mopi(learning_rate="auto")])
    @pytest.mark.parametrize("snapshots", [True, False])
    def test_goes_on(self, tmp_path, method, snapshots):
        plain = self.run(zo.Optimizer(X0, method=method, seed=2), 30)
        path = tmp_path / "a.zomopi"
        journal = zo.Journal(path, snapshots=snapshots, snapshot_steps=4)
        first = self.run(zo.Optimizer(X0, method=method, seed=2, journal=journal), 17)
        first._recorder.close()  # as a process that ends
        second = zo.Optimizer.resume(path, x0=None if snapshots else X0)
        assert second.nit == 17
        assert_equal(self.run(second, 30).x, plain.x)
        second.close()
        assert_equal(zo.replay(path, None if snapshots else X0), plain.x)
        assert_equal(zo.Optimizer.resume(path, x0=X0).x, plain.x)

    def test_in_parts_and_out_of_order(self, tmp_path):
        plain = self.run(zo.Optimizer(X0, seed=2), 3)
        path = tmp_path / "a.zomopi"
        optimizer = zo.Optimizer(X0, seed=2, journal=path)
        for _ in range(2):
            points = list(optimizer.ask())
            for i in reversed(range(len(points))):
                optimizer.tell([loss(points[i])], indices=[i])
        points = list(optimizer.ask())
        optimizer.tell(np.asarray([loss(points[i]) for i in (5, 1)]), indices=[5, 1])
        optimizer._recorder.close()
        again = zo.Optimizer.resume(path)
        missing = again.missing
        assert missing == [i for i in range(len(points)) if i not in {5, 1}]
        points = list(again.ask())
        again.tell([loss(points[i]) for i in missing], indices=missing)
        assert again.nit == 3
        assert_equal(again.x, plain.x)

    def test_parts_of_device_losses(self, backend):
        x0, xp = backend.array(X0), backend.xp
        target = backend.array(TARGET)

        def fun(x):
            return xp.mean((x - target) ** 2)

        a, b = (zo.Optimizer(x0, seed=2) for _ in range(2))
        a.tell([fun(x) for x in a.ask()])
        losses = [fun(x) for x in b.ask()]
        b.tell(losses[3:], indices=range(3, len(losses)))
        b.tell(losses[:3], indices=[0, 1, 2])
        np.testing.assert_array_equal(backend.numpy(a.x), backend.numpy(b.x))

    def test_wrong_parts(self):
        optimizer = zo.Optimizer(X0)
        assert optimizer.missing == []
        count = len(optimizer.ask())
        for indices, losses, text in (
            ([count], [1.0], "numbered 0 to"),
            ([-1], [1.0], "numbered 0 to"),
            ([True], [1.0], "numbered 0 to"),
            ([0, 0], [1.0, 1.0], "told before"),
            ([0, 1], [1.0], "2 indices and 1 losses"),
            ([0], ["a"], "must return a real number"),
        ):
            with pytest.raises((ValueError, TypeError), match=text):
                optimizer.tell(losses, indices=indices)
        assert len(optimizer.missing) == count
        optimizer.tell([1.0], indices=[2])
        with pytest.raises(ValueError, match="told before"):
            optimizer.tell([1.0], indices=[2])
        with pytest.raises(ValueError, match="told by index"):
            optimizer.tell([1.0] * count)

    def test_copies_do_not_write(self, tmp_path):
        optimizer = zo.Optimizer(X0, journal=tmp_path / "a.zomopi")
        other = copy.deepcopy(optimizer)
        self.run(other, 3)
        optimizer._recorder.close()
        assert zo.Optimizer.resume(tmp_path / "a.zomopi").nit == 0
