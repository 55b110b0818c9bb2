"""Rows of embeddings at `padding_idx`: no gradient reaches them, and no probe and no step does."""

import numpy as np
import pytest

import zomopi_core as zo

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from test_torch import options  # noqa: E402
from zomopi_adapters.torch import ZOMOPI, per_probe, tiled  # noqa: E402

ROW = 2
METHODS = [
    "zo_mopi", "zo_muon", "mezo", "mezo_momentum", "mezo_adam", "lozo", "lozo_m", "subzero",
    "hizoo",
]  # fmt: skip
IDS = torch.arange(27).reshape(9, 3) % 9


class Model(nn.Module):
    def __init__(self, table, tied=False):
        super().__init__()
        self.table = table
        self.head = nn.Linear(4, 9, bias=False)
        if tied:
            self.head.weight = table.weight

    def forward(self, ids):
        found = self.table(ids)
        return self.head(torch.tanh(found if found.ndim == 2 else found.sum(dim=1)))


def make(dtype=torch.float64, tied=False, padding=ROW, kind=nn.Embedding):
    torch.manual_seed(0)
    model = Model(kind(9, 4, padding_idx=padding), tied)
    with torch.no_grad():
        model.table.weight[ROW] = torch.randn(4)  # not the zeros that it begins with
    return model.to(dtype)


def train(model, **extra):
    """Return the table before and after some steps."""
    optimizer = ZOMOPI(model, **{"lr": 0.05, "smoothing": 0.02} | extra)
    before = model.table.weight.detach().clone()
    for _ in range(9):
        optimizer.step(
            lambda: per_probe(
                F.cross_entropy(model(tiled(IDS)).double(), tiled(IDS[:, 0]), reduction="none")
            )
        )
    optimizer.detach()
    return before, model.table.weight.detach()


def others(x):
    return torch.cat([x[:ROW], x[ROW + 1 :]])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("binding", ["in_place", "overlay"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_stay_to_the_bit(name, binding, dtype):
    extra = options(name) | {"method": name, "binding": binding}
    before, after = train(make(dtype), **extra)
    assert torch.equal(after[ROW], before[ROW])
    assert torch.all(torch.any(others(after) != others(before), dim=1))


@pytest.mark.parametrize(
    "extra",
    [
        {"side": "right"}, {"side": "right", "binding": "overlay"}, {"lr": "auto"},
        {"binding": "overlay", "batched": True}, {"refresh_every": 2, "rank": 3},
        {"refresh_every": 2, "rank": 3, "binding": "overlay", "side": "right", "batched": True},
    ],
    ids=str,
)  # fmt: skip
def test_stay_with_other_options(extra):
    before, after = train(make(), probes=2, **extra)
    assert torch.equal(after[ROW], before[ROW])
    assert torch.all(torch.any(others(after) != others(before), dim=1))


def test_bags():
    before, after = train(make(kind=nn.EmbeddingBag))
    assert torch.equal(after[ROW], before[ROW])
    assert not torch.equal(after, before)


@pytest.mark.parametrize("model", [{"padding": None}, {"tied": True}], ids=str)
def test_rows_that_a_gradient_reaches_move(model):
    """Without padding, and where a head uses the table, too."""
    before, after = train(make(**model))
    assert not torch.equal(after[ROW], before[ROW])


def test_others_take_the_same_path():
    """The row is left out of the perturbation and of nothing else."""
    tables = []
    for padding in (ROW, None):
        model = make(padding=padding)
        # a loss that does not see the row, so that its probe makes no difference
        seen = IDS[IDS != ROW].reshape(-1, 1)
        optimizer = ZOMOPI(model, lr=0.05, rank=3, refresh_every=4)
        for _ in range(9):
            optimizer.step(lambda m=model, ids=seen: F.cross_entropy(m(ids), ids[:, 0]))
        tables.append(others(model.table.weight.detach()))
    torch.testing.assert_close(*tables, rtol=1e-9, atol=1e-10)


def test_what_a_sampler_keeps_is_not_changed():
    class Kept:
        def __init__(self):
            self.kept = {}

        def normal(self, draw, shape, *, dtype, device):
            if draw not in self.kept:
                numbers = zo.HostSampler(0).normal(draw, shape, dtype=np.float64)
                self.kept[draw] = torch.as_tensor(numbers, dtype=dtype)
            return self.kept[draw]

    sampler = Kept()
    before, after = train(make(), method="mezo", seed=sampler)
    assert torch.equal(after[ROW], before[ROW])
    for draw, values in sampler.kept.items():
        fresh = zo.HostSampler(0).normal(draw, tuple(values.shape), dtype=np.float64)
        assert np.array_equal(values.numpy(), fresh)
