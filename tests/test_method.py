"""The composition: purity, compilation, what it never does."""

import ast
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zomopi_core as zo
from conftest import Backend

CORE = Path(zo.__file__).parent


def losses_of(method, seed=0):
    return np.random.default_rng(seed).standard_normal(method.evaluations_per_step)


def run(method, x, fun, steps, seed=0, backend=None):
    """Drive the pure functions; return the parameters after each step."""
    backend = backend or Backend("numpy", np)
    state = method.init(x, seed)
    path = []
    for t in range(steps):
        if t > 0 and t % method.refresh_every == 0:
            state = method.refresh(state)
        probes = method.propose(state)
        losses = np.asarray([fun(p) for p in zo.perturb(method, x, probes)])
        state, step = method.update(state, losses, probes)
        x = zo.apply_step(x, step)
        path.append(x)
    return path


def count_compilations(jax, caplog, function):
    with jax.log_compiles(), caplog.at_level("WARNING"):
        caplog.clear()
        function()
    names = [r.getMessage() for r in caplog.records if "Finished XLA" in r.getMessage()]
    return len([name for name in names if "precise" in name])


class TestPurity:
    def test_update_without_probes_draws_them_again(self, backend):
        method = zo.zo_mopi(rank=3, probes=2)
        x = {"W": backend.array(np.ones((5, 4))), "b": backend.array(np.ones(3))}
        state = method.init(x)
        given_, drawn = (
            method.update(state, losses_of(method), probes)
            for probes in (method.propose(state), None)
        )
        for a, b in zip(given_[0].leaves, drawn[0].leaves, strict=True):
            assert np.array_equal(backend.numpy(a.momentum), backend.numpy(b.momentum))

    def test_states_are_not_changed(self):
        method = zo.zo_mopi(rank=3, probes=2)
        x = np.ones((5, 4))
        state = method.init(x)
        copies = [np.array(a) for a in state.leaves[0] if a is not None]
        for array in state.leaves[0]:
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
        probes = method.propose(state)
        for p in probes:
            p.right.flags.writeable = False
        new, step = method.update(state, losses_of(method), probes)
        method.refresh(new)
        zo.apply_step(x, step)
        list(zo.perturb(method, x, probes))
        assert np.array_equal(x, np.ones((5, 4)))
        now = [a for a in state.leaves[0] if a is not None]
        assert all(np.array_equal(a, b) for a, b in zip(copies, now, strict=True))

    def test_same_seed_same_bits(self, backend):
        def path(seed):
            optimizer = zo.Optimizer(
                {"W": backend.array(np.ones((6, 4))), "b": backend.array(np.ones(3))},
                method=zo.zo_mopi(rank=3, refresh_every=2),
                seed=seed,
            )
            for t in range(5):
                optimizer.ask()
                optimizer.tell(losses_of(optimizer.method, t))
            return [backend.numpy(v).tobytes() for v in optimizer.x.values()]

        assert path(1) == path(1)
        assert path(1) != path(2)


class TestCompilation:
    @pytest.fixture
    def jax(self, make_backend):
        make_backend("jax")
        import jax

        return jax

    def test_propose_and_update_compile_once(self, jax):
        method = zo.zo_mopi(
            rank=3, probes=2, refresh_every=3, learning_rate=zo.cosine_decay(0.1, 50, warmup=4)
        )
        traces = {"propose": 0, "update": 0}

        def counted(name, function):
            def wrapped(*args):
                traces[name] += 1
                return function(*args)

            return jax.jit(wrapped)

        propose = counted("propose", method.propose)
        update = counted("update", method.update)
        x = {"W": jax.numpy.ones((6, 4)), "b": jax.numpy.ones(3)}
        state = method.init(x)
        plain = state
        for t in range(7):
            if t > 0 and t % 3 == 0:
                state, plain = method.refresh(state), method.refresh(plain)
            losses = jax.numpy.asarray(losses_of(method, t))
            state, step = update(state, losses, propose(state))
            plain, expected = method.update(plain, losses, method.propose(plain))
            for a, b in zip(step, expected, strict=True):
                assert np.allclose(a.right, b.right, rtol=1e-9, atol=1e-12)
        assert traces == {"propose": 1, "update": 1}

    def test_refresh_compiles_once(self, jax):
        """Leaves of one shape, which are refreshed as a stack, and one of another."""
        method = zo.zo_mopi(rank=3, probes=2, learning_rate=0.1)
        traces = []

        @jax.jit
        def refresh(state):
            traces.append(state)
            return method.refresh(state)

        x = {"V": jax.numpy.ones((6, 4)), "W": jax.numpy.ones((6, 4)), "X": jax.numpy.ones((5, 4))}
        state, _ = method.update(method.init(x), losses_of(method))
        for step in (100, 200):
            state = state._replace(step=step)
            expected, found = method.refresh(state), refresh(state)
            for a, b in zip(expected.leaves, found.leaves, strict=True):
                np.testing.assert_allclose(b.frame, a.frame, rtol=0, atol=1e-12)
                np.testing.assert_allclose(b.momentum, a.momentum, rtol=1e-9)
            state = found
        assert len(traces) == 1

    def test_runs_inside_scan(self, jax):
        target = np.outer(np.arange(6.0), np.ones(4)) / 6
        method = zo.zo_mopi(rank=6, probes=4, learning_rate=zo.linear_decay(0.1, 200))

        def body(carry, _):
            x, state = carry
            probes = method.propose(state)
            losses = jax.numpy.stack(
                [jax.numpy.sum((p - target) ** 2) for p in zo.perturb(method, x, probes)]
            )
            state, step = method.update(state, losses, probes)
            return (zo.apply_step(x, step), state), jax.numpy.mean(losses)

        x = jax.numpy.zeros((6, 4))
        _, losses = jax.lax.scan(body, (x, method.init(x)), length=200)
        assert losses[-1] < 0.05 * losses[0]

    def test_optimizer_compiles_once_for_all_seeds(self, jax, caplog):
        method = zo.zo_mopi(rank=3, probes=2, refresh_every=3, learning_rate=0.1)

        def go(seed):
            optimizer = zo.Optimizer(jax.numpy.ones((6, 4)), method=method, seed=seed)
            for t in range(7):
                list(optimizer.ask())
                optimizer.tell(losses_of(method, t).tolist())

        assert count_compilations(jax, caplog, lambda: go(0)) > 0
        assert count_compilations(jax, caplog, lambda: go(1)) == 0

    def test_minimize_compiles_once(self, jax, caplog):
        def go(seed, queries):
            zo.minimize(
                lambda x: float(np.sum(np.asarray(x))),
                jax.numpy.ones((7, 4)),
                max_queries=queries,
                seed=seed,
            )

        assert count_compilations(jax, caplog, lambda: go(0, 50)) > 0
        assert count_compilations(jax, caplog, lambda: go(1, 50)) == 0
        assert count_compilations(jax, caplog, lambda: go(0, 100)) == 0
        # long enough to be tuned
        assert count_compilations(jax, caplog, lambda: go(0, 400)) > 0
        assert count_compilations(jax, caplog, lambda: go(1, 400)) == 0
        assert count_compilations(jax, caplog, lambda: go(0, 500)) == 0

    def test_schedule_may_be_any_function(self, jax):
        """The driver asks it on the host; nothing of it is traced."""
        rates = [lambda t: 0.1 if t < 3 else 0.01, lambda t: 0.1 * math.exp(-t / 10)]
        for rate in rates:
            result = zo.minimize(
                lambda x: float(np.sum(np.asarray(x))),
                jax.numpy.ones((5, 4)),
                method=zo.zo_mopi(learning_rate=rate, vector_learning_rate=rate),
                max_queries=100,
            )
            assert result.fun < 20

    def test_products_keep_the_digits_of_float32(self, jax):
        method = zo.zo_mopi(rank=3)
        x = jax.numpy.ones((6, 4), dtype="float32")
        optimizer = zo.Optimizer(x, method=method)
        probes = method.propose(optimizer.state)
        lowered = optimizer._stepper.advance.lower(
            optimizer.state._replace(random=None), np.zeros(4), probes, (0.1, 0.1)
        ).as_text()
        assert "dot_general" in lowered
        assert "precision = [DEFAULT, DEFAULT]" not in lowered


class TestNoSynchronisation:
    def test_meta_tensors_pass(self):
        """Meta tensors hold no numbers: reading one, on a GPU a wait for it, raises."""
        torch = pytest.importorskip("torch", reason="torch is not installed")

        class Sampler:
            def normal(self, draw, shape, *, dtype, device):
                return torch.empty(shape, dtype=dtype, device=device)

        for difference in ("central", "forward", "leave-one-out"):
            method = zo.zo_mopi(rank=3, probes=2, difference=difference, weight_decay=0.1)
            x = {
                "W": torch.empty((6, 4), device="meta"),
                "b": torch.empty(3, device="meta", dtype=torch.float64),
            }
            state = method.init(x, Sampler())
            for _ in range(2):
                probes = method.propose(state)
                losses = torch.empty(method.evaluations_per_step, device="meta")
                state, step = method.update(state, losses, probes)
                x = zo.apply_step(x, step)
            assert x["W"].device.type == "meta"
            with pytest.raises(RuntimeError):
                bool(x["W"].sum() > 0)  # the control


class TestScale:
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("refresh", ["anchored", "haar"])
    def test_scale_of_the_function_does_not_matter(self, backend, dtype, refresh):
        rng = np.random.default_rng(0)
        target = rng.standard_normal((6, 5))

        def path(scale):
            method = zo.zo_mopi(rank=3, probes=2, refresh=refresh, refresh_every=2)
            optimizer = zo.Optimizer(
                {"W": backend.array(np.zeros((6, 5)), dtype), "b": backend.array([0.5], dtype)},
                method=method,
            )
            for _ in range(5):
                losses = [
                    float(
                        np.sum((backend.numpy(p["W"]).astype(float) - target) ** 2)
                        + backend.numpy(p["b"]).astype(float)[0] ** 4
                    )
                    for p in optimizer.ask()
                ]
                optimizer.tell([scale * v for v in losses])
            return [backend.numpy(v) for v in optimizer.x.values()]

        reference = path(1.0)
        # powers of two change no mantissa: the same bits
        for scale in (2.0**-66, 2.0**66):
            for a, b in zip(path(scale), reference, strict=True):
                assert np.array_equal(a, b)
        # others round: a few units in the last place of a path of size 0.05
        for scale in (1e-20, 1e20):
            for a, b in zip(path(scale), reference, strict=True):
                assert np.allclose(a, b, atol=1e-4 if dtype == "float32" else 1e-12)

    @pytest.mark.parametrize("loss", [1e300, 5e35, 1e31])
    def test_overflowing_coefficients_are_dropped_not_spread(self, backend, loss):
        """A coefficient may be finite where its product with a probe is not."""
        method = zo.zo_mopi(rank=2, probes=1)
        x = backend.array(np.zeros((3, 3)), "float32")
        state, (change,) = method.update(method.init(x), np.array([loss, 0.0]))
        assert np.all(np.isfinite(backend.numpy(state.leaves[0].momentum)))
        assert float(change.scale) == 0

    @pytest.mark.parametrize("order", ["ab", "ba"])
    def test_precisions_of_leaves_do_not_meet(self, order):
        """float64 stays float64 beside float32, and the narrower one is not poisoned."""
        x = {order[0]: np.zeros((3, 3)), order[1]: np.zeros((3, 3), "float32")}
        method = zo.zo_mopi(rank=3, probes=2, momentum=0.0)
        state = method.init(x)
        losses = np.array([1 / 3, 0.1, 0.7, 0.2])
        new, _ = method.update(state, losses)
        wide = 0 if order == "ab" else 1
        B = method.propose(state)[wide].coordinates
        c = (losses[::2] - losses[1::2]) / 2e-3
        expected = (c[0] * B[0] + c[1] * B[1]) / 2
        assert np.allclose(new.leaves[wide].momentum, expected, rtol=1e-14)
        new, changes = method.update(state, losses * 1e40)
        for leaf, change in zip(new.leaves, changes, strict=True):
            assert np.all(np.isfinite(leaf.momentum))
            assert float(change.scale) == 0

    def test_longdouble_is_worked_on_in_float64(self):
        x = np.ones((3, 3), dtype=np.longdouble) + np.longdouble(1e-12)
        optimizer = zo.Optimizer(x, method=zo.zo_mopi(learning_rate=1e-30))
        optimizer.tell(np.arange(float(len(optimizer.ask()))))
        assert optimizer.state.leaves[0].momentum.dtype == np.float64
        assert np.max(np.abs(optimizer.x - x)) < 1e-25


class TestFailures:
    def test_step_without_a_valid_probe_changes_nothing(self, backend):
        method = zo.zo_mopi(rank=3, probes=2, weight_decay=0.1, learning_rate=0.1)
        x = {"W": backend.array(np.ones((6, 4))), "b": backend.array(np.ones(3))}
        state, step = method.update(method.init(x), losses_of(method))
        x = zo.apply_step(x, step)
        after, step = method.update(state, np.full(4, np.nan))
        moved = zo.apply_step(x, step)
        assert after.step == state.step + 1
        for a, b in zip(after.leaves, state.leaves, strict=True):
            for u, v in zip(a, b, strict=True):
                assert (u is None and v is None) or np.array_equal(
                    backend.numpy(u), backend.numpy(v)
                )
        for name in x:
            assert np.array_equal(backend.numpy(moved[name]), backend.numpy(x[name]))

    def test_failures_before_the_first_estimate(self):
        """The first estimate becomes the momentum, at whichever step it comes."""
        method = zo.zo_mopi(rank=3, probes=2)
        x = np.ones((6, 4))
        state, _ = method.update(method.init(x), np.full(4, np.nan))
        probes = method.propose(state)
        losses = losses_of(method)
        late, _ = method.update(state, losses, probes)
        weighted = method.estimator.weigh(method.estimator.differences(losses))
        gradient = method.estimator.gradient(weighted, probes[0].right)
        assert np.array_equal(late.leaves[0].momentum, gradient)

    def test_constant_function(self, backend):
        x = {"W": backend.array(np.ones((4, 3))), "b": backend.array(np.ones(2))}
        method = zo.zo_mopi(refresh_every=2, learning_rate=0.5, rank=2)
        optimizer = zo.Optimizer(x, method=method)
        for _ in range(5):
            optimizer.tell([7.0] * len(optimizer.ask()))
        for name, value in optimizer.x.items():
            assert np.array_equal(backend.numpy(value), np.ones(x[name].shape))


class TestLeaves:
    def test_vectors_follow_their_formula(self, backend):
        """M as for matrices, step eta_v sqrt(d) M / norm(M)."""
        method = zo.zo_mopi(probes=3, momentum=0.7, vector_learning_rate=0.2)
        b = np.arange(4.0)
        state = method.init({"b": backend.array(b)})
        M = None
        for t in range(3):
            probes = method.propose(state)
            Z = backend.numpy(probes[0].right)
            losses = losses_of(method, t)
            c = (losses[::2] - losses[1::2]) / 2e-3
            G = np.mean(c[:, None] * Z, axis=0)
            M = G if M is None else 0.7 * M + 0.3 * G
            state, step = method.update(state, losses, probes)
            expected = b - 0.2 * 2.0 * M / np.linalg.norm(M)
            found = zo.apply_step({"b": backend.array(b)}, step)["b"]
            assert np.allclose(backend.numpy(found), expected, rtol=1e-12)
            b = expected

    def test_all_leaves_share_the_coefficients(self):
        method = zo.zo_mopi(probes=2, rank=2)
        x = {"W": np.zeros((3, 4)), "b": np.zeros(2)}
        state = method.init(x)
        probes = method.propose(state)
        plus = zo.perturb(method, x, probes)[0]
        assert np.allclose(plus["W"], 1e-3 * state.leaves[0].frame @ probes[0].right[0])
        assert np.allclose(plus["b"], 1e-3 * probes[1].right[0])

    def test_scalar_leaf(self, backend):
        optimizer = zo.Optimizer(
            backend.array(5.0), method=zo.zo_mopi(vector_learning_rate=0.5, momentum=0.0)
        )
        for _ in range(10):
            optimizer.tell([float(backend.numpy(p)) ** 2 for p in optimizer.ask()])
        assert abs(float(backend.numpy(optimizer.x))) < 1
        assert type(optimizer.x) is type(backend.array(5.0))
        assert type(optimizer.ask()[0]) is type(backend.array(5.0))

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_more_axes_are_first_and_rest(self, side):
        x = np.random.default_rng(0).standard_normal((6, 3, 4))
        method = zo.zo_mopi(rank=3, side=side, learning_rate=0.1)
        tensor = run(method, x, lambda p: np.sum(p**4), 3)
        matrix = run(method, x.reshape(6, 12), lambda p: np.sum(p**4), 3)
        assert np.array_equal(tensor[-1].reshape(6, 12), matrix[-1])

    def test_stacked_is_a_batch_of_matrices(self, backend):
        """Each matrix of the stack takes the step it would take alone with its draws."""
        method = zo.zo_mopi(rank=2, probes=2, stacked=True, learning_rate=0.1, refresh_every=2)
        x = np.random.default_rng(0).standard_normal((3, 5, 4))
        state = method.init(backend.array(x))
        for t in range(4):
            if t == 2:
                old, state = state, method.refresh(state)
                A, B = (backend.numpy(s.leaves[0].frame) for s in (old, state))
                M, N = (backend.numpy(s.leaves[0].momentum) for s in (old, state))
                assert np.allclose(N, np.swapaxes(B, 1, 2) @ A @ M)
            probes = method.propose(state)
            before = state
            state, (change,) = method.update(state, losses_of(method, t), probes)
        M, V = (backend.numpy(a) for a in (state.leaves[0].momentum, before.leaves[0].right))
        for i in range(3):
            U, W = zo.streaming_power_iteration(M[i], V[i])
            assert np.allclose(backend.numpy(change.right)[i], U @ W.T, atol=1e-10)

    def test_right_side_is_the_left_side_transposed(self, backend):
        x = np.random.default_rng(0).standard_normal((5, 7))
        left = run(zo.zo_mopi(rank=3, learning_rate=0.1, refresh_every=2), x.T, np.sum, 5)
        method = zo.zo_mopi(rank=3, learning_rate=0.1, refresh_every=2, side="right")
        right = run(method, x, np.sum, 5)
        assert np.allclose(left[-1].T, right[-1])

    @given(
        m=st.integers(1, 9),
        n=st.integers(1, 9),
        rank=st.integers(1, 12),
        k=st.one_of(st.none(), st.integers(1, 12)),
        probes=st.integers(1, 3),
        difference=st.sampled_from(["central", "forward", "leave-one-out"]),
        side=st.sampled_from(["left", "right"]),
        dtype=st.sampled_from(["float32", "float64"]),
        kind=st.sampled_from(["random", "constant", "nan"]),
    )
    @settings(max_examples=150, deadline=None)
    def test_any_shape_stays_finite(self, m, n, rank, k, probes, difference, side, dtype, kind):
        method = zo.zo_mopi(
            rank=rank,
            spectral_rank=k,
            probes=max(probes, 2 if difference == "leave-one-out" else 1),
            difference=difference,
            side=side,
            refresh_every=2,
            learning_rate=0.1,
        )
        x = np.ones((m, n), dtype=dtype)
        rng = np.random.default_rng(0)
        value = {"random": rng.standard_normal, "constant": lambda: 1.0, "nan": lambda: np.nan}
        path = run(method, x, lambda p: value[kind](), 5)
        assert path[-1].dtype == dtype
        assert np.all(np.isfinite(path[-1]))
        if kind != "random":
            assert np.array_equal(path[-1], x)
        else:
            rows = m if side == "left" else n
            r = min(rank, rows)
            k = min(k or max(1, r // 2), r, n if side == "left" else m)
            steps = np.diff(np.stack([x, *path]), axis=0)
            # spectral norm at most eta, Frobenius norm at most eta sqrt(k)
            norms = np.linalg.norm(steps.astype(float), axis=(1, 2))
            assert np.all(norms < 0.1 * np.sqrt(k) * 1.001)

    def test_mixed_precisions(self):
        params = {"a": np.zeros((3, 3), np.float32), "b": np.zeros((3, 3)), "c": np.zeros(2, "f4")}
        optimizer = zo.Optimizer(params, method=zo.zo_mopi(rank=2))
        for t in range(3):
            optimizer.ask()
            optimizer.tell(losses_of(optimizer.method, t))
        assert [x.dtype.name for x in optimizer.x.values()] == ["float32", "float64", "float32"]

    def test_weight_decay_of_vectors(self):
        x = {"b": np.arange(1.0, 5.0)}

        def step(decay):
            method = zo.zo_mopi(vector_learning_rate=0.1, weight_decay=decay, probes=1)
            optimizer = zo.Optimizer(x, method=method)
            optimizer.ask()
            optimizer.tell([1.0, 0.0])
            return optimizer.x["b"]

        assert np.allclose(step(0.5), step(0.0) - 0.05 * x["b"])

    def test_16_bit_parameters_with_decay_are_rounded_once(self):
        torch = pytest.importorskip("torch", reason="torch is not installed")
        x = torch.linspace(1, 2, 600).to(torch.bfloat16).reshape(30, 20)
        method = zo.zo_mopi(learning_rate=0.3, weight_decay=0.01, rank=3, probes=1)
        _, (change,) = method.update(method.init(x), np.array([1.0, 0.0]))
        wide = x.float() * (1 - 0.003) + change.scale * (change.left @ change.right)
        assert torch.equal(zo.apply_step(x, (change,)), wide.to(torch.bfloat16))

    def test_default_rate_of_a_stack_is_that_of_its_matrices(self):
        def rms(x, stacked):
            optimizer = zo.Optimizer(x, method=zo.zo_mopi(rank=4, stacked=stacked, probes=2))
            optimizer.ask()
            optimizer.tell([1.0, 0.0, 2.0, 0.5])
            return np.sqrt(np.mean((optimizer.x - x) ** 2))

        one = np.random.default_rng(0).standard_normal((6, 5))
        assert np.isclose(rms(one, False), rms(np.stack([one] * 7), True), rtol=1e-9)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_16_bit_parameters_are_worked_on_in_32(self, dtype):
        torch = pytest.importorskip("torch", reason="torch is not installed")
        x = torch.ones((8, 6), dtype=getattr(torch, dtype))
        method = zo.zo_mopi(rank=3, learning_rate=1.0, smoothing=0.1)
        optimizer = zo.Optimizer({"W": x, "b": x[0]}, method=method)
        for _ in range(3):
            optimizer.tell([p["W"].float().sum() + p["b"].sum() for p in optimizer.ask()])
        assert optimizer.x["W"].dtype == x.dtype
        assert optimizer.state.leaves[0].momentum.dtype == torch.float32
        assert float(optimizer.x["W"].float().sum()) < float(x.float().sum())


class TestDraws:
    def test_leaves_have_draws_of_their_own(self):
        """Two arrays of one shape share no frame, no probe and no right vectors."""
        method = zo.zo_mopi(rank=2)
        state = method.init({"a": np.zeros((5, 4)), "b": np.zeros((5, 4))})
        a, b = state.leaves
        assert not np.allclose(a.frame, b.frame)
        assert not np.allclose(a.right, b.right)
        p, q = method.propose(state)
        assert not np.allclose(p.coordinates, q.coordinates)
        later = method.refresh(state._replace(step=7))
        assert not np.allclose(later.leaves[0].frame, later.leaves[1].frame)
        assert not np.allclose(later.leaves[0].frame, a.frame)

    @given(seed=st.integers(0, 2**64 - 1), step=st.integers(0, 2**40))
    @settings(max_examples=30, deadline=None)
    def test_same_bits_for_any_key(self, seed, step):
        method = zo.zo_mopi(rank=2)
        x = np.zeros((4, 3))
        a, b = (method.propose(method.init(x, seed)._replace(step=step)) for _ in range(2))
        assert np.array_equal(a[0].coordinates, b[0].coordinates)


class TestDrawGranularity:
    def test_block_and_single_draws_differ_and_are_recorded(self):
        block = zo.zo_mopi(rank=2)
        single = dataclasses.replace(block, block=False)
        assert (block.block, single.block) == (True, False)
        x = np.zeros((4, 3))
        a, b = (m.propose(m.init(x))[0].right for m in (block, single))
        assert a.shape == b.shape
        assert not np.array_equal(a, b)


def test_only_two_modules_name_a_library():
    """Outside `_arrays` and `sampling` nothing imports or asks for a library by name."""
    names = {"torch", "cupy", "jax", "array_api_compat", "array_api_strict", "cuda"}
    offenders = []
    for file in CORE.rglob("*.py"):
        if file.relative_to(CORE).parts[0] in {"_arrays", "sampling.py"}:
            continue
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                modules = [node.value]
            offenders += [
                f"{file.name}: {m}" for m in modules if m.split(".")[0].split(":")[0] in names
            ]
    assert offenders == []
