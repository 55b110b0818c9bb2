"""MeZO-SVRG against its formula, its snapshots, its budget and what it is for."""

import copy
import functools
import pickle
from dataclasses import replace

import numpy as np
import pytest

import zomopi_core as zo
from zomopi_core import problems
from zomopi_core.costs import StepCosts
from zomopi_core.draws import step_key
from zomopi_core.estimator import Evaluation
from zomopi_core.momentum import ExponentialAverage
from zomopi_core.orthogonalize import Normalized
from zomopi_core.rule import Rule
from zomopi_core.subspace import FullSpace
from zomopi_core.update import Update
from zomopi_core.variance_reduction import ControlVariate

ROWS, COLUMNS, DATA, BATCH = 4, 3, 40, 5
MU, Q = 1e-2, 4
RNG = np.random.default_rng(0)
MIXING = RNG.standard_normal((DATA, 6, ROWS))  # the terms differ in their curvature
GOALS = RNG.standard_normal((DATA, 6, COLUMNS))
START = {"W": RNG.standard_normal((ROWS, COLUMNS)), "b": RNG.standard_normal(COLUMNS)}


def mean_loss(params, chosen):
    """Half the mean over the chosen terms of ``norm(A_i W + b - Y_i)^2``, one vector b for all."""
    residual = MIXING[chosen] @ params["W"] + params["b"] - GOALS[chosen]
    return 0.5 * np.sum(residual**2) / len(chosen)


def terms(key):
    """All terms for None, else those of a batch."""
    if key is None:
        return np.arange(DATA)
    return np.random.default_rng(key).choice(DATA, BATCH, replace=False)


def loss(params, *, key):
    return mean_loss(params, terms(key))


def normal(leaf, step, shape):
    return np.random.default_rng((leaf, step)).standard_normal(shape)


class Keyed:
    """A sampler of the tests' own."""

    def normal(self, draw, shape, *, dtype, device):
        assert draw.stream == "probe"
        assert draw.probe is None
        return normal(draw.leaf, draw.step, shape)


def flat(params):
    return np.concatenate([params["W"].ravel(), params["b"]])


def formula(steps, probes, eta_1, eta_2, failing=()):
    """Return the iterates, and for each step whether it was a snapshot's, in plain vectors.

    At the steps in `failing` all losses are NaN.
    """

    def value(x, key):
        W, b = x[: ROWS * COLUMNS].reshape(ROWS, COLUMNS), x[ROWS * COLUMNS :]
        return mean_loss({"W": W, "b": b}, terms(key))

    x, y, g, taken = flat(START), None, None, None
    path, full = [], []
    for t in range(steps):
        Z = np.concatenate(
            [
                normal(0, t, (probes, ROWS, COLUMNS)).reshape(probes, -1),
                normal(1, t, (probes, COLUMNS)),
            ],
            axis=1,
        )

        def slope(point, key, Z=Z):
            rises = [value(point + MU * z, key) - value(point - MU * z, key) for z in Z]
            return np.mean([c / (2 * MU) * z for c, z in zip(rises, Z, strict=True)], axis=0)

        due = taken is None or t - taken >= Q
        full.append(due)
        if t not in failing:
            if due:
                g, y, taken = slope(x, None), x, t
                x = x - eta_1(t) * g
            else:
                x = x - eta_2(t) * (slope(x, t) - slope(y, t) + g)
        path.append(x)
    return path, full


def told(backend, optimizer, failing=()):
    """Answer one ask; return whether it was for all data."""
    t, points = optimizer.nit, optimizer.ask()
    key = None if points.full_batch else t
    hosts = [{k: backend.numpy(v) for k, v in p.items()} for p in points]
    losses = [float(loss(p, key=key)) for p in hosts]
    optimizer.tell([np.nan] * len(losses) if t in failing else losses)
    return points.full_batch


def started(backend, dtype="float64"):
    return {k: backend.array(v, dtype) for k, v in START.items()}


ETA_1, ETA_2 = zo.linear_decay(5e-3, 60), zo.linear_decay(2e-3, 50)


def svrg(**options):
    options = {
        "learning_rate": ETA_2,
        "full_batch_learning_rate": ETA_1,
        "snapshot_every": Q,
        "smoothing": MU,
        "probes": 2,
    } | options
    return zo.mezo_svrg(**options)


class TestFormula:
    @pytest.mark.parametrize("probes", [1, 3])
    def test_path(self, backend, probes):
        optimizer = zo.Optimizer(started(backend), method=svrg(probes=probes), seed=Keyed())
        path, full = formula(11, probes, ETA_1, ETA_2)
        assert full == [t % Q == 0 for t in range(11)]
        for x, wanted in zip(path, full, strict=True):
            eta = (ETA_1 if wanted else ETA_2)(optimizer.nit)
            assert optimizer.learning_rate == eta
            assert told(backend, optimizer) == wanted
            found = flat({k: backend.numpy(v) for k, v in optimizer.x.items()})
            assert np.max(np.abs(found - x)) < 1e-9 * np.max(np.abs(x))

    def test_one_rate_for_both(self, make_backend):
        backend = make_backend("numpy")
        method = svrg(learning_rate=3e-3, full_batch_learning_rate=None)
        optimizer = zo.Optimizer(started(backend), method=method, seed=Keyed())
        for x in formula(6, 2, lambda t: 3e-3, lambda t: 3e-3)[0]:
            told(backend, optimizer)
            assert np.allclose(flat(optimizer.x), x, rtol=1e-9, atol=0)

    def test_is_the_pure_functions(self, backend):
        method = svrg()
        x = started(backend)
        optimizer, state = zo.Optimizer(x, method=method, seed=Keyed()), method.init(x, Keyed())
        for t in range(6):
            current = method if t % Q else method.snapshots.method
            if t % Q == 0:
                snapshot = x
            probes = current.propose(state)
            points = zo.perturb(current, x, probes, snapshot)
            hosts = [{k: backend.numpy(v) for k, v in p.items()} for p in points]
            key = None if points.full_batch else t
            losses = np.asarray([loss(p, key=key) for p in hosts])
            state, step = current.update(state, losses, probes)
            x = zo.apply_step(x, step)
            told(backend, optimizer)
            for name in x:
                found, wanted = backend.numpy(optimizer.x[name]), backend.numpy(x[name])
                assert np.allclose(found, wanted, rtol=1e-10)


class TestPoints:
    def test_order(self, backend):
        optimizer = zo.Optimizer(started(backend), method=svrg(), seed=Keyed())
        assert len(optimizer.ask()) == 4
        y = flat(START)
        told(backend, optimizer)
        x = flat({k: backend.numpy(v) for k, v in optimizer.x.items()})
        points = optimizer.ask()
        W, b = normal(0, 1, (2, ROWS, COLUMNS)), normal(1, 1, (2, COLUMNS))
        Z = [flat({"W": W[i], "b": b[i]}) for i in range(2)]
        expected = [p + s * MU * z for p in (x, y) for z in Z for s in (1, -1)]
        assert len(points) == 8
        assert not points.full_batch
        for found in (list(points), [points[i] for i in range(8)]):
            for point, wanted in zip(found, expected, strict=True):
                point = flat({k: backend.numpy(v) for k, v in point.items()})
                assert np.allclose(point, wanted, rtol=1e-12, atol=1e-14)

    def test_other_methods_want_no_full_batch(self):
        optimizer = zo.Optimizer(np.ones((3, 2)), method="mezo")
        assert optimizer.ask().full_batch is False
        assert not zo.mezo().takes_full_batches
        assert zo.mezo_svrg().takes_full_batches

    def test_evaluations(self):
        method = zo.mezo_svrg(smoothing=0.5)
        assert method.snapshots.method.estimator.evaluations == (
            Evaluation(0, 0.5),
            Evaluation(0, -0.5),
        )
        assert method.estimator.evaluations == (
            Evaluation(0, 0.5),
            Evaluation(0, -0.5),
            Evaluation(0, 0.5, snapshot=True),
            Evaluation(0, -0.5, snapshot=True),
        )
        assert method.estimator.consecutive == (0, 2)

    def test_needs_its_snapshot(self):
        method = zo.mezo_svrg()
        probes = method.propose(method.init(np.ones((3, 2))))
        with pytest.raises(ValueError, match="this step compares with a snapshot"):
            zo.perturb(method, np.ones((3, 2)), probes)

    def test_asking_again_changes_nothing(self, make_backend):
        backend = make_backend("numpy")
        once, often = (zo.Optimizer(started(backend), method=svrg(), seed=3) for _ in range(2))
        for _ in range(6):
            first = [flat(p) for p in often.ask()]
            assert np.array_equal(first, [flat(p) for p in often.ask()])
            told(backend, once)
            told(backend, often)
            assert np.array_equal(flat(once.x), flat(often.x))

    @pytest.mark.parametrize("pending", [False, True])
    @pytest.mark.parametrize("steps", [0, 1, 3, 4])
    @pytest.mark.parametrize("how", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
    def test_copies_go_on_alike(self, backend, how, steps, pending):
        if how is not copy.deepcopy and backend.name.startswith("array_api_strict:"):
            pytest.skip("array_api_strict does not pickle arrays of its second device")
        optimizer = zo.Optimizer(started(backend), method=svrg(), seed=3)
        for _ in range(steps):
            told(backend, optimizer)
        if pending:
            optimizer.ask()
        twin = how(optimizer)
        for _ in range(3):
            assert told(backend, optimizer) == told(backend, twin)
            for name in START:
                found = backend.numpy(twin.x[name])
                assert np.array_equal(backend.numpy(optimizer.x[name]), found)


class TestFailures:
    @pytest.mark.parametrize("failing", [(0,), (0, 1), (2,), (3, 4), (4,), (4, 5, 6), (8, 9)])
    def test_path(self, backend, failing):
        """Nothing changes; a snapshot is tried again, and the next is q steps after it."""
        optimizer = zo.Optimizer(started(backend), method=svrg(), seed=Keyed())
        path, full = formula(14, 2, ETA_1, ETA_2, failing)
        for t, (x, wanted) in enumerate(zip(path, full, strict=True)):
            before = {k: backend.numpy(v).copy() for k, v in optimizer.x.items()}
            assert told(backend, optimizer, failing) == wanted
            after = {k: backend.numpy(v) for k, v in optimizer.x.items()}
            assert np.allclose(flat(after), x, rtol=1e-9, atol=0)
            assert np.array_equal(flat(before), flat(after)) == (t in failing)

    def test_when_snapshots_come(self):
        assert np.flatnonzero(formula(14, 2, ETA_1, ETA_2, (0, 1, 6))[1]).tolist() == [
            *(0, 1, 2),
            *(6, 7),
            11,
        ]

    @pytest.mark.parametrize("bad", range(8))
    def test_one_bad_loss_costs_its_probe(self, make_backend, bad):
        backend = make_backend("numpy")
        optimizer = zo.Optimizer(started(backend), method=svrg(), seed=Keyed())
        told(backend, optimizer)
        x, g = flat(optimizer.x), (flat(START) - flat(optimizer.x)) / ETA_1(0)
        losses = np.arange(8.0) ** 2
        losses[bad] = np.inf
        optimizer.ask()
        optimizer.tell(losses)
        good = 1 - bad % 4 // 2
        rises = (losses[0::2] - losses[1::2])[[good, good + 2]]
        W, b = normal(0, 1, (2, ROWS, COLUMNS)), normal(1, 1, (2, COLUMNS))
        change = (rises[0] - rises[1]) / (2 * MU) * flat({"W": W[good], "b": b[good]})
        assert np.allclose(flat(optimizer.x), x - ETA_2(1) * (change + g), rtol=1e-9)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_overflow_is_a_failure_of_the_snapshot(self, backend, dtype):
        """The driver and the step agree on what counts: finite, but too large for a step."""
        optimizer = zo.Optimizer(started(backend, dtype), method=svrg(), seed=3)
        huge = 1e36 if dtype == "float32" else 1e305
        optimizer.ask()
        optimizer.tell([huge, 0.0, huge, 0.0])
        assert np.array_equal(backend.numpy(optimizer.x["b"]), START["b"].astype(dtype))
        assert optimizer.ask().full_batch
        optimizer.tell([huge, 0.0, 1.0, 0.0])  # one probe is left
        assert not np.array_equal(backend.numpy(optimizer.x["b"]), START["b"].astype(dtype))
        assert not optimizer.ask().full_batch

    def test_in_minimize(self):
        """Every other evaluation fails, so that no probe has both its losses at a snapshot."""
        calls = []

        def flaky(params, *, key):
            calls.append(key)
            return np.nan if len(calls) % 2 else loss(params, key=key)

        result = zo.minimize(flaky, START, method=svrg(), max_queries=101, on_failure="skip")
        assert len(calls) == result.nfev <= 101
        assert set(calls) == {None}  # a snapshot was tried, and tried again
        assert np.array_equal(flat(result.x_last), flat(START))
        assert "evaluations failed, the first with a loss of nan" in result.message


class Counted:
    """A loss that remembers its keys."""

    def __init__(self):
        self.keys = []

    def __call__(self, params, *, key):
        self.keys.append(key)
        return float(loss(params, key=key))


class TestMinimize:
    @pytest.mark.parametrize("form", ["plain", "partial", "vectorized"])
    def test_needs_a_key(self, form):
        calls = []

        def keyless(x):
            calls.append(x)
            return 0.0

        def bound(x, *, key):
            calls.append(x)
            return 0.0

        fun = functools.partial(bound, key=3) if form == "partial" else keyless
        with pytest.raises(TypeError, match=r"mezo_svrg needs .* write fun\(x, \*, key\)"):
            zo.minimize(
                fun,
                np.ones((3, 2)),
                method="mezo-svrg",
                max_queries=50,
                vectorized=form == "vectorized",
            )
        assert calls == []
        zo.minimize(keyless, np.ones((3, 2)), method="mezo", max_queries=4)  # it does not

    @pytest.mark.parametrize("vectorized", [False, True])
    def test_keys(self, vectorized):
        """All data for x0, snapshots and the checks of the result; one batch for each step."""
        fun, stacks = Counted(), []

        def stacked(stack, *, key):
            stacks.append(len(stack["b"]))
            return np.asarray(
                [fun({k: v[i] for k, v in stack.items()}, key=key) for i in range(stacks[-1])]
            )

        result = zo.minimize(
            stacked if vectorized else fun,
            START,
            method=svrg(probes=1),
            max_steps=10,
            seed=5,
            vectorized=vectorized,
        )
        expected = [None]
        for t in range(10):
            expected += [step_key(5, t)] * 4 if t % Q else [None] * 2
        assert fun.keys == [*expected, None, None]
        assert result.nfev == len(fun.keys) == 1 + 3 * 2 + 7 * 4 + 2
        if vectorized:
            assert stacks == [1, *(4 if t % Q else 2 for t in range(10)), 1, 1]

    def test_result_is_checked_on_all_data(self):
        result = zo.minimize(Counted(), START, method=svrg(), max_queries=400, seed=1)
        assert result.fun == loss(result.x, key=None)
        assert result.fun <= loss(result.x_last, key=None)
        assert result.fun < 0.7 * loss(START, key=None)

    def test_target_is_one_of_all_data(self):
        least = loss(START, key=None)
        result = zo.minimize(Counted(), START, method=svrg(), max_queries=5000, target=0.7 * least)
        assert result.status == "target"
        assert result.fun == loss(result.x, key=None) <= 0.7 * least

    @pytest.mark.parametrize("constrained", [False, True])
    @pytest.mark.parametrize("every", [1, 2, 3, 7])
    @pytest.mark.parametrize("probes", [1, 2])
    def test_budget_is_kept_and_spent(self, every, probes, constrained):
        """Against counting step by step: as many steps as fit, and never a query more."""
        method = svrg(snapshot_every=every, probes=probes, learning_rate=1e-4)
        extra = int(constrained)
        costs = [2 * probes + extra if t % every == 0 else 4 * probes + extra for t in range(99)]
        options = {"bounds": (-9.0, 9.0)} if constrained else {}
        for budget in range(costs[0], sum(costs[:12]) + 5):
            fun = Counted()
            result = zo.minimize(fun, START, method=method, max_queries=budget, **options)
            assert result.nfev == len(fun.keys) <= budget
            spare = 3 if budget >= sum(costs[:10]) else int(budget > costs[0])
            # the query for x0 is not made where the first step evaluates it anyway
            reserved = min(spare, 2) if constrained else spare
            steps = 0
            while sum(costs[: steps + 1]) + reserved <= budget:
                steps += 1
            assert result.nit == steps
            queries = np.cumsum(costs[:steps]) + (spare == 3 and not constrained)
            assert np.array_equal(result.history["queries"], queries)

    def test_budget_below_a_step(self):
        text = "max_queries=3 does not pay for one step, which takes 4"
        with pytest.raises(ValueError, match=text):
            zo.minimize(Counted(), START, method=svrg(), max_queries=3)

    def test_budget_when_snapshots_fail(self):
        """Steps then cost other than was planned."""
        for budget in range(2, 70):
            calls = []

            def flaky(params, *, key, calls=calls):
                calls.append(key)
                return np.nan if 5 < len(calls) < 30 and key is None else loss(params, key=key)

            result = zo.minimize(flaky, START, method=svrg(probes=1), max_queries=budget)
            assert result.nfev == len(calls) <= budget

    @pytest.mark.parametrize(
        "costs", [StepCosts(4, 2, 5), StepCosts(4, 2, 1), StepCosts(8, 8, 1), StepCosts(2, 9, 3)]
    )
    def test_costs(self, costs):
        steps = [costs.at_snapshot if t % costs.every == 0 else costs.usual for t in range(40)]
        for count in range(40):
            assert costs.of(count) == sum(steps[:count])
            assert costs.paid_by(sum(steps[:count])) == count
            assert costs.paid_by(sum(steps[: count + 1]) - 1) == count

    def test_horizon_of_a_default_rate(self):
        """A method of one's own with a default rate: it falls to zero over the steps paid for."""

        def normalised(method, momentum):
            rule = Rule(FullSpace(), momentum, Normalized(), Update(None))
            return replace(method, matrices=rule, vectors=rule)

        method = svrg(probes=1)
        at_snapshot = normalised(method.snapshots.method, ExponentialAverage(0.0))
        snapshots = replace(method.snapshots, method=at_snapshot)
        method = replace(normalised(method, ControlVariate()), snapshots=snapshots)
        result = zo.minimize(Counted(), START, method=method, max_queries=3 + 12 * 14 + 2 + 4)
        rate = result.history["learning_rate"]
        assert result.nit == 12 * Q + 2
        assert np.allclose(rate, rate[0] * np.linspace(1, 0, 12 * Q + 3)[:-1])


class TestVariance:
    """What it is for, on least squares whose terms differ in goal and curvature."""

    def test_of_the_estimate(self):
        """Over 500 batches at one iterate and one probe, ten steps after the snapshot."""
        method = svrg(snapshot_every=20, learning_rate=2e-3, probes=1)
        optimizer = zo.Optimizer(START, method=method, seed=0)
        for t in range(10):
            points = optimizer.ask()
            key = None if points.full_batch else t
            optimizer.tell([loss(p, key=key) for p in points])
        points = list(optimizer.ask())
        own, both = [], []
        for key in range(500):
            losses = np.asarray([loss(p, key=key) for p in points])
            own.append((losses[0] - losses[1]) / (2e-2))
            both.append(float(method.estimator.differences(losses)[0]))
        exact = [loss(p, key=None) for p in points]
        # neither is biased: five standard errors, one false alarm in a million
        for found, wanted in (
            (own, (exact[0] - exact[1]) / 2e-2),
            (both, (exact[0] - exact[1] - exact[2] + exact[3]) / 2e-2),
        ):
            assert abs(np.mean(found) - wanted) < 5 * np.std(found) / np.sqrt(500)
        assert np.var(both) < 0.25 * np.var(own)

    def test_against_mezo_at_equal_evaluations(self):
        """Seeds 0 to 4 each; MeZO with any of the rates stays at the noise of its batches.

        The medians above the least loss were 5e-7, and for MeZO 0.04 at best.
        """
        least = loss(least_squares(), key=None)

        def excess(method, queries=3000):
            found = [
                zo.minimize(Counted(), START, method=method, max_queries=queries, seed=seed)
                for seed in range(5)
            ]
            assert all(queries - 10 < r.nfev <= queries for r in found)
            return np.median([loss(r.x_last, key=None) for r in found]) - least

        ours = excess(zo.mezo_svrg(learning_rate=2e-3, snapshot_every=2, smoothing=MU))
        rates = (5e-4, 2e-3, 8e-3)
        theirs = {r: excess(zo.mezo(learning_rate=r, smoothing=MU)) for r in rates}
        assert ours < 1e-3 * min(theirs.values())
        # All data are eight batches: two steps saw 2 * 8 + 4 of them for 6 evaluations.
        rate = min(theirs, key=theirs.get)
        assert ours < 1e-3 * excess(zo.mezo(learning_rate=rate, smoothing=MU), 10_000)


def least_squares():
    """The least point, from the normal equations."""
    rows = MIXING.reshape(-1, ROWS)
    design = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    found = np.linalg.lstsq(design, GOALS.reshape(-1, COLUMNS), rcond=None)[0]
    return {"W": found[:ROWS], "b": found[ROWS]}


class TestDigits:
    def test_end_to_end(self):
        problem = problems.make("digits-noisy")
        keys = []

        def fun(x, *, key):
            keys.append(key)
            return problem.fun(x, key=key)

        method = zo.mezo_svrg(learning_rate=2e-3, snapshot_every=2, probes=4)
        result = zo.minimize(fun, problem.x0, method=method, max_queries=4000)
        assert result.nfev == len(keys) <= 4000
        assert result.fun == float(problem.exact(result.x))
        assert result.fun < 0.9 * problem.initial  # measured 0.84

    def test_the_problem_without_batches_is_refused(self):
        problem = problems.make("digits")
        with pytest.raises(TypeError, match="mezo_svrg needs the loss of one batch"):
            zo.minimize(problem.fun, problem.x0, method="mezo_svrg", max_queries=100)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"snapshot_every": 0}, "snapshot_every must be an integer of at least 1, got 0"),
            ({"snapshot_every": 2.5}, "snapshot_every must be an integer"),
            ({"probes": 0}, "probes must be an integer of at least 1"),
            ({"smoothing": 0.0}, "smoothing must be a positive number"),
            ({"learning_rate": -1.0}, "^learning_rate must be a positive number"),
            ({"full_batch_learning_rate": -1.0}, "^full_batch_learning_rate must be a positive"),
        ],
    )
    def test_bad(self, options, text):
        with pytest.raises(ValueError, match=text):
            zo.mezo_svrg(**options)
