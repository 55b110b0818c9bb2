"""The Torch optimizer on a GPU; left out where Torch finds none."""

import pytest

import zomopi_core as zo

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("torch finds no GPU", allow_module_level=True)

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from zomopi_adapters.torch import ZOMOPI, per_probe, tiled  # noqa: E402


def network(device, dtype=torch.float64):
    torch.manual_seed(0)
    layers = nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)
    return nn.Sequential(*layers).to(device, dtype)


def data(device, dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(16, 6, generator=generator, dtype=torch.float64)
    return x.to(device, dtype), (torch.arange(16) % 3).to(device)


@pytest.mark.parametrize("binding", ["in_place", "overlay"])
@pytest.mark.parametrize("batched", [False, True])
def test_path_is_that_of_the_cpu(binding, batched):
    if batched and binding == "in_place":
        pytest.skip("batched needs an overlay")
    ends = []
    for device in ("cpu", "cuda"):
        model, (x, y) = network(device), data(device)
        optimizer = ZOMOPI(
            model, lr=0.05, rank=3, refresh_every=4, binding=binding, batched=batched,
            seed=zo.HostSampler(0), weight_decay=0.1,
        )  # fmt: skip
        for _ in range(10):
            optimizer.step(
                lambda model=model, x=x, y=y: per_probe(
                    F.cross_entropy(model(tiled(x)), tiled(y), reduction="none")
                )
            )
        optimizer.merge()
        ends.append([p.detach().cpu() for p in model.parameters()])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("reference", ["device", "host"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_weights_return_to_the_same_bits(reference, dtype):
    model = network("cuda", dtype)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = ZOMOPI(
        model.named_parameters(), lr=0.1, probes=1, smoothing=0.02, reference=reference
    )
    for _ in range(200):
        optimizer.step(lambda: 1.0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_generators_of_the_device_are_those_of_one_pass():
    model = nn.Sequential(nn.Linear(6, 50), nn.Dropout(0.5)).cuda()
    x, masks = data("cuda", torch.float32)[0], []

    def closure():
        out = model(x)
        masks.append(out == 0)
        return out.mean()

    torch.manual_seed(3)
    closure()
    expected = torch.rand(3, device="cuda")
    torch.manual_seed(3)
    masks.clear()
    ZOMOPI(model.named_parameters(), lr=0.1, probes=2).step(closure)
    assert torch.equal(torch.rand(3, device="cuda"), expected)
    assert all(torch.equal(mask, masks[0]) for mask in masks)


def test_a_model_over_several_devices():
    """Here the host and one GPU, as with ``device_map``."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            x = torch.tanh(self.first(x))
            return self.second(x.to(self.second.weight.device))

    ends = []
    for place in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = Model().double()
        model.second.to(place)
        x, y = data("cpu")[0], data(place)[1]
        optimizer = ZOMOPI(model.named_parameters(), lr=0.05, rank=3, seed=zo.HostSampler(0))
        for _ in range(5):
            optimizer.step(lambda m=model, x=x, y=y: F.cross_entropy(m(x), y))
        ends.append([p.detach().cpu() for p in model.parameters()])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def settings(way):
    """Return the options of one of the ways to evaluate."""
    binding = "in_place" if way == "in_place" else "overlay"
    return {"binding": binding, "batched": way == "batched"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", ["in_place", "overlay", "batched"])
def test_a_step_does_not_wait_for_the_device(way, dtype):
    model = network("cuda", dtype)
    x, y = data("cuda", dtype)
    optimizer = ZOMOPI(model, lr=0.05, rank=3, refresh_every=1000, smoothing=0.05, **settings(way))

    def closure():
        return per_probe(F.cross_entropy(model(tiled(x)).float(), tiled(y), reduction="none"))

    for _ in range(2):  # the first looks at precision, and compares batched losses
        optimizer.step(closure)
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step(closure)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_peak_memory_beside_the_forward_passes():
    """The state, two probes, one largest matrix and a hundredth of the weights at most."""
    weights = [nn.Parameter(0.02 * torch.randn(4096, 4096, device="cuda")) for _ in range(6)]
    rank, before = 64, torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    optimizer = ZOMOPI(weights, lr=1e-3, rank=rank, probes=4, difference="forward")
    losses = iter(torch.linspace(1.0, 2.0, 100, device="cuda"))
    for _ in range(3):
        optimizer.step(lambda: next(losses))
    peak = torch.cuda.max_memory_allocated() - before
    thin = 4 * rank * 4096  # bytes of A, M, V or a probe of one matrix
    largest = 4 * 4096**2
    # A, M, V and the new M and V, coordinates of the step, two probes
    assert peak <= 6 * thin * (3 + 2 + 1 + 2) + largest + 0.01 * 6 * largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_probes_at_once_are_faster_at_a_small_batch(dtype):
    """At least twice the forward passes a second; one text of 16 tokens."""
    torch.manual_seed(0)
    layers = [nn.Linear(2048, 2048, bias=False) for _ in range(12)]
    model = nn.Sequential(*layers).to("cuda", dtype)
    x = torch.randn(1, 16, 2048, device="cuda", dtype=dtype)
    times = {}
    for batched in (False, True):
        optimizer = ZOMOPI(
            model, lr=1e-4, rank=16, probes=8, smoothing=0.05, binding="overlay", batched=batched
        )

        def closure():
            return per_probe(model(tiled(x)).float().square().flatten(1).mean(dim=1))

        found = []
        for _ in range(12):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            optimizer.step(closure)
            end.record()
            torch.cuda.synchronize()
            found.append(start.elapsed_time(end))
        times[batched] = min(found)
        optimizer.detach()
    assert times[False] >= 2 * times[True], times


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_models(mode):
    """`reduce-overhead` replays CUDA graphs, whose weights are the ones that move."""
    torch._dynamo.reset()
    expected, model = network("cuda", torch.float32), network("cuda", torch.float32)
    x, y = data("cuda", torch.float32)
    for m, run in ((expected, expected), (model, torch.compile(model, mode=mode))):
        optimizer = ZOMOPI(m, lr=0.05, rank=2, refresh_every=3)
        for _ in range(5):
            optimizer.step(lambda run=run: F.cross_entropy(run(x), y).clone())
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("way", ["in_place", "overlay", "batched"])
def test_autocast(way):
    """Autocast keeps 16-bit copies of weights, which would hide all perturbations."""
    model = network("cuda", torch.float32)
    x, y = data("cuda", torch.float32)
    losses = []

    def closure():
        with torch.autocast("cuda", dtype=torch.bfloat16):
            each = F.cross_entropy(model(tiled(x)), tiled(y), reduction="none")
        losses.append(per_probe(each.float()))
        return losses[-1]

    matrices = [("first", model[0].weight), ("last", model[3].weight)]
    optimizer = ZOMOPI(matrices, lr=0.1, smoothing=0.1, probes=4, model=model, **settings(way))
    optimizer.step(closure)
    assert model[0].weight.dtype == torch.float32
    values = torch.cat([loss.flatten() for loss in losses]).tolist()
    assert len(set(values)) >= 8


def test_a_captured_forward_pass_sees_the_moved_weights():
    model = network("cuda", torch.float32)
    x, y = data("cuda", torch.float32)
    with torch.no_grad():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            F.cross_entropy(model(x), y)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = F.cross_entropy(model(x), y)

    def replayed():
        graph.replay()
        return loss.clone()

    eager = network("cuda", torch.float32)
    for m, closure in ((model, replayed), (eager, lambda: F.cross_entropy(eager(x), y))):
        optimizer = ZOMOPI(m.named_parameters(), lr=0.05, rank=3)
        for _ in range(3):
            optimizer.step(closure)
    for a, b in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
