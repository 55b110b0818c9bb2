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


def test_a_step_does_not_wait_for_the_device():
    model = network("cuda", torch.float32)
    x, y = data("cuda", torch.float32)
    optimizer = ZOMOPI(model.named_parameters(), lr=0.05, rank=3, refresh_every=1000)
    optimizer.step(lambda: F.cross_entropy(model(x), y))
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step(lambda: F.cross_entropy(model(x), y))
    finally:
        torch.cuda.set_sync_debug_mode("default")


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
