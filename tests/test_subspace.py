"""Frames, their refresh, and the momentum that is carried over."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zomopi_core as zo
from zomopi_core.sampling import Randomness
from zomopi_core.subspace import FullSpace, Sketch, leading_left_vectors, orthonormal_frame

EPS = {"float32": 1.2e-7, "float64": 2.3e-16}


def low_rank_momentum(rng, r, n, rank):
    return rng.standard_normal((r, rank)) @ rng.standard_normal((rank, n))


def refreshed(sketch, frame, momentum, step=5, k=None, seed=0):
    random = Randomness(seed, frame)
    return sketch.refresh(random, 0, step, frame, momentum, k)


def start(sketch, x, seed=0):
    return sketch.init(Randomness(seed, x), 0, x)


class TestFrame:
    def test_sign_rule(self, backend):
        matrix = np.random.default_rng(0).standard_normal((7, 4))
        q = backend.numpy(orthonormal_frame(backend.array(matrix)))
        r = q.T @ matrix
        assert np.all(np.diag(r) > 0)
        assert np.allclose(np.tril(r, -1), 0, atol=1e-12)

    @given(
        m=st.integers(1, 40),
        n=st.integers(1, 20),
        rank=st.integers(1, 50),
        dtype=st.sampled_from(["float32", "float64"]),
        refresh=st.sampled_from(["anchored", "haar"]),
        side=st.sampled_from(["left", "right"]),
        batch=st.sampled_from([(), (3,), (2, 2)]),
        seed=st.integers(0, 2**32),
    )
    @settings(max_examples=150, deadline=None)
    def test_orthonormal_after_every_refresh(self, m, n, rank, dtype, refresh, side, batch, seed):
        sketch = Sketch(rank, refresh, side=side, stacked=True)
        x = np.zeros((*batch, m, n), dtype=dtype)
        frame = start(sketch, x, seed)
        shape = sketch.coordinate_shape(x.shape)
        rng = np.random.default_rng(seed)
        for step in range(1, 4):
            momentum = rng.standard_normal(shape).astype(dtype)
            frame, _ = refreshed(sketch, frame, momentum, step, k=min(shape[-2:]), seed=seed)
            gram = np.swapaxes(frame, -1, -2) @ frame
            # Householder QR is orthonormal to a small multiple of sqrt(m r) eps; measured: 8 eps
            assert np.max(np.abs(gram - np.eye(gram.shape[-1]))) < 60 * EPS[dtype]
            assert frame.dtype == dtype
            assert frame.shape[-1] == min(rank, m if side == "left" else n)

    def test_haar_moments(self):
        m, r, count = 5, 3, 4000
        sketch = Sketch(r, "haar")
        x = np.zeros((m, 4))
        frames = np.stack([start(sketch, x, seed) for seed in range(count)])
        # Haar: mean 0, E A_ij A_kl = delta_ik delta_jl / m, E A_ij^4 = 3 / (m (m + 2)). Five
        # standard deviations over 15 + 225 + 15 numbers: a false alarm in 7,000 choices of seed.
        entry = 1 / m
        assert np.max(np.abs(frames.mean(0))) < 5 * np.sqrt(entry / count)
        flat = frames.reshape(count, -1)
        second = flat.T @ flat / count
        assert np.max(np.abs(second - np.eye(m * r) / m)) < 5 * np.sqrt(3 / (m * (m + 2)) / count)
        fourth = np.mean(frames**4, axis=0)
        assert np.max(np.abs(fourth - 3 / (m * (m + 2)))) < 5 * np.sqrt(
            105 / (m * (m + 2) * (m + 4) * (m + 6)) / count
        )

    def test_without_sign_rule_is_not_haar(self):
        """The control: the bare Q-factor has a mean, which the moments above would show."""
        rng = np.random.default_rng(0)
        frames = np.stack([np.linalg.qr(rng.standard_normal((5, 3)))[0] for _ in range(4000)])
        assert np.max(np.abs(frames.mean(0))) > 5 * np.sqrt(1 / 5 / 4000)


class TestAnchoredRefresh:
    def test_keeps_top_of_momentum_exactly(self, backend):
        rng = np.random.default_rng(1)
        sketch = Sketch(6)
        x = backend.array(np.zeros((20, 9)))
        frame = start(sketch, x)
        # three strong directions, the rest 1e-3 of them
        momentum = low_rank_momentum(rng, 6, 9, 3) + 1e-3 * rng.standard_normal((6, 9))
        new, transport = refreshed(sketch, frame, backend.array(momentum), k=3)
        u, s, vt = np.linalg.svd(momentum)
        top = u[:, :3] @ np.diag(s[:3]) @ vt[:3]
        dense = backend.numpy(frame) @ top
        carried = backend.numpy(new) @ (backend.numpy(transport) @ top)
        assert np.max(np.abs(carried - dense)) < 1e-12 * np.max(np.abs(dense))

    @given(
        m=st.integers(4, 40),
        n=st.integers(1, 20),
        rank=st.integers(2, 12),
        k=st.integers(1, 12),
        dtype=st.sampled_from(["float32", "float64"]),
        seed=st.integers(0, 2**32),
    )
    @settings(max_examples=100, deadline=None)
    def test_top_is_kept_and_the_rest_moves(self, m, n, rank, k, dtype, seed):
        """For any shape: a = min(k, r // 2, n) directions stay exactly, and no others do."""
        rank = min(rank, m - 2)
        k = min(k, rank, n)
        anchors = min(k, rank // 2)
        rng = np.random.default_rng(seed)
        u, _, vt = np.linalg.svd(rng.standard_normal((rank, n)), full_matrices=False)
        s = np.linspace(2.0, 1.0, u.shape[1])
        momentum = ((u * s) @ vt).astype(dtype)
        sketch = Sketch(rank)
        frame = start(sketch, np.zeros((m, n), dtype), seed)
        new, transport = refreshed(sketch, frame, momentum, k=k, seed=seed)
        top = (u[:, :anchors] * s[:anchors]) @ vt[:anchors]
        kept = new @ (transport @ top) - frame @ top
        # the gap between singular values is 1 / r at least, and rounding grows with its inverse
        assert np.max(np.abs(kept)) < 2e3 * EPS[dtype]
        overlap = np.linalg.svd((new.T @ frame).astype(float), compute_uv=False)
        # two random subspaces of R^m share no direction: the rest has moved
        assert np.sum(overlap > 1 - 1e-9 if dtype == "float64" else overlap > 1 - 1e-5) <= max(
            anchors, 2 * rank - m
        )

    def test_haar_loses_most_of_it(self):
        """The control: sqrt(r / m) of the momentum is left, in the mean, after a Haar refresh."""
        rng = np.random.default_rng(1)
        x = np.zeros((60, 9))
        momentum = rng.standard_normal((6, 9))
        left = []
        for seed in range(200):
            sketch = Sketch(6, "haar")
            frame = start(sketch, x, seed)
            _, transport = refreshed(sketch, frame, momentum, seed=seed)
            left.append(np.sum((transport @ momentum) ** 2) / np.sum(momentum**2))
        assert abs(np.mean(left) - 6 / 60) < 5 * np.std(left) / np.sqrt(200)

    def test_subspace_still_moves_when_k_is_r(self):
        sketch = Sketch(6)
        x = np.zeros((30, 9))
        frame = start(sketch, x)
        momentum = np.random.default_rng(2).standard_normal((6, 9))
        new, _ = refreshed(sketch, frame, momentum, k=6)
        overlap = np.linalg.svd(new.T @ frame, compute_uv=False)
        assert np.allclose(overlap[:3], 1)
        assert np.all(overlap[3:] < 0.9)

    def test_anchor_rank_of_its_own(self):
        sketch = Sketch(6, anchor_rank=1)
        x = np.zeros((40, 9))
        frame = start(sketch, x)
        new, _ = refreshed(sketch, frame, np.random.default_rng(2).standard_normal((6, 9)), k=6)
        overlap = np.linalg.svd(new.T @ frame, compute_uv=False)
        assert np.isclose(overlap[0], 1)
        assert overlap[1] < 0.99

    @pytest.mark.parametrize("rank_of_momentum", [0, 1])
    def test_missing_directions_are_replaced_by_gaussian_ones(self, backend, rank_of_momentum):
        rng = np.random.default_rng(3)
        momentum = low_rank_momentum(rng, 6, 9, 1) * rank_of_momentum
        sketch = Sketch(6)
        frame = start(sketch, backend.array(np.zeros((40, 9))))
        new, _ = refreshed(sketch, frame, backend.array(momentum), k=4)
        overlap = np.linalg.svd(backend.numpy(new).T @ backend.numpy(frame), compute_uv=False)
        assert np.sum(overlap > 1 - 1e-9) == rank_of_momentum
        assert np.all(np.isfinite(backend.numpy(new)))

    def test_leading_vectors_have_their_largest_entry_positive(self, backend):
        momentum = np.random.default_rng(4).standard_normal((5, 8))
        u, present = leading_left_vectors(backend.array(momentum), 3)
        u = backend.numpy(u)
        assert np.all(u[np.argmax(np.abs(u), axis=0), np.arange(3)] > 0)
        assert np.all(backend.numpy(present))
        reference = np.linalg.svd(momentum)[0][:, :3]
        assert np.allclose(np.abs(u), np.abs(reference))

    def test_scale_of_momentum_does_not_matter(self):
        sketch = Sketch(4)
        x = np.zeros((12, 9), dtype=np.float32)
        frame = start(sketch, x)
        momentum = np.random.default_rng(5).standard_normal((4, 9)).astype(np.float32)
        results = [
            refreshed(sketch, frame, momentum * np.float32(s), k=2)[0] for s in (1, 2**60, 2**-60)
        ]
        assert np.array_equal(results[0], results[1])
        assert np.array_equal(results[0], results[2])


class TestShapes:
    def test_square_frame_is_never_refreshed(self):
        sketch = Sketch(64)
        x = np.zeros((5, 7))
        frame = start(sketch, x)
        assert frame.shape == (5, 5)
        new, transport = refreshed(sketch, frame, np.ones((5, 7)))
        assert new is frame
        assert transport is None

    def test_right_side_is_the_left_side_of_the_transpose(self):
        left, right = Sketch(3), Sketch(3, side="right")
        a, b = start(left, np.zeros((8, 5))), start(right, np.zeros((5, 8)))
        assert np.array_equal(a, b)
        coordinates = np.random.default_rng(0).standard_normal((4, 3, 5))
        p = zo.rule.Probe(*left.factors(a, coordinates), coordinates)
        q = zo.rule.Probe(*right.factors(b, coordinates), coordinates)
        for i in range(4):
            dense = [np.matmul(*probe.factors(i)) for probe in (p, q)]
            assert np.allclose(dense[0], dense[1].T)
        G = np.random.default_rng(1).standard_normal((8, 5))
        assert np.allclose(left.project(a, G), right.project(b, G.T))

    @pytest.mark.parametrize(
        ("shape", "options", "expected"),
        [
            ((6, 4), {}, (3, 4)),
            ((6, 4), {"side": "right"}, (3, 6)),
            ((6, 4, 5), {}, (3, 20)),
            ((6, 4, 5), {"side": "right"}, (3, 6)),
            ((6, 4, 5), {"stacked": True}, (6, 3, 5)),
            ((6, 4, 5), {"stacked": True, "side": "right"}, (6, 3, 4)),
            ((1, 9), {}, (1, 9)),
            ((9, 1), {}, (3, 1)),
        ],
    )
    def test_coordinates(self, shape, options, expected):
        assert Sketch(3, **options).coordinate_shape(shape) == expected

    def test_full_space_has_no_frame(self):
        space = FullSpace()
        x = np.zeros((3, 4))
        assert start(space, x) is None
        assert space.factors(None, x)[0] is None


class TestBasis:
    """Directions of one's own in the place of random columns."""

    def test_leads_the_frame(self, backend):
        known = np.random.default_rng(1).standard_normal((7, 2))
        sketch = Sketch(4, basis=lambda leaf, step: backend.array(known))
        frame = backend.numpy(start(sketch, backend.array(np.zeros((7, 5)))))
        exact = np.linalg.qr(known)[0]
        # the first two columns span the basis, the others are orthogonal to it
        assert np.allclose(frame[:, :2] @ frame[:, :2].T, exact @ exact.T, atol=1e-12)
        assert np.allclose(frame.T @ frame, np.eye(4), atol=1e-12)

    def test_is_asked_with_leaf_and_step(self):
        asked = []
        method = zo.zo_mopi(rank=2, refresh_every=3, basis=lambda *key: asked.append(key))
        optimizer = zo.Optimizer({"a": np.zeros((4, 3)), "b": np.zeros((5, 3))}, method=method)
        for _ in range(7):
            optimizer.tell([1.0] * len(optimizer.ask()))
        assert asked == [(leaf, step) for step in (0, 3, 6) for leaf in (0, 1)]

    def test_none_leaves_the_draws_as_they_are(self):
        x = np.zeros((7, 5))
        expected = start(Sketch(4), x)
        assert np.array_equal(start(Sketch(4, basis=lambda leaf, step: None), x), expected)

    def test_anchors_come_before_it(self):
        rng = np.random.default_rng(0)
        known = rng.standard_normal((9, 9))
        sketch = Sketch(4, "anchored", basis=lambda leaf, step: known)
        frame = orthonormal_frame(rng.standard_normal((9, 4)))
        momentum = low_rank_momentum(rng, 4, 6, 2)
        new, transport = refreshed(sketch, frame, momentum, k=2)
        kept = frame @ leading_left_vectors(momentum, 2)[0]
        assert np.allclose(new @ (new.T @ kept), kept, atol=1e-12)
        rest = known[:, :2] - kept @ (kept.T @ known[:, :2])
        assert np.allclose(new @ (new.T @ rest), rest, atol=1e-12)
        assert np.allclose(transport, new.T @ frame, atol=1e-12)

    def test_on_the_right_side(self):
        known = np.random.default_rng(1).standard_normal((5, 3))
        sketch = Sketch(3, side="right", basis=lambda leaf, step: known)
        frame = start(sketch, np.zeros((7, 5)))
        assert np.allclose(frame @ (frame.T @ known), known, atol=1e-12)

    def test_knowledge_pays(self):
        """A gradient of rank one along a known direction: found at once, or hardly."""
        rng = np.random.default_rng(0)
        direction = rng.standard_normal((64, 1))
        goal = direction @ rng.standard_normal((1, 6))

        def run(basis):
            method = zo.zo_mopi(
                learning_rate=zo.linear_decay(0.5, 100), rank=2, probes=2, basis=basis
            )
            start_ = np.zeros((64, 6))
            return zo.minimize(
                lambda x: np.mean((x - goal) ** 2), start_, method=method, max_steps=100
            ).fun

        assert run(lambda leaf, step: direction) < 0.02 * np.mean(goal**2) < run(None)

    @pytest.mark.parametrize(
        ("basis", "message"),
        [
            (np.eye(4), "basis must be callable, got ndarray"),
            (lambda leaf, step: np.zeros((3, 1)), r"shape \(4, 'c'\) for leaf 0, got \(3, 1\)"),
            (lambda leaf, step: [1.0], "got list"),
        ],
        ids=["array", "shape", "list"],
    )
    def test_what_is_none_is_refused(self, basis, message):
        with pytest.raises(ValueError, match=message):
            zo.Optimizer(np.zeros((4, 3)), method=zo.zo_mopi(rank=2, basis=basis))
