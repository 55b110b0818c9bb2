"""What a run needs beside the weights and a bare forward pass, for each binding."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from zomopi_adapters.torch import ZOMOPI, per_probe, tiled  # noqa: E402

LAYERS, WIDTH, RANK, ROWS = 8, 256, 8, 2
HALF = torch.bfloat16
ALONE = {
    "in place": {"binding": "in_place"},
    "overlay": {"binding": "overlay"},
    "two at a time": {"binding": "overlay", "batched": True, "chunk": 2},
}
# Float32 numbers of the rows that are written at a time, a fourth of a matrix.
BLOCK = WIDTH * WIDTH // 4


def peak(run):
    """Return the largest sum of what is allocated while a function runs, with what it returns."""
    run()  # what libraries allocate once
    with torch.profiler.profile(profile_memory=True) as profile:
        kept = run()
    now = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    del kept
    return most


def model_of(dtype, layers=LAYERS):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers))).to(dtype)


def loss_of(model, x):
    return per_probe(model(tiled(x)).float().square().mean(dim=1))


def peak_of_a_run(dtype, layers=LAYERS, **options):
    """Return the peak over that of a bare forward pass: a new optimizer takes three steps."""
    model, x = model_of(dtype, layers), torch.randn(ROWS, WIDTH).to(dtype)

    def run():
        optimizer = ZOMOPI(model, lr=1e-4, smoothing=0.01, **options)
        for _ in range(3):
            optimizer.step(lambda: loss_of(model, x))
        return optimizer

    plain = model_of(dtype, layers)  # an overlay stays on the model

    def bare():
        with torch.no_grad():
            return loss_of(plain, x)

    return peak(run) - peak(bare)


def sizes(dtype):
    """Return the bytes of a thin array of each layer, of a matrix, and of all weights."""
    matrix = WIDTH * WIDTH * dtype.itemsize
    return LAYERS * RANK * WIDTH * 4, matrix, LAYERS * matrix


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Let limits that are meant for large models hold for this one."""
    monkeypatch.setattr("zomopi_adapters._torch_step._STACK", 0)
    monkeypatch.setattr("zomopi_adapters._torch_accumulating._BLOCK", BLOCK)


@pytest.mark.parametrize("probes", [3, 16])
@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize("name", ALONE)
def test_of_probes_one_by_one(name, dtype, probes):
    """State, coordinates, two probes, one matrix and 1 % of the weights; not N probes."""
    found = peak_of_a_run(dtype, rank=RANK, probes=probes, **ALONE[name])
    thin, matrix, weights = sizes(dtype)
    state = 2.5 * thin  # A, M and V, which has half as many columns
    coordinates = 0 if name == "in place" and dtype == torch.float32 else thin
    bound = state + coordinates + 2 * thin + matrix + 0.01 * weights
    if (
        name == "in place" and dtype == HALF
    ):  # a copy of the weights, and the rows that are written
        bound += weights + 4 * BLOCK
    assert found <= bound
    if probes == 16:
        assert found + 14 * thin > bound + matrix  # so that the bound would not hold for N probes


def test_of_all_probes_at_once():
    """They are all there, N times a thin array; a layer has one for each evaluation, twice."""
    thin, matrix, weights = sizes(HALF)
    found = peak_of_a_run(HALF, rank=RANK, probes=16, binding="overlay", batched=True)
    layer = thin / LAYERS
    rest = 3.5 * thin + matrix + 0.01 * weights
    rows = 32 * ROWS * WIDTH * (4 + 4 * 2)  # of a layer's outputs, and of what is made of them
    assert 16 * thin < found <= rest + 16 * thin + 2 * 32 * layer + rows


@pytest.mark.parametrize(("name", "state"), [("mezo", 0), ("mezo_adam", 2), ("hizoo", 1)])
def test_of_methods_in_the_full_space(name, state):
    """Estimates and steps as large as a parameter are made for one parameter at a time."""
    few, many = (
        peak_of_a_run(torch.float32, layers=layers, method=name, probes=1, binding="in_place")
        for layers in (4, 12)
    )
    matrix = sizes(torch.float32)[1]
    assert many - few <= (8 * state + 0.1) * matrix
    assert few <= (4 * state + 10) * matrix
