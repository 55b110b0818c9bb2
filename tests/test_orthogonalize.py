"""Matrix signs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zomopi_core as zo
from zomopi_core.orthogonalize import Normalized
from zomopi_core.power_iteration import PowerIteration

EPS = {"float32": 1.2e-7, "float64": 2.3e-16}


def right_vectors(rng, n, k, batch=()):
    return np.linalg.qr(rng.standard_normal((*batch, n, k)))[0]


class TestStreamingPowerIteration:
    @given(
        r=st.integers(1, 20),
        n=st.integers(1, 20),
        k=st.integers(1, 20),
        dtype=st.sampled_from(["float32", "float64"]),
        seed=st.integers(0, 2**32),
    )
    @settings(max_examples=150, deadline=None)
    def test_partial_isometry_for_true_right_vectors(self, r, n, k, dtype, seed):
        """With V the right singular vectors, O = U V^T has k singular values 1 and no others."""
        k = min(k, r, n)
        rng = np.random.default_rng(seed)
        M = rng.standard_normal((r, n))
        u, s, vt = np.linalg.svd(M, full_matrices=False)
        s = np.linspace(2.0, 1.0, len(s))  # no tie between the k-th and the next
        M = (u * s) @ vt
        U, V = zo.streaming_power_iteration(M.astype(dtype), vt[:k].T.astype(dtype))
        values = np.linalg.svd(U @ V.T, compute_uv=False)
        expected = np.zeros(len(values))
        expected[:k] = 1
        # V from QR is exact to r n eps; with the spectrum in [1, 2] errors grow fourfold
        assert np.max(np.abs(values - expected)) < 100 * EPS[dtype]
        assert U.dtype == V.dtype == dtype

    @given(
        r=st.integers(2, 20),
        n=st.integers(2, 30),
        k=st.integers(1, 10),
        dtype=st.sampled_from(["float32", "float64"]),
        seed=st.integers(0, 2**32),
    )
    @settings(max_examples=100, deadline=None)
    def test_warm_start_beats_cold_start(self, r, n, k, dtype, seed):
        """On the momentum of the next step, V of the last one is nearer than a random one."""
        k = min(k, min(r, n) - 1)
        rng = np.random.default_rng(seed)
        u, _, vt = np.linalg.svd(rng.standard_normal((r, n)), full_matrices=False)
        s = np.concatenate([np.linspace(2, 1.5, k), np.linspace(0.5, 0.1, min(r, n) - k)])
        M = (u * s) @ vt
        V = right_vectors(rng, n, k).astype(dtype)
        for t in range(8):
            drift = 1e-3 * t * rng.standard_normal((r, n)) / np.sqrt(r * n)
            now = (M + drift).astype(dtype)
            _, V = zo.streaming_power_iteration(now, V)
        right = np.linalg.svd(now.astype(float), full_matrices=False)[2][:k]
        _, cold = zo.streaming_power_iteration(now, right_vectors(rng, n, k).astype(dtype))
        warm_error, cold_error = (np.linalg.norm(W @ W.T - right.T @ right) for W in (V, cold))
        # a sweep shrinks the error by (0.5 / 1.5)^2 and the drift adds some 1e-2
        assert warm_error < max(0.5 * cold_error, 2e-2)

    def test_converges_to_the_matrix_sign_of_rank_k(self):
        rng = np.random.default_rng(0)
        u, _, vt = np.linalg.svd(rng.standard_normal((10, 30)), full_matrices=False)
        M = (u * 0.8 ** np.arange(10)) @ vt
        exact = u[:, :3] @ vt[:3]
        V, errors = right_vectors(rng, 30, 3), []
        for _ in range(11):
            U, V = zo.streaming_power_iteration(M, V)
            errors.append(np.linalg.norm(U @ V.T - exact))
        assert errors[-1] < 0.1 * errors[0]

    @given(
        r=st.integers(1, 12),
        n=st.integers(1, 12),
        k=st.integers(1, 12),
        dtype=st.sampled_from(["float32", "float64"]),
        exponent=st.sampled_from([-66, -30, 0, 30, 66]),
        rank=st.integers(0, 3),
        seed=st.integers(0, 2**32),
    )
    @settings(max_examples=200, deadline=None)
    def test_low_rank_of_any_scale(self, r, n, k, dtype, exponent, rank, seed):
        """Rank one gives norm(O) = 1 whatever k, zero gives 0, and the scale changes no bit."""
        k, rank = min(k, r, n), min(rank, r, n)
        rng = np.random.default_rng(seed)
        u, v = (np.linalg.qr(rng.standard_normal((size, rank)))[0] for size in (r, n))
        M = ((u * np.linspace(2.0, 1.0, rank)) @ v.T).astype(dtype)
        V = right_vectors(rng, n, k).astype(dtype)
        scaled = M * np.asarray(2.0**exponent, dtype)
        results = []
        for matrix in (M, scaled):
            W = V
            for _ in range(3):
                U, W = zo.streaming_power_iteration(matrix, W)
            results.append(U @ W.T)
        assert np.array_equal(*results)
        assert np.all(np.isfinite(results[0]))
        if rank <= 1:
            assert abs(np.linalg.norm(results[0]) - rank) < 50 * EPS[dtype]
        else:
            # columns of U beyond the rank are zero or noise that the cutoff lets through: never
            # longer than 1, so that O is no longer than sqrt(k)
            assert np.linalg.norm(results[0]) < np.sqrt(k) * (1 + 1e-4)

    def test_zero_matrix(self, backend):
        V = right_vectors(np.random.default_rng(0), 6, 2)
        U, new = zo.streaming_power_iteration(backend.array(np.zeros((4, 6))), backend.array(V))
        assert np.array_equal(backend.numpy(U), np.zeros((4, 2)))
        assert np.array_equal(backend.numpy(new), V)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_rank_one_with_four_directions(self, backend, dtype):
        rng = np.random.default_rng(1)
        M = np.outer(rng.standard_normal(8), rng.standard_normal(12))
        V = right_vectors(rng, 12, 4)
        for _ in range(3):
            U, V = (
                backend.numpy(x)
                for x in zo.streaming_power_iteration(
                    backend.array(M, dtype), backend.array(V, dtype)
                )
            )
        O = U @ V.T  # noqa: E741
        assert abs(np.linalg.norm(O) - 1) < 20 * EPS[dtype]
        assert np.sum(np.linalg.norm(U, axis=0) == 0) == 3

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_cutoff(self, backend, dtype):
        """A column just above max(r, n) eps times the longest counts, one below does not."""
        cutoff = 8 * float(np.finfo(dtype).eps)
        for factor, rank in ((4.0, 2), (0.25, 1)):
            M = np.zeros((5, 8))
            M[0, 0], M[1, 1] = 1.0, factor * cutoff
            V = np.eye(8)[:, :2]
            U, _ = zo.streaming_power_iteration(backend.array(M, dtype), backend.array(V, dtype))
            assert np.linalg.matrix_rank(backend.numpy(U)) == rank

    @pytest.mark.parametrize("scale", [2.0**-66, 2.0**66])  # 1e-20 and 1e20, exactly representable
    def test_scale_does_not_matter(self, backend, scale):
        rng = np.random.default_rng(2)
        M, V = rng.standard_normal((5, 7)), right_vectors(rng, 7, 2)
        plain = zo.streaming_power_iteration(
            backend.array(M, "float32"), backend.array(V, "float32")
        )
        scaled = zo.streaming_power_iteration(
            backend.array(M.astype("float32") * np.float32(scale), "float32"),
            backend.array(V, "float32"),
        )
        for a, b in zip(plain, scaled, strict=True):
            assert np.array_equal(backend.numpy(a), backend.numpy(b))

    def test_batch_is_one_by_one(self, backend):
        rng = np.random.default_rng(3)
        M, V = rng.standard_normal((3, 5, 7)), right_vectors(rng, 7, 2, (3,))
        M[1] = 0
        U, new = (
            backend.numpy(x)
            for x in zo.streaming_power_iteration(backend.array(M), backend.array(V))
        )
        for i in range(3):
            u, v = zo.streaming_power_iteration(M[i], V[i])
            assert np.allclose(U[i] @ new[i].T, u @ v.T, atol=1e-12)

    @pytest.mark.parametrize("shape", [(1, 6), (6, 1), (1, 1), (4, 4)])
    def test_extreme_shapes(self, shape):
        rng = np.random.default_rng(4)
        k = min(shape)
        M = rng.standard_normal(shape)
        U, V = zo.streaming_power_iteration(M, right_vectors(rng, shape[1], k))
        assert np.allclose(np.linalg.norm(U, axis=0), 1)
        assert np.allclose(V.T @ V, np.eye(k))
        for _ in range(200):  # with k = min(r, n) the iteration converges to the matrix sign
            U, V = zo.streaming_power_iteration(M, V)
        assert np.allclose(U @ V.T, zo.polar(M), atol=1e-6)

    def test_arguments_stay_as_they_are(self):
        rng = np.random.default_rng(5)
        M, V = rng.standard_normal((4, 6)), right_vectors(rng, 6, 2)
        M.flags.writeable = V.flags.writeable = False
        zo.streaming_power_iteration(M, V)


class TestNewtonSchulz:
    def test_formula(self):
        M = np.random.default_rng(0).standard_normal((3, 5))
        X = M / np.linalg.norm(M)
        for _ in range(5):
            A = X @ X.T
            X = 3.4445 * X - 4.7750 * A @ X + 2.0315 * A @ A @ X
        assert np.allclose(zo.newton_schulz(M), X, rtol=1e-12)
        assert np.allclose(zo.newton_schulz(M.T), X.T, rtol=1e-12)

    def test_zero_and_scale(self, backend):
        zero = zo.newton_schulz(backend.array(np.zeros((3, 4))), eps=1e-7)
        assert np.array_equal(backend.numpy(zero), np.zeros((3, 4)))
        M = np.random.default_rng(1).standard_normal((3, 4)).astype("float32")
        a, b = (
            backend.numpy(zo.newton_schulz(backend.array(M * np.float32(s), "float32")))
            for s in (1.0, 2.0**-66)
        )
        assert np.array_equal(a, b)


class TestPolar:
    @pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5), (1, 3), (2, 3, 4)])
    def test_isometry(self, backend, shape):
        M = np.random.default_rng(0).standard_normal(shape)
        values = np.linalg.svd(backend.numpy(zo.polar(backend.array(M))), compute_uv=False)
        assert np.allclose(values, 1)

    def test_deficient(self, backend):
        M = np.outer([1.0, 2.0, 3.0], [1.0, -1.0])
        O = backend.numpy(zo.polar(backend.array(M)))  # noqa: E741
        assert np.allclose(O, M / np.linalg.norm(M))
        assert np.array_equal(
            backend.numpy(zo.polar(backend.array(np.zeros((2, 3))))), np.zeros((2, 3))
        )


class TestParts:
    def test_spectral_rank_is_clipped(self):
        def rank(k, r, n):
            momentum = np.zeros((r, n))
            return PowerIteration(k).init(momentum, np.ones).shape

        assert rank(None, 16, 40) == (40, 8)
        assert rank(None, 1, 40) == (40, 1)
        assert rank(9, 4, 40) == (40, 4)
        assert rank(9, 16, 3) == (3, 3)

    @pytest.mark.parametrize("shape", [(7,), (1,), ()])
    def test_normalized_vector(self, backend, shape):
        M = np.random.default_rng(0).standard_normal(shape)
        for scale in (1.0, 1e-20, 1e20):
            found = (
                Normalized().direction(backend.array(M * scale, "float32"), None, None).direction
            )
            expected = np.sqrt(M.size) * M / np.sqrt(np.sum(M**2))
            assert np.allclose(backend.numpy(found), expected, rtol=1e-5)
        zero = Normalized().direction(backend.array(M * 0), None, None).direction
        assert np.array_equal(backend.numpy(zero), np.zeros(shape))


class TestBadInput:
    @pytest.mark.parametrize("function", [zo.newton_schulz, zo.polar])
    def test_not_a_matrix(self, function):
        with pytest.raises(TypeError, match="M must be an array, got list"):
            function([[1.0]])
        with pytest.raises(ValueError, match=r"shape \(\.\.\., r, n\).*got \(3,\)"):
            function(np.ones(3))
        with pytest.raises(ValueError, match="without empty axes"):
            function(np.ones((0, 3)))
        with pytest.raises(TypeError, match=r"dtype int64; convert it to float32 or float64"):
            function(np.ones((2, 2), dtype=np.int64))

    def test_power_iteration_shapes(self):
        M = np.ones((3, 4))
        for V in (np.ones((3, 2)), np.ones((4, 4)), np.ones((4, 2), dtype=np.float32)):
            with pytest.raises(ValueError, match=r"V must have shape \(\.\.\., n, k\) with n = 4"):
                zo.streaming_power_iteration(M, V)

    def test_newton_schulz_options(self):
        with pytest.raises(ValueError, match="steps must be an integer of at least 0, got -1"):
            zo.newton_schulz(np.ones((2, 2)), -1)
        with pytest.raises(ValueError, match="eps must be a number of at least 0, got -1"):
            zo.newton_schulz(np.ones((2, 2)), eps=-1)
