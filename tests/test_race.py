"""The race: equal budgets, one way of scoring, a file that can be gone on with."""

import contextlib
import itertools
import json
import math
import signal

import numpy as np
import pytest

import zomopi_core as zo
from zomopi_core import problems
from zomopi_core._race_entries import entries
from zomopi_core._race_file import RaceRun
from zomopi_core._race_oracle import BudgetSpent, Oracle, checkpoints
from zomopi_core._race_picture import losses_at
from zomopi_core.race_result import RaceResult, quartiles


class Bowl:
    """The distance to a matrix of rank one."""

    target = 0.05

    def __init__(self, seed=0, name="bowl", dtype="float64"):
        self.name, self.calls = name, 0
        generator = np.random.default_rng(seed)
        goal = np.outer(generator.standard_normal(6), generator.standard_normal(4)) / 3
        self.goal, self.x0 = goal, np.zeros((6, 4), dtype=dtype)

    def exact(self, x):
        return float(np.mean((x - self.goal) ** 2))

    def fun(self, x):
        self.calls += 1
        return self.exact(x)


class NoisyBowl(Bowl):
    noisy = True

    def __init__(self, seed=0):
        super().__init__(seed, "noisy bowl")

    def fun(self, x, key):
        return super().fun(x) + float(np.random.default_rng(key).standard_normal())


def walk(fun, x0, max_queries, seed):
    """Go downhill by trial: 50 steps, then stop."""
    generator = np.random.default_rng(seed)
    x, best = x0, fun(x0)
    for _ in range(49):
        trial = x + 0.1 * generator.standard_normal(x.shape)
        loss = fun(trial)
        if loss < best:
            x, best = trial, loss
    return x


def greedy(fun, x0, max_queries, seed):
    while True:
        try:
            fun(x0)
        except Exception:
            continue


def broken(fun, x0, max_queries, seed):
    fun(x0 + 0.01)
    raise RuntimeError("out of order")


def lines(file):
    """Return what a file holds, but for times."""
    parsed = [json.loads(line) for line in file.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in parsed]


class TestOracle:
    def test_counts_and_ends(self):
        problem = Bowl()
        oracle = Oracle(problem, 5)
        losses = [oracle(problem.x0 + i) for i in range(5)]
        assert losses[0] == problem.exact(problem.x0)
        with pytest.raises(BudgetSpent):
            oracle(problem.x0)
        assert oracle.queries == problem.calls == 5

    def test_the_best_point_seen_is_scored(self):
        problem = Bowl()
        start = problem.exact(problem.x0)
        problem.target = start / 3
        oracle = Oracle(problem, 10)
        for x in (problem.x0 + 1, 0.5 * problem.goal, problem.x0 - 1, problem.goal):
            oracle(x)
        outcome = oracle.finish()
        assert outcome.curve == [(0, start), (2, start / 4), (4, 0.0)]
        assert (outcome.start, outcome.final, outcome.queries) == (start, 0.0, 4)
        assert outcome.queries_to_target == 2

    def test_target_at_the_start(self):
        problem = Bowl()
        problem.target = 10.0
        assert Oracle(problem, 3).finish().queries_to_target == 0

    def test_a_noisy_function_is_scored_without_its_noise(self):
        problem = NoisyBowl()
        oracle = Oracle(problem, 6)
        assert oracle(problem.goal, key=3) == oracle(problem.goal, key=3)
        assert oracle(problem.goal) != oracle(problem.goal)
        oracle.recommend(0.5 * problem.goal)
        oracle(problem.x0)
        outcome = oracle.finish()
        assert outcome.final == problem.exact(0.5 * problem.goal)

    def test_without_recommendation_the_lowest_noisy_value_counts(self):
        problem = NoisyBowl()
        oracle = Oracle(problem, 40)
        points = [problem.goal * i / 40 for i in range(40)]
        values = [oracle(x) for x in points]
        # what a solver does to its arrays afterwards is nobody's concern
        chosen = problem.exact(points[int(np.argmin(values))])
        for x in points:
            x[...] = 9.0
        assert oracle.finish().final == chosen

    def test_the_answer_of_a_noisy_run_is_its_end(self):
        problem = NoisyBowl()
        oracle = Oracle(problem, 4)
        oracle(problem.x0)
        assert oracle.finish(problem.goal).final == 0.0

    def test_nothing_is_shown_to_a_solver(self):
        public = {name for name in dir(Oracle(Bowl(), 3)) if not name.startswith("_")}
        assert public == {"finish", "keyed", "max_queries", "noisy", "queries", "recommend"}

    def test_losses_that_are_not_finite(self):
        problem = Bowl()
        problem.fun = lambda x: math.nan
        oracle = Oracle(problem, 3)
        assert math.isnan(oracle(problem.x0))
        assert oracle.finish().final == problem.exact(problem.x0)

    @pytest.mark.parametrize("budget", [1, 2, 150, 10**6])
    def test_curves_are_short(self, budget):
        marks = checkpoints(budget)
        assert marks[0] == 1
        assert marks[-1] == budget
        assert len(marks) <= 200


class TestBudgets:
    @pytest.mark.parametrize(
        "method", [n for n in zo.methods() if getattr(zo, n)().estimator is not None]
    )
    def test_every_method_keeps_it(self, method):
        problem = Bowl()
        run = zo.race(problem, method, budget=211, seeds=1).runs[0]
        assert run.error is None
        # the problem's own evaluations for scoring go through `exact`
        assert run.queries == problem.calls
        # what is left does not pay for a step
        per_step = getattr(zo, method)().evaluations_per_step
        assert 211 - per_step - 3 < run.queries <= 211

    @pytest.mark.parametrize("problem", [Bowl(), NoisyBowl()])
    @pytest.mark.parametrize("name", ["cma", "scipy-lbfgsb"])
    def test_outsiders_keep_it(self, name, problem):
        pytest.importorskip(name.split("-")[0])
        problem.calls = 0
        run = zo.race(problem, name, budget=97, seeds=1).runs[0]
        assert run.error is None
        assert run.queries == problem.calls <= 97

    def test_a_solver_that_never_ends_is_ended(self):
        run = zo.race(Bowl(), greedy, budget=20, seeds=1).runs[0]
        assert (run.queries, run.error) == (20, None)


class TestRuns:
    def test_dict_and_float32(self):
        class Two(Bowl):
            def __init__(self):
                super().__init__(name="two")
                self.x0 = {"a": np.zeros((3, 2), "float32"), "b": np.zeros(2, "float32")}

            def exact(self, x):
                assert x["a"].dtype == x["b"].dtype == np.float32
                return float(np.mean((x["a"] - 1) ** 2) + np.mean(x["b"] ** 2))

        result = zo.race(Two(), ["zo_mopi", "lozo:learning_rate=0.01"], budget=400, seeds=2)
        assert [run.unknowns for run in result.runs] == [8] * 4
        assert all(run.error is None for run in result.runs)
        assert result.table()[0].loss.median < 0.5

    def test_other_libraries(self, make_backend):
        torch = make_backend("torch")

        class Tensor(Bowl):
            def __init__(self):
                super().__init__(name="tensor")
                self.x0, self.tensor = torch.array(self.x0), torch.array(self.goal)

            def exact(self, x):
                return ((x - self.tensor) ** 2).mean()

        assert zo.race(Tensor(), "zo_mopi", budget=400, seeds=1).runs[0].final < 0.1

    def test_a_failure_stops_only_its_run(self):
        result = zo.race(Bowl(), [broken, walk], budget=100, seeds=2)
        assert [run.error for run in result.runs] == ["RuntimeError: out of order", None] * 2
        rows = {row.method: row for row in result.table()}
        assert (rows["broken"].failed, rows["walk"].failed) == (2, 0)
        assert rows["broken"].loss.high < math.inf  # it had the start, at least
        assert "broken (2 of 2 failed)" in str(result)

    def test_a_solver_that_changes_x0_changes_its_own(self):
        def spoil(fun, x0, max_queries, seed):
            x0 += 100.0

        runs = zo.race(Bowl(), [spoil, walk], budget=60, seeds=1).runs
        assert runs[0].start == runs[1].start < 1
        assert runs[1].curve[0] == (0, pytest.approx(runs[1].start, rel=1e-5))

    def test_noisy_methods_are_scored_at_their_iterate(self):
        run = zo.race(NoisyBowl(), "zo_mopi", budget=3000, seeds=1).runs[0]
        assert run.final < run.start  # noise of size 1 on a loss of size 0.1, the same in a step
        assert all(loss < 10 * run.start for _, loss in run.curve)

    def test_factories_get_the_seed(self):
        result = zo.race(Bowl, walk, budget=50, seeds=[3, 8])
        assert [run.seed for run in result.runs] == [3, 8]
        assert result.runs[0].start == Bowl(3).exact(Bowl(3).x0) != result.runs[1].start

    def test_names(self, monkeypatch):
        made = []

        def make(name, xp=np, *, device=None, seed=0):
            made.append((name, xp, device, seed))
            return Bowl(seed, name)

        monkeypatch.setattr(problems, "make", make, raising=False)
        monkeypatch.setattr(problems, "names", lambda: ("b", "digits", "a"), raising=False)
        result = zo.race("a,b", {"mine": walk}, budget=50, seeds=1)
        assert result.problems == ["a", "b"]
        assert ("b", np, None, 0) in made
        assert result.runs[0].method == "mine"
        assert zo.race(methods=walk, budget=50, seeds=1).problems == ["digits"]
        with pytest.raises(ValueError, match="did you mean 'digits'"):
            zo.race("digit", walk)

    def test_workers_give_the_same(self):
        one = zo.race(Bowl(), ["zo_mopi", "mezo"], budget=60, seeds=2)
        jobs = [(run.problem, run.method, run.seed, run.final) for run in one.runs]
        two = zo.race(Bowl(), ["zo_mopi", "mezo"], budget=60, seeds=2, workers=2)
        assert sorted(jobs) == sorted((r.problem, r.method, r.seed, r.final) for r in two.runs)

    def test_what_cannot_be_sent_to_workers(self):
        with pytest.raises(TypeError, match=r"cannot be sent to them .* use workers=1"):
            zo.race(Bowl(), lambda fun, x0, max_queries, seed: None, workers=2)

    def test_progress(self, capsys):
        pytest.importorskip("rich")
        zo.race(Bowl(), "zo_mopi", budget=50, seeds=2, progress=True)
        shown = capsys.readouterr().err
        assert "100%" in shown
        assert "bowl  zo_mopi  seed 1" in shown


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "error", "text"),
        [
            ({"methods": "muon"}, ValueError, "muon takes gradients"),
            ({"methods": zo.dion()}, ValueError, "dion takes gradients"),
            ({"methods": "zo_mupi"}, ValueError, "did you mean 'zo_mopi'"),
            ({"methods": []}, ValueError, "methods names nobody"),
            ({"methods": [3]}, TypeError, "pass names, Methods, or solvers"),
            ({"methods": [walk, walk]}, ValueError, "two entries named 'walk'"),
            ({"methods": "zo_muon:rnk=3"}, ValueError, "did you mean 'rank'"),
            ({"methods": "zo_muon:rank"}, ValueError, "'rank' is no option; write name:option"),
            ({"methods": "zo_muon:rank=0"}, ValueError, "rank must be an integer"),
            ({"methods": "zo_muon:learning_rate=big"}, ValueError, "must be a positive number"),
            ({"methods": "zo_muon:schedule=linear"}, ValueError, "needs a learning rate"),
            (
                {"methods": "zo_mopi:learning_rate=auto:schedule=linear"},
                ValueError,
                "needs a learning rate",
            ),
            ({"methods": "zo_muon:learning_rate=1:schedule=steep"}, ValueError, "'cosine'"),
            ({"methods": "cma:popsize=3"}, ValueError, "cma takes no options"),
            ({"problems": []}, ValueError, "problems names nothing"),
            ({"problems": [3]}, TypeError, "objects with name, x0 and fun"),
            ({"problems": lambda seed: 3}, TypeError, "objects with name, x0 and fun"),
            ({"problems": [Bowl(), Bowl()]}, ValueError, "two entries named 'bowl'"),
            ({"budget": 0}, ValueError, "budget must be"),
            ({"workers": 0}, ValueError, "workers must be"),
            ({"seeds": 0}, ValueError, "seeds must be"),
            ({"seeds": [1, 1]}, ValueError, "must be different numbers"),
            ({"seeds": [-1]}, ValueError, "seeds must be"),
        ],
    )
    def test_is_refused_before_any_run(self, arguments, error, text):
        problem = Bowl()
        if "cma" in str(arguments.get("methods")):
            pytest.importorskip("cma")
        with pytest.raises(error, match=text):
            zo.race(**{"problems": problem, "methods": walk, "budget": 50} | arguments)
        assert problem.calls == 0

    def test_a_budget_below_a_step_fails_that_method_only(self):
        runs = zo.race(Bowl(), ["zo_mopi", "mezo"], budget=5, seeds=1).runs
        assert "max_queries=5 does not pay for one step" in runs[0].error
        assert runs[1].error is None


class TestEntries:
    def test_options(self):
        (entry,) = entries("zo-muon:learning_rate=0.01:rank=8")
        assert entry.label == "zo_muon:learning_rate=0.01:rank=8"
        assert entry.solver.prepared(100) == zo.zo_muon(learning_rate=0.01, rank=8)

    def test_schedules_fall_over_the_budget(self):
        (entry,) = entries("zo_muon:learning_rate=0.02:schedule=linear")
        method = entry.solver.prepared(1003)
        per_step = method.evaluations_per_step
        steps = (1003 - 3) // per_step
        assert method.rates(0)[0] == 0.02
        assert method.rates(steps - 1)[0] == pytest.approx(0.02 / steps)
        result = zo.race(
            Bowl(), [lambda f, x0, q, s: zo.minimize(f, x0, method=method, max_queries=q)],
            budget=1003, seeds=1,
        )  # fmt: skip
        assert result.runs[0].queries == per_step * steps + 3

    def test_grid(self):
        found = entries("zo_muon:learning_rate=0.01/0.1:schedule=constant/linear:rank=4")
        assert len(found) == 4
        assert {entry.group for entry in found} == {"zo_muon:rank=4 (tuned)"}
        assert found[1].label == "zo_muon:learning_rate=0.01:schedule=linear:rank=4"

    def test_the_best_of_a_grid_is_shown(self):
        result = zo.race(Bowl(), ["mezo:learning_rate=1e-6/0.5", "mezo"], budget=400, seeds=3)
        best, *others = result.table()
        assert (best.method, best.member) == ("mezo (tuned)", "mezo:learning_rate=0.5")
        assert [row.method for row in others] == ["mezo"]
        assert len(result.table(members=True)) == 3
        assert "mezo (tuned): mezo:learning_rate=0.5" in str(result)

    def test_values(self):
        (entry,) = entries("zo_mopi:refresh=haar:momentum=0:spectral_rank=none:stacked=false")
        expected = zo.zo_mopi(learning_rate="auto", refresh="haar", momentum=0)
        assert entry.solver.method == expected

    def test_settings_do_not_depend_on_the_process(self):
        schedule = zo.linear_decay(0.1, 10)
        first, second = (entries(zo.zo_muon(learning_rate=schedule))[0] for _ in range(2))
        assert first.settings == second.settings
        assert "0x" not in entries(zo.zo_muon(learning_rate=zo.constant(0.1)))[0].settings


class TestFile:
    def race(self, file, methods=("zo_mopi", walk), **options):
        return zo.race([Bowl, NoisyBowl], list(methods), budget=80, seeds=2, file=file, **options)

    def test_holds_what_the_result_holds(self, tmp_path):
        file = tmp_path / "r.jsonl"
        result = self.race(file)
        loaded = RaceResult.load(file)
        assert loaded.runs == result.runs
        assert (loaded.budget, str(loaded)) == (80, str(result))
        assert loaded.header["versions"]["numpy"] == np.__version__

    @pytest.mark.parametrize("after", [0, 1, 3, 7])
    def test_goes_on_after_an_interruption(self, tmp_path, after):
        whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"

        def stop_later():
            runs = itertools.count()

            def solver(fun, x0, max_queries, seed):
                if next(runs) == after // 2:
                    raise KeyboardInterrupt
                return walk(fun, x0, max_queries, seed)

            solver.__qualname__ = "walk"
            return solver

        self.race(whole)
        interrupted = self.race(cut, ["zo_mopi", stop_later()])
        assert interrupted.interrupted
        assert len(interrupted.runs) == len(RaceResult.load(cut).runs) == after // 2 * 2 + 1
        again = self.race(cut)
        assert not again.interrupted
        assert lines(cut) == lines(whole)

    def test_ctrl_c_inside_minimize_ends_the_race(self, tmp_path):
        class Stops(Bowl):
            def fun(self, x):
                if self.calls == 20:
                    raise KeyboardInterrupt
                return super().fun(x)

        result = zo.race(Stops(), ["zo_mopi", walk], budget=50, seeds=1)
        assert result.interrupted
        assert result.runs == []

    def test_a_swallowed_ctrl_c_ends_the_race_all_the_same(self):
        def swallow(fun, x0, max_queries, seed):
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            fun(x0)

        before = signal.getsignal(signal.SIGINT)
        result = zo.race(Bowl(), [swallow, walk], budget=50, seeds=1)
        assert (result.interrupted, result.runs) == (True, [])
        assert signal.getsignal(signal.SIGINT) is before

    def test_finished_runs_are_not_run_again(self, tmp_path):
        file, problem = tmp_path / "r.jsonl", Bowl()
        zo.race(problem, walk, budget=50, seeds=2, file=file)
        spent, before = problem.calls, file.read_bytes()
        assert spent > 0
        result = zo.race(problem, walk, budget=50, seeds=2, file=file)
        assert problem.calls == spent
        assert file.read_bytes() == before
        assert len(result.runs) == 2

    def test_other_methods_and_seeds_are_added(self, tmp_path):
        file = tmp_path / "r.jsonl"
        zo.race(Bowl, walk, budget=50, seeds=1, file=file)
        result = zo.race(Bowl, ["zo_mopi"], budget=50, seeds=2, file=file)
        assert [(r.method, r.seed) for r in result.runs] == [
            ("walk", 0),
            ("zo_mopi", 0),
            ("zo_mopi", 1),
        ]

    def test_a_line_that_was_cut_off(self, tmp_path):
        file = tmp_path / "r.jsonl"
        self.race(file)
        whole = lines(file)
        file.write_bytes(file.read_bytes()[:-30])
        assert len(RaceResult.load(file).runs) == 7
        self.race(file)
        assert lines(file) == whole

    def test_a_header_that_was_cut_off(self, tmp_path):
        file = tmp_path / "r.jsonl"
        file.write_text("")
        assert len(self.race(file).runs) == 8

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"budget": 60}, r"another budget \(50 there, 60 now\)"),
            ({"methods": {"walk": zo.mezo()}}, "another method walk"),
            ({"problems": [lambda seed: Bowl(seed + 1)]}, r"another problem bowl \(seed 0\)"),
            ({"problems": [Bowl(dtype="float32")]}, r"another problem bowl"),
            ({"backend": "torch"}, r"another backend"),
        ],
    )
    def test_another_race_is_refused(self, tmp_path, change, text):
        file = tmp_path / "r.jsonl"
        same = {"problems": Bowl, "methods": walk, "budget": 50, "seeds": 1, "file": file}
        zo.race(**same)
        before = file.read_bytes()
        with pytest.raises(ValueError, match=text):
            zo.race(**same | change)
        assert file.read_bytes() == before

    @pytest.mark.parametrize(
        ("content", "text"),
        [
            ("hello\n", "line 1 is not a JSON object"),
            ("[1]\n", "line 1 is not a JSON object"),
            ('{"format": "other"}\n', "does not name the format"),
            ("notes without a line break", "it has no header"),
        ],
    )
    def test_other_files_are_left_alone(self, tmp_path, content, text):
        file = tmp_path / "notes.txt"
        file.write_text(content)
        with pytest.raises(ValueError, match=text):
            self.race(file)
        assert file.read_text() == content

    def test_infinity_survives(self, tmp_path):
        file = tmp_path / "r.jsonl"
        problem = Bowl()
        problem.exact = problem.fun = lambda x: math.inf
        problem.target = None
        zo.race(problem, walk, budget=50, seeds=1, file=file)
        assert "Infinity" not in file.read_text()
        (run,) = RaceResult.load(file).runs
        assert run.final == run.start == run.queries_to_target == math.inf
        assert run.target == -math.inf

    def test_empty_file_is_no_result(self, tmp_path):
        (tmp_path / "empty").write_text("")
        with pytest.raises(ValueError, match="it is empty"):
            RaceResult.load(tmp_path / "empty")


def run_of(method="a", problem="p", seed=0, reached=math.inf, final=1.0, **others):
    values = {
        "group": None, "settings": "", "definition": "d", "unknowns": 6, "target": 0.5,
        "start": 2.0, "queries": 100, "seconds": 1.0, "error": None, "curve": [(0, 2.0)],
    }  # fmt: skip
    return RaceRun(
        problem=problem, method=method, seed=seed, queries_to_target=reached, final=final,
        **values | others,
    )  # fmt: skip


def result_of(*runs):
    return RaceResult(100, list(runs))


class TestStatistics:
    def test_quartiles(self):
        assert quartiles([3.0]) == (3, 3, 3)
        assert quartiles([4, 1, 3, 2]) == (1.75, 2.5, 3.25)
        assert quartiles([5, 1, 2, 4, 3]) == (2, 3, 4)
        values = np.random.default_rng(0).standard_normal(11)
        assert quartiles(list(values)) == pytest.approx(np.percentile(values, (25, 50, 75)))

    def test_quartiles_with_infinity(self):
        inf = math.inf
        assert quartiles([inf, inf, 3]) == (inf, inf, inf)
        assert quartiles([inf, 2, 4]) == (3, 4, inf)
        assert quartiles([inf, inf]) == (inf, inf, inf)

    def test_table(self):
        runs = [run_of("slow", seed=i, final=f) for i, f in enumerate((0.9, 0.7, 0.8))]
        runs += [run_of("fast", seed=i, reached=q) for i, q in enumerate((10, 30, math.inf))]
        runs += [run_of("best", seed=i, reached=q) for i, q in enumerate((10, 20, 30))]
        best, fast, slow = result_of(*runs).table()
        assert [row.method for row in (best, fast, slow)] == ["best", "fast", "slow"]
        assert fast.queries == (20, 30, math.inf)
        assert (fast.reached, slow.reached) == (2, 0)
        assert slow.loss == pytest.approx((0.75, 0.8, 0.85))

    def test_text(self):
        text = str(result_of(run_of("a", reached=1234), run_of("b"), run_of("c", target=0.5)))
        assert "1,234" in text
        assert "> 100" in text
        assert all(len(line) <= 80 for line in text.splitlines())
        assert "-  " in str(result_of(run_of(target=-math.inf)))

    def test_losses_at(self):
        run = run_of(curve=[(0, 3.0), (4, 2.0), (9, 1.0)])
        assert list(losses_at(run, np.asarray([1, 3, 4, 8, 9, 50]))) == [3, 3, 2, 2, 1, 1]


class TestCompare:
    def test_queries_decide(self):
        old = result_of(*[run_of("a", seed=i, reached=q) for i, q in enumerate((90, 100, 110))])
        new = result_of(*[run_of("a", seed=i, reached=q) for i, q in enumerate((40, 50, 60))])
        (change,) = new.compare(old)
        assert (change.queries_ratio, change.verdict) == (0.5, "better")
        assert old.compare(new)[0].verdict == "worse"
        assert old.compare(old)[0].verdict == "same"

    def test_spread_is_no_difference(self):
        old = result_of(*[run_of("a", seed=i, reached=q) for i, q in enumerate((10, 100, 110))])
        new = result_of(*[run_of("a", seed=i, reached=q) for i, q in enumerate((15, 90, 120))])
        assert new.compare(old)[0].verdict == "same"

    @pytest.mark.parametrize("reached", [(50, 120, 130), (70, 80, 150)])
    def test_both_medians_must_lie_outside(self, reached):
        old = result_of(*[run_of("a", seed=i, reached=q) for i, q in enumerate((90, 100, 110))])
        new = result_of(*[run_of("a", seed=i, reached=q) for i, q in enumerate(reached)])
        assert new.compare(old)[0].verdict == "same"
        assert old.compare(new)[0].verdict == "same"

    def test_final_loss_decides_where_nobody_arrives(self):
        old = result_of(*[run_of("a", seed=i, final=f) for i, f in enumerate((1.0, 1.1))])
        new = result_of(*[run_of("a", seed=i, final=f) for i, f in enumerate((0.5, 0.6))])
        (change,) = new.compare(old)
        assert math.isnan(change.queries_ratio)
        assert change.loss_ratio == pytest.approx(0.55 / 1.05)
        assert change.verdict == "better"

    def test_reaching_the_target_at_all(self):
        old, new = result_of(run_of("a")), result_of(run_of("a", reached=50))
        assert (new.compare(old)[0].queries_ratio, new.compare(old)[0].verdict) == (0.0, "better")
        assert (old.compare(new)[0].queries_ratio, old.compare(new)[0].verdict) == (
            math.inf,
            "worse",
        )

    def test_what_is_in_one_only_is_left_out(self):
        assert result_of(run_of("a"), run_of("b")).compare(result_of(run_of("b"))) == (
            result_of(run_of("b")).compare(result_of(run_of("b")))
        )

    def test_files(self, tmp_path):
        file = tmp_path / "r.jsonl"
        result = zo.race(Bowl(), walk, budget=50, seeds=3, file=file)
        assert [change.verdict for change in result.compare(file)] == ["same"]

    def test_what_cannot_be_compared(self):
        with pytest.raises(ValueError, match="another budget"):
            result_of(run_of()).compare(RaceResult(50, [run_of()]))
        with pytest.raises(ValueError, match="another problem p"):
            result_of(run_of()).compare(result_of(run_of(definition="e")))


class TestPicture:
    @pytest.mark.parametrize("suffix", ["png", "svg"])
    def test_is_written(self, tmp_path, suffix):
        pytest.importorskip("matplotlib")
        methods = ["zo_mopi:learning_rate=0.01/0.1", walk, broken]
        file = tmp_path / f"race.{suffix}"
        zo.race([Bowl, NoisyBowl], methods, budget=60, seeds=2).draw(file)
        text = file.read_bytes()
        assert text.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")

    def test_infinite_losses(self, tmp_path):
        pytest.importorskip("matplotlib")
        runs = [run_of(curve=[(0, math.inf), (10, 1.0)]), run_of("b", curve=[(0, math.inf)])]
        result_of(*runs).draw(tmp_path / "race.png")
        assert (tmp_path / "race.png").exists()

    def test_nothing_to_draw(self, tmp_path):
        with pytest.raises(ValueError, match="no finished run"):
            result_of().draw(tmp_path / "race.png")


class TestCommand:
    @pytest.fixture
    def call(self, monkeypatch):
        pytest.importorskip("typer")
        from typer.testing import CliRunner

        from zomopi_core.cli import app

        def make(name, xp=np, *, device=None, seed=0):
            return Bowl(seed, name)

        monkeypatch.setattr(problems, "make", make, raising=False)
        monkeypatch.setattr(problems, "names", lambda: ("digits", "bowl"), raising=False)

        def invoke(*arguments):
            return CliRunner().invoke(app, ["race", *map(str, arguments)], env={"COLUMNS": "80"})

        return invoke

    def test_table_fits(self, call, tmp_path):
        methods = "zo_mopi,zo_muon:learning_rate=0.01/0.1:schedule=linear,mezo"
        picture, file = tmp_path / "race.png", tmp_path / "race.jsonl"
        result = call(
            "--problems", "bowl,digits", "--methods", methods, "--budget", 200, "--seeds", "0,4",
            "--file", file, "--save", picture,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        out = [line for line in result.stdout.splitlines() if not line.startswith("saved")]
        assert all(len(line) <= 80 for line in out)
        assert "bowl: 24 unknowns" in result.stdout
        assert "queries to target" in result.stdout
        assert "(tuned): zo_muon:learning_rate=" in result.stdout
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert len(RaceResult.load(file).runs) == 16

        again = call(
            "--problems", "bowl", "--methods", "mezo", "--budget", 200, "--seeds", "0,4",
            "--compare", file,
        )  # fmt: skip
        assert again.exit_code == 0, again.output
        assert "same" in again.stdout
        assert "x 1" in again.stdout

    def test_interruption(self, call, tmp_path, monkeypatch):
        def make(name, xp=np, *, device=None, seed=0):
            problem = Bowl(seed, name)
            if seed == 1:
                problem.fun = self.stop
            return problem

        monkeypatch.setattr(problems, "make", make, raising=False)
        file = tmp_path / "r.jsonl"
        arguments = ("--problems", "bowl", "--methods", "mezo", "--budget", 50)
        result = call(*arguments, "--file", file)
        assert result.exit_code == 130
        assert "The same command goes on from there" in " ".join(result.stdout.split())
        assert len(RaceResult.load(file).runs) == 1
        assert "With --file" in call(*arguments).stdout

    @staticmethod
    def stop(x):
        raise KeyboardInterrupt

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (["--problems", "nothing"], "problems must be one of 'digits', 'bowl'"),
            (["--methods", "muon"], "muon takes gradients"),
            (["--seeds", "x"], "--seeds must be numbers with commas"),
            (["--save", "x.txt"], "must end in .png, .pdf or .svg"),
            (["--file", "nowhere/x.jsonl"], "there is no folder nowhere"),
            (["--compare", "nowhere.jsonl"], "--compare nowhere.jsonl: No such file"),
        ],
    )
    def test_bad_arguments(self, call, arguments, text):
        result = call(*arguments)
        assert result.exit_code == 2
        assert text in " ".join(result.output.replace("│", " ").split())

    def test_failures_are_named(self, call):
        result = call("--problems", "bowl", "--methods", "zo_mopi", "--budget", 3, "--seeds", 1)
        assert result.exit_code == 0
        assert "failed: zo_mopi on bowl, seed 0: ValueError" in result.stdout
