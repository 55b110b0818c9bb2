"""Every method against its formula, written out here in NumPy without the library's parts."""

import inspect
from typing import ClassVar

import numpy as np
import pytest

import zomopi_core as zo
from conftest import GoldenSampler
from zomopi_core.aro import sinkhorn
from zomopi_core.low_rank_orthogonalize import LowRankOrthogonalization
from zomopi_core.newton_schulz import NewtonSchulz

M, N_COLUMNS = 6, 5
TARGET = np.outer(np.arange(1.0, 7.0), np.arange(5.0) - 1.5) / 6
X0 = np.random.default_rng(0).standard_normal((M, N_COLUMNS))
MU = 1e-2


def F(x):
    return np.sum((x - TARGET) ** 2) + 0.1 * np.sum(np.cos(x))


def gradient(x):
    return 2 * (x - TARGET) - 0.1 * np.sin(x)


def numbers(draw, shape):
    """Standard normal numbers that depend on the key alone."""
    stream = ("sketch", "probe", "right").index(draw.stream)
    key = (stream, draw.leaf, draw.step, 0 if draw.probe is None else draw.probe + 1)
    return np.random.default_rng(key).standard_normal(shape)


class Keyed:
    """A sampler of the tests' own; `numbers` gives the formulas the same draws."""

    def normal(self, draw, shape, *, dtype, device):
        return numbers(draw, shape)


def path(method, steps, x0=X0, backend=None):
    array = (lambda x: x) if backend is None else backend.array
    host = np.asarray if backend is None else backend.numpy
    optimizer = zo.Optimizer(array(x0), method=method, seed=Keyed())
    found = []
    for _ in range(steps):
        if method.estimator is None:
            optimizer.descend(array(gradient(host(optimizer.x))))
        else:
            optimizer.tell([float(F(host(p))) for p in optimizer.ask()])
        found.append(host(optimizer.x).copy())
    return found


def probe(t, shape, count=1):
    return numbers(zo.Draw("probe", 0, t, None), (count, *shape))


def sketch(t, shape):
    return numbers(zo.Draw("sketch", 0, t, None), shape)


def right(t, shape):
    return numbers(zo.Draw("right", 0, t, None), shape)


def central(x, P):
    return (F(x + MU * P) - F(x - MU * P)) / (2 * MU)


def positive_qr(a):
    q, r = np.linalg.qr(a)
    return q * np.sign(np.diag(r))


def msign(a):
    u, _, vt = np.linalg.svd(a, full_matrices=False)
    return u @ vt


def quintic(a, steps=5):
    x = a / (np.linalg.norm(a) + 1e-7)
    for _ in range(steps):
        g = x @ x.T
        x = 3.4445 * x - 4.7750 * g @ x + 2.0315 * g @ g @ x
    return x


def check(method, expected, backend=None, tolerance=1e-9):
    for a, b in zip(path(method, len(expected), backend=backend), expected, strict=True):
        assert np.max(np.abs(a - b)) < tolerance * np.max(np.abs(b))


class TestGolden:
    def run(self, data, method, backend, nu, sampler=None):
        W, Y = data["W"], data["Y"]
        optimizer = zo.Optimizer(
            backend.array(data["X0"]),
            method=method,
            seed=sampler or GoldenSampler(data, nu, backend),
        )
        for t in range(len(data["X"])):
            points = [backend.numpy(p) for p in optimizer.ask()]
            losses = np.asarray(
                [0.5 * np.mean((p @ W - Y) ** 2) + 0.1 * np.mean(np.cos(p)) for p in points]
            )
            c = method.estimator.differences(losses)
            assert np.max(np.abs(c - data["c"][t])) < 1e-9 * np.max(np.abs(data["c"][t]))
            optimizer.tell(losses)
            x = backend.numpy(optimizer.x)
            assert np.max(np.abs(x - data["X"][t])) < 1e-9 * np.max(np.abs(data["X"][t]))

    def test_zo_muon(self, backend, golden):
        data = golden("zo_muon")
        r, nu, probes, mu, eta = data["hyper"]
        method = zo.zo_muon(
            rank=int(r),
            refresh_every=int(nu),
            probes=int(probes),
            smoothing=mu,
            learning_rate=eta,
        )
        self.run(data, method, backend, int(nu))

    def test_mezo(self, backend, golden):
        data = golden("mezo")
        mu, eta = data["hyper"]

        class Sampler:
            def normal(self, draw, shape, *, dtype, device):
                return data["Z"][draw.step].reshape(shape)

        self.run(data, zo.mezo(smoothing=mu, learning_rate=eta), backend, 1, Sampler())

    def test_lozo(self, backend, golden):
        data = golden("lozo")
        r, nu, mu, eta = data["hyper"]

        class Sampler:
            def normal(self, draw, shape, *, dtype, device):
                if draw.stream == "sketch":
                    return data["V"][draw.step // int(nu)]
                return data["U"][draw.step].reshape(shape)

        method = zo.lozo(rank=int(r), refresh_every=int(nu), smoothing=mu, learning_rate=eta)
        self.run(data, method, backend, int(nu), Sampler())

    def test_low_rank_orthogonalization(self, backend, golden):
        data = golden("low_rank_orthogonalization")
        omega = backend.array(data["Omega"])
        part = LowRankOrthogonalization(omega.shape[1])
        found = part.direction(backend.array(data["M"]), None, lambda shape: omega).direction
        error = np.max(np.abs(backend.numpy(found) - data["O"]))
        assert error < 1e-9 * np.max(np.abs(data["O"]))


class TestZerothOrder:
    @pytest.mark.parametrize("sign", ["svd", "newton-schulz"])
    def test_zo_muon(self, backend, sign):
        x, expected = X0, []
        for t in range(5):
            if t % 2 == 0:
                P = positive_qr(sketch(t, (M, 3)))
            B = probe(t, (3, N_COLUMNS), 2)
            c = [(F(x + MU * P @ b) - F(x)) / MU for b in B]
            G = sum(ci * b for ci, b in zip(c, B, strict=True)) / 2
            x = x - 0.1 * P @ (msign(G) if sign == "svd" else quintic(G))
            expected.append(x)
        method = zo.zo_muon(
            rank=3, probes=2, refresh_every=2, smoothing=MU, learning_rate=0.1, orthogonalizer=sign
        )
        check(method, expected, backend, 1e-8)

    def test_zo_mopi_released(self, backend):
        x, expected = X0, []
        for t in range(5):
            if t % 2 == 0:
                A = positive_qr(sketch(t, (M, 4)))
                V = np.linalg.qr(right(t, (N_COLUMNS, 2)))[0]
            B = probe(t, (4, N_COLUMNS), 2)
            G = sum((F(x + MU * A @ b) - F(x)) / MU * b for b in B) / 2
            V = np.linalg.qr(G.T @ (G @ V))[0]
            U = G @ V
            x = x - 0.1 * A @ (U / np.linalg.norm(U, axis=0)) @ V.T
            expected.append(x)
        method = zo.zo_mopi_released(
            rank=4, spectral_rank=2, probes=2, refresh_every=2, smoothing=MU, learning_rate=0.1
        )
        check(method, expected, backend, 1e-8)

    def test_zo_sgd(self, backend):
        x, expected = X0, []
        for t in range(5):
            if t % 2 == 0:
                A = positive_qr(sketch(t, (M, 3)))
            B = probe(t, (3, N_COLUMNS), 2)
            x = x - 0.01 * A @ sum(central(x, A @ b) * b for b in B) / 2
            expected.append(x)
        method = zo.zo_sgd(rank=3, probes=2, refresh_every=2, smoothing=MU, learning_rate=0.01)
        check(method, expected, backend)

    @pytest.mark.parametrize("beta", [0.0, 0.8])
    def test_mezo(self, backend, beta):
        x, momentum, expected = X0, None, []
        for t in range(5):
            Z = probe(t, (M, N_COLUMNS))[0]
            G = central(x, Z) * Z
            momentum = G if momentum is None else beta * momentum + (1 - beta) * G
            x = x - 0.01 * momentum
            expected.append(x)
        make = zo.mezo if beta == 0 else zo.mezo_momentum
        check(make(smoothing=MU, learning_rate=0.01, momentum=beta), expected, backend)

    def test_mezo_adam(self, backend):
        x, m, s, expected = X0, 0, 0, []
        for t in range(6):
            Z = probe(t, (M, N_COLUMNS))[0]
            G = central(x, Z) * Z
            m, s = 0.9 * m + 0.1 * G, 0.99 * s + 0.01 * G**2
            x = x - 0.05 * (m / (1 - 0.9 ** (t + 1))) / np.sqrt(s / (1 - 0.99 ** (t + 1)))
            expected.append(x)
        check(zo.mezo_adam(smoothing=MU, learning_rate=0.05, beta2=0.99), expected, backend)

    def test_mezo_adam_is_scale_free(self):
        def go(scale):
            optimizer = zo.Optimizer(X0.astype("float32"), method=zo.mezo_adam(learning_rate=0.05))
            for _ in range(4):
                optimizer.tell([float(F(p)) * scale for p in optimizer.ask()])
            return optimizer.x

        assert np.allclose(go(1.0), go(2.0**-66), rtol=1e-5)
        assert np.allclose(go(1.0), go(2.0**66), rtol=1e-5)

    def test_lozo_m(self, backend):
        x, carried, V, expected = X0, np.zeros((M, 2)), None, []
        for t in range(6):
            if t % 3 == 0:
                new = sketch(t, (N_COLUMNS, 2))
                carried = carried @ V.T @ new / N_COLUMNS if t else carried
                V = new
            U = probe(t, (M, 2))[0]
            carried = 0.7 * carried + 0.3 * central(x, U @ V.T) * U
            x = x - 0.01 * carried @ V.T / 2
            expected.append(x)
        method = zo.lozo_m(rank=2, refresh_every=3, smoothing=MU, learning_rate=0.01, momentum=0.7)
        check(method, expected, backend)

    def test_subzero(self, backend):
        x, expected = X0, []
        for t in range(5):
            if t % 2 == 0:
                U, V = positive_qr(sketch(t, (M, 2))), positive_qr(right(t, (N_COLUMNS, 2)))
            P = np.sqrt(M * N_COLUMNS / 4) * U @ probe(t, (2, 2))[0] @ V.T
            x = x - 0.01 * central(x, P) * P
            expected.append(x)
        method = zo.subzero(rank=2, refresh_every=2, smoothing=MU, learning_rate=0.01)
        check(method, expected, backend)

    @pytest.mark.parametrize("count", [1, 2])
    def test_hizoo(self, backend, count):
        x, H, expected = X0, np.ones((M, N_COLUMNS)), []
        for t in range(5):
            Z = probe(t, (M, N_COLUMNS), count)
            P = Z / np.sqrt(H)
            second = [abs(F(x + MU * p) + F(x - MU * p) - 2 * F(x)) / (2 * MU**2) for p in P]
            c = [central(x, p) for p in P]
            H = (1 - 1e-2) * H + 1e-2 * H * np.mean(
                [s * z**2 for s, z in zip(second, Z, strict=True)], axis=0
            )
            G = np.mean([ci * z for ci, z in zip(c, Z, strict=True)], axis=0)
            x = x - 0.01 * G / np.sqrt(H)
            expected.append(x)
        method = zo.hizoo(smoothing=MU, learning_rate=0.01, curvature_rate=1e-2, probes=count)
        check(method, expected, backend, 1e-7)

    @pytest.mark.parametrize(
        "make", [zo.mezo, zo.lozo, zo.lozo_m, zo.subzero, zo.hizoo, zo.zo_sgd, zo.mezo_adam]
    )
    def test_vectors_take_the_same_kind_of_step(self, make):
        rate = 0.02
        optimizer = zo.Optimizer({"W": X0, "b": X0[0]}, method=make(learning_rate=rate))
        for _ in range(300):
            optimizer.tell(
                [float(np.sum(p["W"] ** 2) + np.sum(p["b"] ** 2)) for p in optimizer.ask()]
            )
        assert np.sum(optimizer.x["b"] ** 2) < 0.7 * np.sum(X0[0] ** 2)


class TestFirstOrder:
    def test_mopi(self, backend):
        x, expected, momentum = X0, [], None
        V = np.linalg.qr(right(0, (N_COLUMNS, 2)))[0]
        for _ in range(5):
            G = gradient(x)
            momentum = G if momentum is None else 0.9 * momentum + 0.1 * G
            V = np.linalg.qr(momentum.T @ (momentum @ V))[0]
            U = momentum @ V
            x = x - 0.1 * (U / np.linalg.norm(U, axis=0)) @ V.T
            expected.append(x)
        check(zo.mopi(learning_rate=0.1, spectral_rank=2), expected, backend)

    @pytest.mark.parametrize("transpose", [False, True])
    def test_muon(self, backend, transpose):
        x = X0.T if transpose else X0
        F_gradient = (lambda y: gradient(y.T).T) if transpose else gradient
        m, n = x.shape
        optimizer = zo.Optimizer(backend.array(x), method=zo.muon(learning_rate=0.1))
        momentum = 0
        for _ in range(4):
            G = F_gradient(x)
            momentum = 0.95 * momentum + G
            x = x - 0.1 * np.sqrt(max(1, m / n)) * quintic(G + 0.95 * momentum)
            optimizer.descend(backend.array(F_gradient(backend.numpy(optimizer.x))))
            assert np.allclose(backend.numpy(optimizer.x), x, rtol=1e-8)

    @pytest.mark.parametrize("name", ["mopi", "muon", "low_rank_muon", "dion", "adago", "aro"])
    def test_more_axes_are_one_matrix(self, backend, name):
        """(first axis, the rest), as everywhere; not a batch over the leading axes."""
        x = np.random.default_rng(0).standard_normal((4, 3, 5))
        found = []
        for start in (x, x.reshape(4, 15)):
            optimizer = zo.Optimizer(backend.array(start), method=name, seed=Keyed())
            for _ in range(3):
                optimizer.descend(backend.array(backend.numpy(optimizer.x) ** 3))
            found.append(backend.numpy(optimizer.x))
        assert found[0].shape == x.shape
        assert np.array_equal(found[0].reshape(4, 15), found[1])

    @pytest.mark.parametrize("power", [0, 2])
    @pytest.mark.parametrize("beta", [0.0, 0.8])
    def test_low_rank_gaussian(self, backend, power, beta):
        x, momentum, expected = X0, None, []
        for t in range(4):
            G = gradient(x)
            momentum = G if momentum is None else beta * momentum + (1 - beta) * G
            Y = momentum @ right(t, (N_COLUMNS, 2))
            for _ in range(power):
                Y = momentum @ (momentum.T @ np.linalg.qr(Y)[0])
            Q = np.linalg.qr(Y)[0]
            x = x - 0.1 * Q @ msign(Q.T @ momentum)
            expected.append(x)
        if beta == 0:
            method = zo.low_rank_msgd(learning_rate=0.1, rank=2, power_iterations=power)
        else:
            method = zo.low_rank_muon(
                learning_rate=0.1, rank=2, power_iterations=power, momentum=beta
            )
        check(method, expected, backend, 1e-8)

    def test_low_rank_columns(self, backend):
        x, expected = X0, []
        for t in range(4):
            G = gradient(x)
            Q = np.linalg.qr(G[:, np.argsort(right(t, (N_COLUMNS,)))[:2]])[0]
            x = x - 0.1 * Q @ msign(Q.T @ G)
            expected.append(x)
        method = zo.low_rank_msgd(learning_rate=0.1, rank=2, sketch="columns")
        check(method, expected, backend, 1e-8)

    def test_dion(self, backend):
        x, momentum, expected = X0, 0, []
        Q = np.linalg.qr(right(0, (N_COLUMNS, 2)))[0]
        for _ in range(5):
            B = momentum + gradient(x)
            P = np.linalg.qr(B @ Q)[0]
            R = B.T @ P
            momentum = B - (1 - 0.9) * P @ R.T
            Q = R / np.linalg.norm(R, axis=0)
            x = x - 0.1 * np.sqrt(M / N_COLUMNS) * P @ Q.T
            expected.append(x)
        check(zo.dion(learning_rate=0.1, rank=2, momentum=0.9), expected, backend)

    def test_adago(self, backend):
        x, momentum, v, expected = X0, None, 0.5, []
        for _ in range(5):
            G = gradient(x)
            momentum = G if momentum is None else 0.9 * momentum + 0.1 * G
            clipped = min(np.linalg.norm(G), 3.0)
            v = np.sqrt(v**2 + clipped**2)
            x = x - max(0.12, 0.2 * clipped / v) * msign(momentum)
            expected.append(x)
        method = zo.adago(learning_rate=0.2, momentum=0.9, clip=3.0, floor=0.12, start=0.5)
        check(method, expected, backend, 1e-8)

    @pytest.mark.parametrize("normalisation", ["sign", "sinkhorn"])
    def test_aro(self, backend, normalisation):
        def f(a):
            if normalisation == "sign":
                return np.where(np.abs(a) < 1e-13 * np.max(np.abs(a)), 0, np.sign(a))
            for _ in range(5):
                a = a / np.sqrt(np.mean(a**2, axis=1, keepdims=True))
                a = a / np.sqrt(np.mean(a**2, axis=0, keepdims=True))
            return a

        # m <= n and rows of different signs: else M f(M)^T is singular and R is not unique
        start, goal = np.random.default_rng(1).standard_normal((2, 4, 11))
        method = zo.aro(learning_rate=0.05, momentum=0.9, normalisation=normalisation)
        optimizer = zo.Optimizer(backend.array(start), method=method)
        x, momentum, R = start, None, np.eye(4)
        for _ in range(4):
            G = x - goal
            momentum = G if momentum is None else 0.9 * momentum + 0.1 * G
            R = np.linalg.qr(momentum @ f(R.T @ momentum).T)[0]
            x = x - 0.05 * R @ f(R.T @ momentum)
            optimizer.descend(backend.array(backend.numpy(optimizer.x) - goal))
            assert np.allclose(backend.numpy(optimizer.x), x, rtol=1e-8)

    def test_sinkhorn(self):
        rows = sinkhorn(np.random.default_rng(0).standard_normal((4, 7)), 50)
        assert np.allclose(np.mean(rows**2, axis=0), 1)
        assert np.allclose(np.mean(rows**2, axis=1), 1, atol=1e-6)
        assert np.array_equal(sinkhorn(np.zeros((2, 3)), 3), np.zeros((2, 3)))


FIRST_ORDER = [n for n in zo.methods() if getattr(zo, n)().estimator is None]
ZEROTH_ORDER = [n for n in zo.methods() if n not in FIRST_ORDER]


class TestContract:
    """What every method does, whatever it is."""

    rates: ClassVar = {
        "mezo_adam": 0.02,
        "mezo_svrg": 2e-3,
        "zo_sgd": 0.02,
        "aro": 0.02,
        "adago": 0.3,
    }

    def make(self, name):
        make = getattr(zo, name)
        linear = name in ("mezo", "mezo_momentum", "lozo", "lozo_m", "subzero", "hizoo")
        rate = self.rates.get(name, 5e-3 if linear else 0.1)
        return make(learning_rate=zo.linear_decay(rate, 400))

    def test_catalogue_is_public_and_described(self):
        assert zo.methods()[0] == "zo_mopi"
        for name in zo.methods():
            make = getattr(zo, name)
            assert name in zo.__all__
            assert make().name == name
            assert make.__doc__.splitlines()[0].startswith("Make ")
            assert all(
                p.kind is p.KEYWORD_ONLY for p in inspect.signature(make).parameters.values()
            )
            assert zo.Optimizer(X0, method=name).method == make()

    @pytest.mark.parametrize("name", ZEROTH_ORDER)
    def test_zeroth_order_converges(self, name):
        optimizer = zo.Optimizer({"W": X0, "b": X0[0]}, method=self.make(name))

        def loss(p):
            return float(np.sum((p["W"] - TARGET) ** 2) + np.sum(p["b"] ** 2))

        for _ in range(400):
            optimizer.tell([loss(p) for p in optimizer.ask()])
        assert loss(optimizer.x) < 0.5 * loss({"W": X0, "b": X0[0]})

    @pytest.mark.parametrize("name", FIRST_ORDER)
    def test_first_order_converges(self, name):
        start = {"W": X0, "b": X0[0]}
        result = zo.minimize(
            lambda p: float(np.sum((p["W"] - TARGET) ** 2) + np.sum(p["b"] ** 2)),
            start,
            method=self.make(name),
            gradient=lambda p: {"b": 2 * p["b"], "W": 2 * (p["W"] - TARGET)},
            max_steps=400,
        )
        assert result.nit == 400
        assert result.fun < 0.1 * np.sum((X0 - TARGET) ** 2)
        assert np.sum(result.x["b"] ** 2) < 0.1 * np.sum(X0[0] ** 2)

    @pytest.mark.parametrize("name", zo.methods())
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("kind", ["zero", "nan"])
    def test_nothing_to_learn_changes_nothing(self, name, dtype, kind):
        x0 = {"W": X0.astype(dtype), "row": X0[:1].astype(dtype), "b": X0[0].astype(dtype)}
        optimizer = zo.Optimizer(x0, method=getattr(zo, name)())
        value = 0.0 if kind == "zero" else np.nan
        for _ in range(3):
            if optimizer.method.estimator is None:
                optimizer.descend({k: np.full_like(v, value) for k, v in x0.items()})
            else:
                optimizer.tell([value] * len(optimizer.ask()))
        assert all(np.array_equal(optimizer.x[k], x0[k]) for k in x0)
        assert all(v.dtype == dtype for v in optimizer.x.values())

    @pytest.mark.parametrize("name", zo.methods())
    def test_any_library(self, backend, name):
        method = getattr(zo, name)()
        optimizer = zo.Optimizer(
            {"W": backend.array(X0), "b": backend.array(X0[0])}, method=method
        )
        rng = np.random.default_rng(0)
        for _ in range(2):
            if method.estimator is None:
                optimizer.descend({"W": backend.array(X0), "b": backend.array(X0[0])})
            else:
                optimizer.tell(rng.standard_normal(len(optimizer.ask())))
        for x in optimizer.x.values():
            assert np.all(np.isfinite(backend.numpy(x)))
            assert type(x) is type(backend.array(X0))

    @pytest.mark.parametrize("name", zo.methods())
    def test_compiles_once(self, make_backend, name, caplog):
        backend = make_backend("jax")
        import jax

        method = getattr(zo, name)()

        def go(seed):
            return zo.minimize(
                lambda p, key: float(np.sum(np.asarray(p) ** 2)),
                backend.array(X0),
                method=method,
                gradient=(lambda x: 2 * x) if method.estimator is None else None,
                max_steps=5,
                seed=seed,
            )

        go(0)
        seed = 0 if method.draws_in_update else 1
        with jax.log_compiles(), caplog.at_level("WARNING"):
            go(seed)
        names = [r.getMessage() for r in caplog.records if "Finished XLA" in r.getMessage()]
        assert [n for n in names if "precise" in n] == []


class TestGradients:
    def test_needed(self):
        with pytest.raises(
            TypeError, match=r"muon is a first-order method and has no probes; pass"
        ):
            zo.minimize(F, X0, method="muon", max_steps=3)
        with pytest.raises(TypeError, match="muon is a first-order method"):
            zo.Optimizer(X0, method="muon").ask()

    def test_not_taken(self):
        with pytest.raises(
            TypeError, match="zo_mopi estimates the gradient from losses and takes"
        ):
            zo.minimize(F, X0, gradient=gradient, max_steps=3)
        with pytest.raises(TypeError, match="zo_mopi estimates"):
            zo.Optimizer(X0).descend(X0)

    @pytest.mark.parametrize(
        ("value", "text"),
        [(None, "NoneType"), (X0[0], r"shape \(5,\)"), ({"W": X0}, "dict")],
    )
    def test_wrong(self, value, text):
        with pytest.raises(ValueError, match=f"gradient must return arrays .*{text}"):
            zo.minimize(F, X0, method="muon", gradient=lambda x: value, max_steps=3)

    def test_wrong_names(self):
        with pytest.raises(
            ValueError, match=r"gradient must return arrays .*\['V'\], not \['W'\]"
        ):
            zo.Optimizer({"W": X0}, method="muon").descend({"V": X0})

    def test_queries_and_key(self):
        keys, calls = [], []

        def noisy(x, key):
            keys.append(key)
            return gradient(x)

        def fun(x):
            calls.append(1)
            return float(F(x))

        result = zo.minimize(fun, X0, method="muon", gradient=noisy, max_queries=50)
        assert result.nfev == len(calls) == 50
        assert result.nit == len(set(keys)) == 47 + 1
        assert result.fun == pytest.approx(F(result.x))

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_gradient_that_is_not_finite(self, backend, value):
        def bad(x):
            return x * value

        start = backend.array(np.ones((3, 4)))
        options = {"method": "mopi", "gradient": bad, "max_steps": 5}

        def loss(x):
            return float(np.sum(backend.numpy(x)))

        result = zo.minimize(loss, start, **options)
        assert np.array_equal(backend.numpy(result.x_last), np.ones((3, 4)))
        assert "5 of 12 evaluations failed, the first with a gradient that is" in result.message
        with pytest.raises(zo.NonFiniteLossError, match="gradient returned a number that is not"):
            zo.minimize(loss, start, on_failure="raise", **options)

    def test_failing_gradient_can_be_skipped(self):
        rng = np.random.default_rng(0)

        def flaky(x):
            if rng.random() < 0.3:
                raise ZeroDivisionError
            return gradient(x)

        result = zo.minimize(
            F,
            X0,
            method=zo.muon(learning_rate=0.05),
            gradient=flaky,
            max_steps=200,
            on_failure="skip",
        )
        assert result.fun < 0.5 * F(X0)
        assert "evaluations failed, the first with ZeroDivisionError" in result.message


class TestParts:
    def test_polar_express_reaches_the_sign(self):
        """Eight steps take singular values from 1e-3 to 1 close to 1; Muon's quintic does not."""
        rng = np.random.default_rng(0)
        u, _, vt = np.linalg.svd(rng.standard_normal((12, 20)), full_matrices=False)
        matrix = (u * np.logspace(0, -2.5, 12)) @ vt

        def error(part):
            values = np.linalg.svd(part.direction(matrix, None, None).direction, compute_uv=False)
            return np.max(np.abs(values - 1))

        express = NewtonSchulz(8, polynomials="polar-express")
        assert error(express) < 0.02
        assert error(NewtonSchulz(8)) > 0.1

    @pytest.mark.parametrize(
        ("make", "text"),
        [
            (lambda: zo.zo_muon(orthogonalizer="qr"), "orthogonalizer must be one of 'newton"),
            (lambda: zo.lozo(rank=0), "rank must be an integer of at least 1"),
            (lambda: zo.subzero(refresh_every=0), "refresh_every must be an integer"),
            (lambda: zo.hizoo(curvature_rate=1.0), "curvature_rate must be a number from 0"),
            (lambda: zo.mezo_adam(beta2=1.0), "beta2 must be a number from 0"),
            (lambda: zo.low_rank_msgd(sketch="rows"), "sketch must be one of 'gaussian'"),
            (lambda: zo.aro(normalisation="max"), "normalisation must be one of 'sign'"),
            (lambda: zo.adago(clip=0.0), "clip must be a positive number"),
            (lambda: zo.dion(rank=0), "rank must be an integer of at least 1"),
        ],
    )
    def test_bad_options(self, make, text):
        with pytest.raises(ValueError, match=text):
            make()

    @pytest.mark.parametrize("name", ["mezo", "mezo_svrg", "lozo", "subzero", "hizoo", "zo_sgd"])
    def test_linear_methods_have_no_default_rate(self, name):
        method = getattr(zo, name)(learning_rate=None)
        with pytest.raises(ValueError, match="learning_rate must be given: the steps of this"):
            zo.Optimizer(X0, method=method)
        with pytest.raises(ValueError, match="learning_rate must be given: the steps of this"):
            zo.Optimizer(X0, method=zo.adago(learning_rate=None))
