"""Cholesky-QR against Householder's method, up to where it gives up."""

import numpy as np
import pytest

import zomopi_core as zo
from zomopi_core import _arrays, cholesky_qr, orthogonalize
from zomopi_core.cholesky_qr import cholesky_qr_twice, orthonormal_columns, shifted_cholesky_qr


def with_condition(condition, shape=(300, 8), seed=0):
    """Return a matrix whose columns are not merely of different lengths."""
    rng = np.random.default_rng(seed)
    *batch, n, k = shape
    left = np.linalg.qr(rng.standard_normal((*batch, n, k)))[0]
    right = np.linalg.qr(rng.standard_normal((*batch, k, k)))[0]
    return (left * np.geomspace(1.0, 1.0 / condition, k)) @ right


def factor(matrix):
    """The Q-factor with a positive diagonal of R."""
    q, r = np.linalg.qr(matrix)
    return q * np.sign(np.linalg.diagonal(r))[..., None, :]


def error_of(q):
    q = q.astype(np.float64)
    return np.max(np.abs(np.matrix_transpose(q) @ q - np.eye(q.shape[-1])))


@pytest.mark.parametrize("shape", [(300, 8), (7, 1), (9, 9), (3, 200, 5)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
class TestAgainstHouseholder:
    def test_twice(self, backend, shape, dtype):
        matrix = with_condition(30.0, shape)
        found = backend.numpy(cholesky_qr_twice(backend.array(matrix, dtype)))
        unit = 6e-8 if dtype == "float32" else 1.1e-16
        np.testing.assert_allclose(found, factor(matrix), rtol=0, atol=2000 * unit)
        assert error_of(found) < 50 * unit

    def test_shifted(self, backend, shape, dtype):
        matrix = with_condition(30.0, shape)
        fallback = backend.array(0.0 * matrix, dtype)
        found = backend.numpy(shifted_cholesky_qr(backend.array(matrix, dtype), fallback))
        unit = 6e-8 if dtype == "float32" else 1.1e-16
        np.testing.assert_allclose(found, factor(matrix), rtol=0, atol=3000 * unit)
        # the last round is shifted by a few units, too
        assert error_of(found) < 100 * unit


class TestConditioning:
    def test_lengths_of_columns_do_not_matter(self, backend):
        matrix = with_condition(1.0) * np.geomspace(1.0, 1e-14, 8)
        given = backend.array(matrix, "float32")
        for found in (cholesky_qr_twice(given), shifted_cholesky_qr(given, 0.0 * given)):
            assert error_of(backend.numpy(found)) < 2e-6
            np.testing.assert_allclose(backend.numpy(found), factor(matrix), rtol=0, atol=1e-4)

    @pytest.mark.parametrize("condition", [1e3, 1e5, 1e7, 1e10, 1e300])
    def test_never_less_than_orthonormal(self, backend, condition, monkeypatch):
        """What is returned is orthonormal, whichever way it was found."""
        monkeypatch.setattr(cholesky_qr, "_SMALL", 0)
        matrix = with_condition(condition)
        given = backend.array(matrix, "float32")
        basis = backend.array(factor(with_condition(1.0, seed=1)), "float32")
        assert error_of(backend.numpy(orthonormal_columns(given, basis))) < 2e-6
        twice = cholesky_qr_twice(given)
        if twice is not None:
            assert condition < 1e5
            assert error_of(backend.numpy(twice)) < 2e-6
        shifted = backend.numpy(shifted_cholesky_qr(given, basis))
        assert error_of(shifted) < 3e-6
        if condition <= 1e3:  # what it can do alone, and does
            np.testing.assert_allclose(shifted, factor(matrix), rtol=0, atol=1e-2)

    def test_nothing_of_a_batch_is_lost_to_one_member(self, backend):
        good, bad = with_condition(10.0, (2, 50, 3)), np.zeros((1, 50, 3))
        given = backend.array(np.concatenate([good, bad]))
        basis = backend.array(np.broadcast_to(factor(with_condition(1.0, (50, 3))), (3, 50, 3)))
        try:
            found = backend.numpy(shifted_cholesky_qr(given, basis))
        except np.linalg.LinAlgError:
            pytest.fail("it raised")
        np.testing.assert_allclose(found[:2], factor(good), rtol=0, atol=1e-11)
        assert error_of(found[2]) < 1e-12


def test_devices_are_not_asked(monkeypatch, make_backend):
    """Under tracing any look at a value would raise."""
    backend = make_backend("jax")
    import jax

    monkeypatch.setattr(_arrays, "on_gpu", lambda x: True)
    matrix = backend.array(with_condition(10.0))
    found = jax.jit(orthonormal_columns)(matrix, matrix)
    np.testing.assert_allclose(found, factor(with_condition(10.0)), rtol=0, atol=1e-12)


def test_power_iteration_is_the_same(backend, monkeypatch):
    rng = np.random.default_rng(0)
    M = backend.array(rng.standard_normal((12, 600)))
    V = backend.array(np.linalg.qr(rng.standard_normal((600, 8)))[0])
    expected = [backend.numpy(x) for x in zo.streaming_power_iteration(M, V)]
    for gpu in (False, True):
        monkeypatch.setattr(cholesky_qr, "_SMALL", 0)
        monkeypatch.setattr(_arrays, "on_gpu", lambda x, gpu=gpu: gpu)
        U, V2 = (backend.numpy(x) for x in zo.streaming_power_iteration(M, V))
        np.testing.assert_allclose(U @ V2.T, expected[0] @ expected[1].T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-34, 1e-20, 1e20, 1e36])
@pytest.mark.parametrize("small", [0, 10**9])
def test_power_iteration_of_any_scale(backend, monkeypatch, scale, small):
    """By Cholesky-QR and by Householder's method, in float32."""
    monkeypatch.setattr(cholesky_qr, "_SMALL", small)
    monkeypatch.setattr(orthogonalize, "_LARGE", small)
    rng = np.random.default_rng(0)
    M, V = rng.standard_normal((12, 600)), np.linalg.qr(rng.standard_normal((600, 8)))[0]
    ends = []
    for factor_of_M in (1.0, scale):
        U, right = zo.streaming_power_iteration(
            backend.array(M * factor_of_M, "float32"), backend.array(V, "float32")
        )
        ends.append(backend.numpy(U) @ backend.numpy(right).T)
    # a thousandth of the entries of the smallest M are flushed to zero by libraries that do so
    np.testing.assert_allclose(ends[1], ends[0], rtol=0, atol=1e-5 if scale > 1e-30 else 1e-3)


class TestStackedLeaves:
    METHODS = (
        zo.zo_mopi(rank=3),
        zo.zo_mopi(rank=3, spectral_rank="auto"),
        zo.zo_muon(),
        zo.muon(),
    )

    @pytest.mark.parametrize("method", METHODS[:3], ids=lambda m: m.name)
    def test_same_path_as_one_by_one(self, backend, method, monkeypatch):
        rng = np.random.default_rng(0)
        x0 = {f"W{i}": rng.standard_normal((6, 5)) for i in range(4)} | {
            "K": rng.standard_normal((5, 6)),
            "b": rng.standard_normal(7),
        }
        ends, stacks = [], []
        for stacked in (True, False):
            if not stacked:
                part = type(method.matrices.orthogonalizer)
                monkeypatch.setattr(part, "batches", False)
            optimizer = zo.Optimizer({k: backend.array(v) for k, v in x0.items()}, method=method)
            for step in range(5):
                points = optimizer.ask()
                optimizer.tell(np.random.default_rng(step).standard_normal(len(points)))
            ends.append({k: backend.numpy(v) for k, v in optimizer.x.items()})
            stacks.append(optimizer.state.leaves)
        for name, x in ends[0].items():
            np.testing.assert_allclose(x, ends[1][name], rtol=0, atol=1e-9)
            assert np.max(np.abs(x - x0[name])) > 0
        shapes = [[getattr(m, "shape", None) for m in leaf] for leaf in stacks[0]]
        assert shapes == [[getattr(m, "shape", None) for m in leaf] for leaf in stacks[1]]

    def test_one_product_for_all(self, monkeypatch):
        from zomopi_core.power_iteration import PowerIteration

        seen = []
        direction = PowerIteration.direction

        def recorded(self, momentum, kept, normal):
            seen.append(tuple(momentum.shape))
            return direction(self, momentum, kept, normal)

        monkeypatch.setattr(PowerIteration, "direction", recorded)
        x0 = {f"W{i}": np.ones((6, 5)) for i in range(4)} | {"K": np.ones((5, 6))}
        optimizer = zo.Optimizer(x0, method=zo.zo_mopi(rank=3, learning_rate=0.1))
        optimizer.tell(np.arange(float(len(optimizer.ask()))))
        assert sorted(seen) == [(3, 6), (4, 3, 5)]
