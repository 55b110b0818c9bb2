"""How many directions to step along: slopes by hand, the choice, the length, transport."""

import math

import numpy as np
import pytest

import zomopi_core as zo
from zomopi_core.adaptive_rank import AdaptiveRank, Spectrum

TOLERANCE = {"float32": 2e-4, "float64": 1e-9}
RNG_KEY = 5


def normal_of(backend, dtype="float64"):
    def normal(shape):
        return backend.array(np.random.default_rng(RNG_KEY).standard_normal(shape), dtype)

    return normal


def width_of(shape):
    r, n = shape[-2:]
    return min(max(1, r // 2), r, n)


def ranks_of(shape):
    """k = 1, 2, 4, ... and K."""
    return sorted({k for k in (1, 2, 4, 8, 16, 32) if k <= width_of(shape)} | {width_of(shape)})


class ByHand:
    """The formulas, one matrix at a time, in NumPy and float64."""

    def __init__(self, shape):
        self.width, self.ranks = width_of(shape), ranks_of(shape)
        gauss = np.random.default_rng(RNG_KEY).standard_normal((shape[-1], self.width))
        self.V, self.U = np.linalg.qr(gauss)[0], None
        self.seen = []

    def directions(self, M):
        """Of Frobenius norm 1: those of U and V at the last step, and M."""
        found = [self.U[:, :k] @ self.V[:, :k].T / math.sqrt(k) for k in self.ranks]
        return [*found, M / np.linalg.norm(M)]

    def observe(self, M, G):
        self.seen.append([np.sum(G * D) for D in self.directions(M)])

    def sweep(self, M):
        self.V = np.linalg.qr(M.T @ (M @ self.V))[0]
        image = M @ self.V
        self.U = image / np.linalg.norm(image, axis=0)


def run(backend, shape, gradients, dtype="float64", beta=0.9, part=None):
    """Return part, what it keeps, the momenta and the directions after each estimate."""
    part = part or AdaptiveRank()
    M = np.zeros(shape)
    kept = part.init(backend.array(M, dtype), normal_of(backend, dtype))
    one = backend.xp.ones((), dtype=backend.dtype(dtype), device=backend.device)
    directions, momenta = [], []
    for t, G in enumerate(gradients):
        kept = part.observe(kept, backend.array(M, dtype), backend.array(G, dtype), one)
        M = G if t == 0 else beta * M + (1 - beta) * G
        momenta.append(M)
        found = part.direction(backend.array(M, dtype), kept, normal_of(backend, dtype))
        kept = found.kept
        directions.append(backend.numpy(found.direction))
    return part, kept, momenta, directions


SHAPES = [(6, 5), (1, 7), (7, 1), (1, 1), (4, 9)]


class TestSlopes:
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_are_means_of_inner_products(self, backend, shape, dtype):
        gradients = np.random.default_rng(0).standard_normal((7, *shape))
        _, kept, momenta, _ = run(backend, shape, gradients, dtype)
        hand = ByHand(shape)
        hand.sweep(momenta[0])
        for G, M, after in zip(gradients[1:], momenta, momenta[1:], strict=False):
            hand.observe(M, G)
            hand.sweep(after)
        # the first estimate meets no momentum and has no part in the mean
        expected = np.mean(hand.seen, axis=0)
        assert expected.shape == (len(ranks_of(shape)) + 1,)
        tolerance = TOLERANCE[dtype] * np.max(np.abs(expected))
        assert np.allclose(backend.numpy(kept.slopes), expected, rtol=0, atol=tolerance)
        assert float(backend.numpy(kept.count)) == 7

    def test_batch_is_matrix_by_matrix(self, backend):
        gradients = np.random.default_rng(1).standard_normal((6, 2, 3, 6, 5))
        gradients[:, 0] *= 1e-6  # the scale of one matrix is nothing to another
        # every matrix of a batch must start with the same V to compare
        flat = np.random.default_rng(RNG_KEY).standard_normal((5, 3))

        def normal(shape):
            return backend.array(np.broadcast_to(flat, shape))

        def go(gradients):
            part, M = AdaptiveRank(), np.zeros(gradients.shape[1:])
            kept = part.init(backend.array(M), normal)
            one = backend.array(1.0)
            for G in gradients:
                kept = part.observe(kept, backend.array(M), backend.array(G), one)
                M = 0.8 * M + 0.2 * G
                direction, kept, _ = part.direction(backend.array(M), kept, normal)
            return backend.numpy(direction), backend.numpy(kept.slopes), backend.numpy(kept.choice)

        together = go(gradients)
        for i in range(2):
            for j in range(3):
                for whole, alone in zip(together, go(gradients[:, i, j]), strict=True):
                    assert np.allclose(whole[i, j], alone, rtol=1e-9, atol=1e-18)

    def test_old_estimates_fade(self, make_backend):
        """After many steps an average over 50 of them."""
        shape = (4, 4)
        G = np.diag([1.0, 0.0, 0.0, 0.0])
        G[1, 1] = 0.5
        backend = make_backend("numpy")
        _, before, _, _ = run(backend, shape, [G] * 60)
        after = AdaptiveRank().observe(before, G, -G, np.ones(()))
        hand = ByHand(shape)
        hand.U, hand.V = before.left, before.right
        hand.observe(G, -G)
        expected = before.slopes + (hand.seen[0] - before.slopes) / 50
        assert np.allclose(after.slopes, expected, rtol=1e-9)

    def test_zero_gradient(self, backend):
        part, kept, _, directions = run(backend, (6, 5), np.zeros((3, 6, 5)))
        assert not np.any(backend.numpy(kept.slopes))
        assert all(not np.any(d) for d in directions)
        # M itself stays in use
        choices = len(ranks_of((6, 5))) + 1
        assert backend.numpy(kept.choice).tolist() == [0] * (choices - 1) + [1]
        assert part.rank(kept) == 3

    def test_failed_step_is_not_counted(self, backend):
        _, kept, momenta, _ = run(backend, (6, 5), np.random.default_rng(0).normal(size=(3, 6, 5)))
        M, zeros = backend.array(momenta[-1]), backend.array(np.zeros((6, 5)))
        after = AdaptiveRank().observe(kept, M, zeros, backend.array(0.0))
        assert np.array_equal(backend.numpy(after.slopes), backend.numpy(kept.slopes))
        assert float(backend.numpy(after.count)) == float(backend.numpy(kept.count)) == 3


class TestChoice:
    def kept(self, backend, slopes, choice):
        shape = (8, 8)
        chosen = np.eye(4)[choice]
        return Spectrum(
            backend.array(np.eye(*shape)[:, :4]),
            backend.array(np.eye(*shape)[:, :4]),
            backend.array(slopes),
            backend.array(chosen),
            backend.array(20.0),
        )

    @pytest.mark.parametrize(
        ("slopes", "before", "after"),
        [
            ([1.0, 1.04, 0.5, 0.2], 0, 0),  # 4 % better is not enough
            ([1.0, 1.06, 0.5, 0.2], 0, 1),
            ([1.0, 1.06, 1.2, 0.2], 0, 2),  # the best of all
            ([1.0, 1.04, 0.5, 0.2], 3, 1),
            ([-1.0, -0.97, -2.0, -3.0], 0, 0),
            ([-1.0, -0.94, -2.0, -3.0], 0, 1),
            ([0.0, 0.0, 0.0, 0.0], 2, 2),
            ([0.0, 0.0, 0.0, 1e-300], 0, 3),
            ([1e-20, 1.06e-20, 0.0, 0.0], 0, 1),
        ],
    )
    def test_needs_five_percent(self, backend, slopes, before, after):
        kept = self.kept(backend, slopes, before)
        zeros = backend.array(np.zeros((8, 8)))
        new = AdaptiveRank().observe(kept, zeros, zeros, backend.array(0.0))
        assert backend.numpy(new.choice).tolist() == np.eye(4)[after].tolist()

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("choice", range(4))
    def test_every_direction_has_the_same_length(self, backend, choice, dtype):
        """sqrt(K), and is the one it is called."""
        M = np.random.default_rng(3).standard_normal((8, 6))
        V = np.linalg.qr(np.random.default_rng(4).standard_normal((6, 4)))[0]
        kept = Spectrum(
            backend.array(V, dtype),
            backend.array(np.zeros((8, 4)), dtype),
            backend.array(np.zeros(4), dtype),
            backend.array(np.eye(4)[choice], dtype),
            backend.array(0.0, dtype),
        )
        M_of_backend = backend.array(1e-12 * M, dtype)  # the scale does not matter
        found = AdaptiveRank().direction(M_of_backend, kept, None)
        D = backend.numpy(found.direction)
        assert D.dtype == dtype
        assert np.isclose(np.linalg.norm(D), 2.0, rtol=TOLERANCE[dtype])
        hand = ByHand((8, 6))
        hand.V = V
        hand.sweep(M)
        expected = 2.0 * hand.directions(M)[choice]
        assert np.allclose(D, expected, rtol=0, atol=TOLERANCE[dtype])
        assert AdaptiveRank().squares(M_of_backend, kept) == 4.0

    @pytest.mark.parametrize("seed", range(5))
    def test_few_directions_for_a_gradient_of_rank_one(self, make_backend, seed):
        """A slope of 4 in one direction against noise of deviation 1 in each of 256 entries.

        The momentum of 20 steps keeps 0.16 of the noise, a norm of 2.5 that M itself carries and
        one direction does not: M descends 15 % less. A mean over 50 slopes has the deviation
        0.14, 3.5 %, most of which the directions share.
        """
        rng = np.random.default_rng(seed)
        u, v = (a / np.linalg.norm(a) for a in rng.standard_normal((2, 16)))
        gradients = 4.0 * np.outer(u, v) + rng.standard_normal((250, 16, 16))
        _, kept, _, directions = run(make_backend("numpy"), (16, 16), gradients, beta=0.95)
        assert kept.choice[0] == 1  # of 1, 2, 4, 8 and M
        assert np.sum(directions[-1] * np.outer(u, v)) > 0.8 * math.sqrt(8)

    @pytest.mark.parametrize("seed", range(5))
    def test_momentum_itself_for_a_gradient_of_full_rank(self, make_backend, seed):
        """Half of the directions hold 0.71 of the slope, M nearly all of it."""
        rng = np.random.default_rng(seed)
        Q = np.linalg.qr(rng.standard_normal((16, 16)))[0]
        gradients = Q + 0.2 * rng.standard_normal((250, 16, 16))
        _, kept, _, _ = run(make_backend("numpy"), (16, 16), gradients, beta=0.95)
        assert kept.choice[-1] == 1
        assert kept.slopes[-1] > 1.2 * np.max(kept.slopes[:-1])


class TestRefresh:
    def test_left_vectors_are_carried_over(self, backend):
        """In a rotated frame the slopes of the next estimate are those of the old one."""
        rng = np.random.default_rng(0)
        gradients = rng.standard_normal((4, 6, 5))
        part, kept, momenta, _ = run(backend, (6, 5), gradients)
        L = np.linalg.qr(rng.standard_normal((6, 6)))[0]
        G, one = rng.standard_normal((6, 5)), backend.array(1.0)
        moved = part.refresh(kept, normal_of(backend), backend.array(L))
        a = part.observe(kept, backend.array(momenta[-1]), backend.array(G), one)
        b = part.observe(moved, backend.array(L @ momenta[-1]), backend.array(L @ G), one)
        assert np.allclose(backend.numpy(a.slopes), backend.numpy(b.slopes), atol=1e-12)
        assert not np.allclose(backend.numpy(moved.left), backend.numpy(kept.left))
        assert np.array_equal(backend.numpy(moved.right), backend.numpy(kept.right))

    def test_without_transport(self, backend):
        part, kept, _, _ = run(backend, (6, 5), np.ones((2, 6, 5)))
        assert part.refresh(kept, normal_of(backend)) is kept

    def test_in_a_method(self, backend):
        """A refresh every second step, with r < m: the new frame finds what the old one had."""
        method = zo.zo_mopi(
            learning_rate=0.1, rank=4, spectral_rank="auto", refresh_every=2, probes=2
        )
        state = method.init(backend.array(np.zeros((9, 7))), 0)
        for t in range(6):
            if t and t % 2 == 0:
                before = state.leaves[0]
                state = method.refresh(state)
                after = state.leaves[0]
                carried = backend.numpy(after.frame).T @ backend.numpy(before.frame)
                assert np.allclose(
                    backend.numpy(after.right.left),
                    carried @ backend.numpy(before.right.left),
                    atol=1e-12,
                )
            losses = backend.array(np.random.default_rng(t).standard_normal(4))
            state, _ = method.update(state, losses, method.propose(state))


class TestCompilation:
    def test_jax_compiles_once(self, make_backend):
        backend = make_backend("jax")
        import jax

        part, traced = AdaptiveRank(), []

        @jax.jit
        def step(kept, M, G):
            traced.append(M.dtype)
            kept = part.observe(kept, M, G, jax.numpy.ones((), M.dtype))
            M = 0.9 * M + 0.1 * G
            direction, kept, _ = part.direction(M, kept, None)
            return part.refresh(kept, None, jax.numpy.eye(6, dtype=M.dtype)), M, direction

        for dtype in ("float64", "float32"):
            M = backend.array(np.zeros((6, 5)), dtype)
            kept = part.init(M, normal_of(backend, dtype))
            for t in range(3):
                G = backend.array(np.random.default_rng(t).standard_normal((6, 5)), dtype)
                kept, M, _ = step(kept, M, G)
        assert traced == ["float64", "float32"]
