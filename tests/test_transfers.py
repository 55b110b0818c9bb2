"""Between refreshes nothing waits for a device: implicit transfers to the host raise here."""

import contextlib

import numpy as np
import pytest

import zomopi_core as zo
from zomopi_core import _arrays

METHODS = {
    "central": zo.zo_mopi(rank=3, learning_rate=0.1, probes=2, refresh_every=100),
    "leave-one-out": zo.zo_mopi(
        rank=3, learning_rate=0.1, probes=4, difference="leave-one-out", refresh_every=100
    ),
    "rank chosen": zo.zo_mopi(
        rank=3, learning_rate=0.1, spectral_rank="auto", momentum=0.9, refresh_every=100
    ),
    "muon": zo.zo_muon(rank=3, refresh_every=100),
    "mezo": zo.mezo(learning_rate=1e-3),
}
# What turns an array into numbers of the host.
LOOKS = ("__bool__", "__float__", "__int__", "__index__", "__complex__", "__array__")
LOOKS += ("get", "item", "tolist", "numpy", "cpu")


def start(backend):
    rng = np.random.default_rng(0)
    return {
        "V": backend.array(rng.standard_normal((5, 6)), "float32"),
        "W": backend.array(rng.standard_normal((5, 6)), "float32"),
        "b": backend.array(rng.standard_normal(4), "float32"),
    }


@contextlib.contextmanager
def waiting_refused(backend):
    """Let everything raise by which the host waits for a device."""
    if backend.name == "jax:cuda":
        import jax

        with jax.transfer_guard_device_to_host("disallow"):
            yield
    elif backend.name == "torch:cuda":
        import torch

        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    else:  # the transfer guard of JAX lets everything pass on a CPU

        def refused(self, *arguments, **options):
            raise RuntimeError("an array of the device was looked at")

        array_class = type(backend.array(1.0))
        with pytest.MonkeyPatch.context() as patch:
            for name in LOOKS:
                if hasattr(array_class, name):
                    patch.setattr(array_class, name, refused)
            yield


@pytest.mark.parametrize(
    "device", ["array_api_strict:device1", "jax", "cupy", "torch:cuda", "jax:cuda"]
)
@pytest.mark.parametrize(
    ("name", "reuse"), [*((name, False) for name in METHODS), ("central", True)]
)
def test_optimizer(make_backend, device, name, reuse):
    backend = make_backend(device)

    def loss(p):
        total = backend.xp.sum(p["V"] ** 2) + backend.xp.sum(p["W"] ** 2)
        return total + backend.xp.sum(p["b"] ** 2)

    if device.startswith("jax"):
        import jax

        loss = jax.jit(loss)  # JAX sends constants of what it does not compile to the device
    optimizer = zo.Optimizer(start(backend), method=METHODS[name], reuse_buffers=reuse)
    optimizer.tell([loss(p) for p in optimizer.ask()])
    with waiting_refused(backend):
        for _ in range(3):
            losses = [loss(p) for p in optimizer.ask()]
            optimizer.tell(losses)
        with pytest.raises(RuntimeError):  # the guard can fail
            float(losses[0])
    assert optimizer.nit == 4


def transfers(array_class, monkeypatch):
    """Count what turns arrays into numbers of the host."""
    counts = []

    def counted(convert):
        def call(self, *arguments, **options):
            counts.append(self.shape)
            return convert(self, *arguments, **options)

        return call

    for name in ("__bool__", "__float__", "__int__", "__index__", "__array__", "__buffer__"):
        if hasattr(array_class, name):
            monkeypatch.setattr(array_class, name, counted(getattr(array_class, name)))
    return counts


class TestTuned:
    """A tuned run reads once at a step that looks, and not at the others."""

    @pytest.mark.parametrize("options", [{}, {"smoothing": 1e-3}], ids=str)
    def test_of_the_strict_namespace(self, make_backend, monkeypatch, options):
        backend = make_backend("array_api_strict:device1")
        xp = backend.xp
        method = zo.zo_mopi(rank=3, learning_rate="auto", probes=2, refresh_every=100, **options)
        optimizer = zo.Optimizer(start(backend), method=method)
        read = []
        for _ in range(70):
            tuning = optimizer._point.tuning
            looks, begins = tuning.attentive, not tuning.search.begun
            points = optimizer.ask()
            losses = [sum(xp.sum((x - 1.0) ** 2) for x in p.values()) for p in points]
            with monkeypatch.context() as patch:
                counts = transfers(type(losses[0]), patch)
                optimizer.tell(losses)
            read.append((looks, begins, len(counts)))
        # the lengths of the first direction are known after the step that makes it
        (first,) = [i for i, (_, _, count) in enumerate(read) if count == 2]
        assert read[first][1]
        assert not read[first + 1][1]
        assert {(looks, count) for looks, _, count in read if count != 2} == {
            (True, 1),
            (False, 0),
        }
        assert sum(not looks for looks, _, _ in read) > 10


@pytest.mark.parametrize("options", [{}, {"smoothing": "auto"}, {"learning_rate": "auto"}])
def test_what_is_measured_is_read_once_in_ten_steps(make_backend, monkeypatch, options):
    """The losses of a search, in one transfer, once the rate is found."""
    backend = make_backend("array_api_strict:device1")
    xp, array_class = backend.xp, type(backend.array(1.0))
    original, transfers = array_class.to_device, []

    def counted(x, device, /, **others):
        transfers.append(optimizer.nit)
        return original(x, device, **others)

    method = zo.zo_mopi(rank=3, refresh_every=100, **{"learning_rate": 0.1} | options)
    optimizer = zo.Optimizer(start(backend), method=method)
    monkeypatch.setattr(array_class, "to_device", counted)
    for _ in range(40):
        losses = [xp.sum(p["V"] ** 2) + xp.sum(p["W"] ** 2) for p in optimizer.ask()]
        optimizer.tell(losses)
    # measured 0, 5 and 18, of which 0, 2 and 2 after half of the steps
    assert len(transfers) <= (20 if options else 0)
    assert len([nit for nit in transfers if nit >= 20]) <= 4
    assert bool(transfers) == bool(options)  # what is counted is what a search does


class Gate:
    """Refuses waiting while it is shut."""

    def __init__(self, backend):
        self.backend, self.refusal = backend, contextlib.ExitStack()
        self.is_shut = False

    def shut(self):
        if not self.is_shut:
            self.refusal.enter_context(waiting_refused(self.backend))
        self.is_shut = True

    def open(self):
        self.refusal.close()
        self.is_shut = False


@pytest.mark.parametrize(
    "device", ["array_api_strict:device1", "torch", "jax", "cupy", "torch:cuda", "jax:cuda"]
)
class TestMinimize:
    """`report_every`: one transfer for each report, and nothing else waits."""

    STEPS = 100

    def transfers(self, backend, monkeypatch, **options):
        """Return the number of transfers of a run; from its second step on others raise."""
        xp, transfer, gate, counted = backend.xp, _arrays.to_host, Gate(backend), [0]

        def counting(x):
            if isinstance(x, np.ndarray):
                return transfer(x)
            counted[0] += 1
            was_shut = gate.is_shut
            gate.open()
            try:
                return transfer(x)
            finally:
                if was_shut:
                    gate.shut()

        def loss(params):
            return xp.sum(params["V"] ** 2) + xp.sum(params["W"] ** 2)

        if backend.name.startswith("jax"):
            import jax

            loss = jax.jit(loss)

        def fun(params):
            fun.calls += 1
            if fun.calls > 2 + METHODS["central"].evaluations_per_step:
                gate.shut()
            return loss(params)

        fun.calls = 0
        with monkeypatch.context() as patch, gate.refusal:
            patch.setattr(_arrays, "to_host", counting)
            patch.setattr(_arrays.conversions, "to_host", counting)
            options = {"method": METHODS["central"], "max_steps": self.STEPS, **options}
            result = zo.minimize(fun, start(backend), **options)
        assert fun.calls == result.nfev
        return counted[0], result

    @pytest.mark.parametrize("reuse", [False, True])
    def test_one_for_each_report(self, make_backend, monkeypatch, device, reuse):
        """And one for each of the evaluations at the start and at the end."""
        backend, found = make_backend(device), {}
        for every in (1, 7, 10, 1000):
            counted, result = self.transfers(
                backend, monkeypatch, report_every=every, reuse_buffers=reuse
            )
            assert counted == -(-self.STEPS // every) + 3
            assert not np.any(np.isnan(result.history["loss"]))
            found[every] = result
        for result in found.values():
            for name in ("V", "W"):
                last = (backend.numpy(r.x_last[name]) for r in (result, found[1]))
                np.testing.assert_array_equal(*last)
            np.testing.assert_array_equal(result.history["loss"], found[1].history["loss"])

    def test_others_are_seen(self, make_backend, monkeypatch, device):
        """The control: a schedule that looks at an array at each step."""
        backend = make_backend(device)
        rate = backend.array(0.1, "float32")

        def schedule(step):
            return float(rate)

        method = zo.zo_mopi(rank=3, learning_rate=schedule, probes=2, refresh_every=100)
        with pytest.raises(RuntimeError):
            self.transfers(backend, monkeypatch, report_every=10, method=method)


@pytest.mark.parametrize("name", ["central", "rank chosen"])
def test_steps_between_refreshes_run_inside_a_scan(make_backend, name):
    """One compiled loop of the pure functions ends where the driver's steps end."""
    backend = make_backend("jax")
    import jax

    method = METHODS[name]
    x0 = start(backend)

    def loss(p):
        return sum((x**2).sum() for x in p.values())

    def body(carry, _):
        params, state = carry
        probes = method.propose(state)
        losses = jax.numpy.stack([loss(p) for p in zo.perturb(method, params, probes)])
        state, step = method.update(state, losses, probes)
        return (zo.apply_step(params, step), state), losses.mean()

    @jax.jit
    def steps(params, state):
        return jax.lax.scan(body, (params, state), length=5)

    state = method.init(x0, 0)
    state = state._replace(step=jax.numpy.asarray(0))  # a scan carries arrays
    (params, state), means = steps(x0, state)
    optimizer = zo.Optimizer(x0, method=method, seed=0)
    for t in range(5):
        losses = [loss(p) for p in optimizer.ask()]
        assert float(means[t]) == pytest.approx(float(sum(losses) / len(losses)), rel=1e-4)
        optimizer.tell(losses)
    for key, x in optimizer.x.items():
        # differences of float32 losses over 2e-3: 1e-4 of a coefficient
        np.testing.assert_allclose(params[key], x, rtol=0, atol=5e-3)
    assert int(state.step) == 5
