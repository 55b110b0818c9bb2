"""Perturbed matrices: products with X + s A C that never form it."""

import numpy as np
import pytest

import zomopi_core as zo
from zomopi_core.candidates import unperturbed
from zomopi_core.structured import Base, PerturbedMatrix

RNG = np.random.default_rng(0)
X, A, C = (RNG.standard_normal(s) for s in ((6, 5), (6, 2), (2, 5)))
W, L = RNG.standard_normal((5, 7)), RNG.standard_normal((3, 6))
SCALE = -0.3
DENSE = X + SCALE * (A @ C)


@pytest.fixture
def perturbed(backend):
    x, a, c = (backend.array(v) for v in (X, A, C))
    return PerturbedMatrix(Base(x)).moved(a, c, SCALE, ("frame", 0))


def close(backend, found, expected):
    np.testing.assert_allclose(backend.numpy(found), expected, rtol=0, atol=1e-13)


def before(array, P):
    """Return ``array @ P``; the strict namespace refuses foreign operands before it asks them."""
    strict = type(array).__module__.startswith("array_api_strict")
    return P.__rmatmul__(array) if strict else array @ P


class TestProducts:
    def test_all_of_them(self, backend, perturbed):
        P, array = perturbed, backend.array
        for _ in range(2):  # computed, and remembered
            close(backend, P.dense(), DENSE)
            close(backend, P @ array(W), DENSE @ W)
            close(backend, P @ array(W[:, 0]), DENSE @ W[:, 0])
            close(backend, before(array(L), P), L @ DENSE)
            close(backend, before(array(L[0]), P), L[0] @ DENSE)
            close(backend, P.T @ array(L.T), DENSE.T @ L.T)
            close(backend, before(array(W.T), P.T), W.T @ DENSE.T)
            close(backend, P.T.T.dense(), DENSE)
            close(backend, P[1:4] @ array(W), DENSE[1:4] @ W)
            close(backend, P[1:4].T @ array(L[:, 1:4].T), (L[:, 1:4] @ DENSE[1:4]).T)
            close(backend, before(array(L[:, 1:4]), P[1:4]), L[:, 1:4] @ DENSE[1:4])
            rows = array([5, 0, 5], "int64")
            close(backend, P[rows].dense(), DENSE[[5, 0, 5]])
            close(backend, P[rows] @ array(W), DENSE[[5, 0, 5]] @ W)
            close(backend, P[-1], DENSE[-1])
        assert (P.shape, P.T.shape, len(P), P.ndim) == ((6, 5), (5, 6), 6, 2)
        assert P.dtype == array(X).dtype

    def test_unperturbed(self, backend):
        P = unperturbed(backend.array(X))
        close(backend, P @ backend.array(W), X @ W)
        close(backend, before(backend.array(L), P.T.T), L @ X)
        close(backend, P.dense(), X)

    def test_what_is_returned_may_be_changed(self):
        P = unperturbed(X)
        for _ in range(2):
            found = P @ W
            np.testing.assert_array_equal(found, X @ W)
            found[:] = 0.0
        dense = P.dense()
        dense[:] = 0.0
        np.testing.assert_array_equal(P.dense(), X)

    def test_16_bits_are_multiplied_in_float32(self):
        x = X.astype("f2")
        P = unperturbed(x).moved(A.astype("f4"), C.astype("f4"), 1e-4, (0, 0))
        found = P @ W.astype("f2")
        assert found.dtype == np.float32
        # the perturbation is a thousandth of what 16 bits of X can hold, and is there
        change = found - unperturbed(x) @ W.astype("f2")
        np.testing.assert_allclose(change, 1e-4 * A @ C @ W, rtol=0.05, atol=2e-6)

    def test_new_operands_are_not_mistaken_for_old_ones(self):
        """Identities of objects that are gone are given to new ones."""
        P = unperturbed(X).moved(A, C, SCALE, (0, 0))
        for i in range(50):
            np.testing.assert_allclose(P @ (W + i), DENSE @ (W + i), rtol=1e-12)


class TestMisuse:
    def test_no_array_unasked(self):
        P = unperturbed(X)
        for use in (np.asarray, np.sum, lambda p: np.ones(6) + p):
            with pytest.raises(TypeError):
                use(P)
        with pytest.raises(TypeError, match=r"P\.dense\(\) makes an array"):
            np.asarray(P)

    @pytest.mark.parametrize("index", [(0, 1), "a", 1.0, [0, 1], None, np.ones((2, 2), int), True])
    def test_rows_only(self, index):
        with pytest.raises(TypeError, match="rows only, by a slice"):
            unperturbed(X)[index]

    def test_row_beyond_the_end(self):
        with pytest.raises(IndexError, match="row 6 of 6"):
            unperturbed(X)[6]
        assert len(list(unperturbed(X))) == 6

    def test_not_both(self):
        with pytest.raises(ValueError, match="vectorized and structured cannot both"):
            zo.minimize(np.sum, X, max_queries=9, vectorized=True, structured=True)
        with pytest.raises(ValueError, match="structured must be True or False"):
            zo.minimize(np.sum, X, max_queries=9, structured=1)


METHODS = {
    "central": zo.zo_mopi(rank=2, learning_rate=0.1, probes=3, refresh_every=3),
    "right side": zo.zo_mopi(rank=2, learning_rate=0.1, side="right"),
    "forward": zo.zo_mopi(rank=2, learning_rate=0.1, difference="forward"),
    "tuned": zo.zo_mopi(rank=2),
    "lozo": zo.lozo(learning_rate=0.02),
    "svrg": zo.mezo_svrg(learning_rate=0.02, snapshot_every=3),
    "full space": zo.zo_sgd(learning_rate=0.02),
}


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("options", [{}, {"reuse_buffers": True}, {"bounds": (-0.4, 0.5)}])
def test_same_path_as_dense(name, options):
    def dense(p, key=None):
        return float(np.mean((p["X"].T @ L.T + p["b"][:3]) ** 2) + np.mean(p["X"][2:5] @ W))

    def structured(p, key=None):
        assert isinstance(p["X"], PerturbedMatrix)
        return dense(p)

    x0 = {"X": X, "b": np.ones(4)}
    ends = [
        zo.minimize(
            fun, x0, method=METHODS[name], max_queries=150, structured=fun is structured, **options
        )
        for fun in (dense, structured)
    ]
    assert ends[0].nfev == ends[1].nfev
    for key in x0:
        # differences of losses round otherwise: 1e-16 over 2e-3, amplified along the path
        np.testing.assert_allclose(ends[1].x_last[key], ends[0].x_last[key], rtol=0, atol=1e-6)
        assert isinstance(ends[1].x[key], np.ndarray)
    assert dense(ends[1].x) == pytest.approx(ends[1].fun, rel=1e-9)


@pytest.mark.parametrize("reuse", [False, True])
def test_same_path_as_dense_with_losses_of_the_library(backend, reuse):
    """Losses are arrays without axes, which stay where they are made."""
    w = backend.array(W)

    def loss(p):
        return backend.xp.mean((p["X"] @ w) ** 2) + backend.xp.mean((p["b"] - 2.0) ** 2)

    x0 = {"X": backend.array(X), "b": backend.array(np.ones(4))}
    method = zo.zo_mopi(rank=2, learning_rate=0.1, probes=2, refresh_every=3)
    ends = []
    for structured in (False, True):
        options = {"structured": structured, "reuse_buffers": reuse, "seed": zo.HostSampler(0)}
        ends.append(zo.minimize(loss, x0, method=method, max_steps=12, **options))
    assert ends[1].fun < 0.9 * float(loss(x0))
    for key in x0:
        assert type(ends[1].x[key]) is type(ends[0].x[key])
        found, expected = (backend.numpy(end.x_last[key]) for end in ends[::-1])
        # differences of losses round otherwise: 1e-16 over 2e-3, amplified along the path
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_base_product_is_made_once_a_step(monkeypatch):
    """Counted with an operand that counts: X @ W once a step, C W once a probe."""

    class Counting:
        def __init__(self, shapes):
            self.shapes, self.shape = shapes, W.shape

        def __rmatmul__(self, other):
            self.shapes.append(other.shape)
            return other @ W

        __array_ufunc__ = None

    shapes = []
    operand = Counting(shapes)
    method = zo.zo_mopi(rank=2, learning_rate=0.1, probes=4)
    result = zo.minimize(
        lambda P: float(np.sum((P @ operand) ** 2)), X, method=method, structured=True, max_steps=5
    )
    assert result.nfev == 5 * 8 + 3
    assert shapes.count((6, 5)) == 5 + 3  # a step, and each evaluation beside them
    assert shapes.count((2, 5)) == 5 * 4
