"""No step waits for the device: what a host reads of tensors is counted, and where it may be."""

import contextlib

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from test_torch import ZEROTH, data, network, options  # noqa: E402
from zomopi_adapters.torch import ZOMOPI, per_probe, tiled  # noqa: E402

# Operations whose result, or whose shape, the host has to know.
WAIT = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.nonzero.default,
}
# On a CPU these copy nothing, and no operation shows them.
COPY = {torch.Tensor.cpu, torch.Tensor.tolist}


class _Operations(TorchDispatchMode):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        mask = func is torch.ops.aten.index.Tensor and any(
            x is not None and x.dtype == torch.bool for x in args[1]
        )
        if mask or func in WAIT:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in COPY:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def reads():
    """Yield a list of what was read."""
    seen = []
    with _Functions(seen), _Operations(seen):
        yield seen


def closure_of(model, dtype):
    x, y = data(dtype)
    return lambda: per_probe(
        F.cross_entropy(model(tiled(x)).float(), tiled(y), reduction="none")
    )  # fmt: skip


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
BINDINGS = {
    "in place": {"binding": "in_place"},
    "overlay": {"binding": "overlay"},
    "batched": {"binding": "overlay", "batched": True},
    "in chunks": {"binding": "overlay", "batched": True, "chunk": 3},
}


@pytest.mark.parametrize(
    "look",
    [
        lambda x: float(x[0]), lambda x: bool(x[0] > 0), lambda x: x[0].item(),
        lambda x: x.tolist(), lambda x: x.cpu().numpy(), lambda x: torch.equal(x, x),
        lambda x: x[x > 0], lambda x: x.nonzero(),
    ],
)  # fmt: skip
def test_what_is_read_is_counted(look):
    with reads() as seen:
        look(torch.ones(3))
    assert len(seen) == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("binding", BINDINGS)
class TestBetweenRefreshes:
    def steps(self, binding, dtype, **more):
        model = network(dtype)
        optimizer = ZOMOPI(
            model, lr=0.01, smoothing=0.05, refresh_every=50, **BINDINGS[binding], **more
        )
        closure = closure_of(model, dtype)
        optimizer.step(closure)  # which looks whether probes can be seen, and batches be split
        with reads() as seen:
            for _ in range(2):
                loss = optimizer.step(closure)
        assert torch.isfinite(loss)
        return seen

    @pytest.mark.parametrize("difference", ["central", "forward", "leave-one-out"])
    def test_nothing_is_read(self, binding, dtype, difference):
        assert self.steps(binding, dtype, rank=3, difference=difference) == []

    def test_of_weight_decay_only_on_a_cpu(self, binding, dtype):
        seen = self.steps(binding, dtype, rank=3, weight_decay=0.1)
        # BLAS takes the factor of a float32 or float64 weight as a number, which saves a pass
        # over it; on a CPU there is no device to wait for
        in_place = binding == "in place" and dtype in {torch.float32, torch.float64}
        assert len(seen) == (2 * 6 if in_place else 0)


@pytest.mark.parametrize("binding", ["in_place", "overlay"])
@pytest.mark.parametrize("name", ZEROTH)
def test_no_method_reads_anything(name, binding):
    model = network(torch.float32)
    chosen = options(name) | {"smoothing": 0.05}
    if "refresh_every" in chosen:
        chosen["refresh_every"] = 50
    optimizer = ZOMOPI(model, 0.01, method=name, binding=binding, **chosen)
    closure = closure_of(model, torch.float32)
    optimizer.step(closure)
    with reads() as seen:
        for _ in range(2):
            optimizer.step(closure)
    assert seen == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("binding", ["in place", "overlay", "batched"])
@pytest.mark.parametrize("extra", [{}, {"smoothing": 0.05}], ids=str)
def test_a_tuned_run_reads_once_where_it_looks(binding, dtype, extra):
    """However many matrices there are; and not at all at the other steps."""
    model = network(dtype)
    optimizer = ZOMOPI(model, "auto", rank=3, refresh_every=500, **BINDINGS[binding], **extra)
    closure, read = closure_of(model, dtype), []
    optimizer.step(closure)
    for _ in range(36):
        tuning = optimizer._stepper.tuner.tuning
        looks, begins = tuning.attentive, not tuning.search.begun
        with reads() as seen:
            optimizer.step(closure)
        read.append((looks, begins, len(seen)))
    # the lengths of the first direction are known after the step that makes it
    twice = [begins for _, begins, count in read if count == 2]
    assert twice in ([], [True])  # not seen where the first step of all made it
    assert {(looks, count) for looks, _, count in read if count != 2} == {(True, 1), (False, 0)}
    assert sum(not looks for looks, _, _ in read) > 5
