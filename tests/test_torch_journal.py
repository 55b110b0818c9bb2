"""Journals of the Torch optimizer: weights that follow from losses alone."""

import itertools

import pytest

import zomopi_core as zo

torch = pytest.importorskip("torch")

from zomopi_adapters.torch import ZOMOPI  # noqa: E402

X = torch.linspace(-1, 1, 160, dtype=torch.float64).reshape(20, 8).sin()
Y = X.sum(dim=1, keepdim=True)


def model_of(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1)).to(
        dtype
    )


def closure_of(model, calls=None):
    dtype = next(model.parameters()).dtype
    x, y = X.to(dtype), Y.to(dtype)

    def closure():
        if calls is not None:
            next(calls)
        return torch.nn.functional.mse_loss(model(x), y)

    return closure


def same(a, b):
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y)


class TestResume:
    @pytest.mark.parametrize("binding", ["in_place", "overlay"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    def test_goes_on_to_the_same_bits(self, tmp_path, binding, dtype):
        options = {"lr": 0.02, "binding": binding, "refresh_every": 4, "seed": 3}
        options["smoothing"] = 0.05  # to be seen in 16 bits
        plain = model_of(dtype)
        whole = ZOMOPI(plain, **options)
        for _ in range(15):
            whole.step(closure_of(plain))

        first = model_of(dtype)
        optimizer = ZOMOPI(first, journal=tmp_path / "a.zomopi", **options)
        for _ in range(9):
            optimizer.step(closure_of(first))
        optimizer._journal.close()  # as a process that ends

        second = model_of(dtype)
        optimizer = ZOMOPI(second, **options)
        optimizer.resume(tmp_path / "a.zomopi")
        calls = itertools.count()
        for _ in range(6):
            optimizer.step(closure_of(second, calls))
        assert next(calls) == 6 * len(optimizer._estimator.evaluations)
        optimizer.close()
        whole.merge()
        optimizer.merge()
        same(second, plain)

    def test_overlaid_models_act_the_same(self, tmp_path):
        options = {"lr": 0.02, "binding": "overlay", "seed": 3}
        first, second = model_of(), model_of()
        one = ZOMOPI(first, journal=tmp_path / "a.zomopi", **options)
        for _ in range(5):
            one.step(closure_of(first))
        one.close()
        two = ZOMOPI(second, **options)
        two.resume(tmp_path / "a.zomopi")
        one.merge()
        two.merge()
        same(first, second)

    def test_schedules(self, tmp_path):
        first, second = model_of(), model_of()
        one = ZOMOPI(first, lr=0.05, journal=tmp_path / "a.zomopi")
        scheduler = torch.optim.lr_scheduler.ExponentialLR(one, 0.8)
        for _ in range(6):
            one.step(closure_of(first))
            scheduler.step()
        one.close()
        ZOMOPI(second, lr=0.05).resume(tmp_path / "a.zomopi")
        same(first, second)

    def test_from_a_checkpoint(self, tmp_path):
        first, second = model_of(), model_of()
        one = ZOMOPI(first, lr=0.05, journal=tmp_path / "a.zomopi")
        for _ in range(6):
            one.step(closure_of(first))
            if one._step == 4:
                saved = one.state_dict()
                weights = {k: v.clone() for k, v in first.state_dict().items()}
        one.close()
        two = ZOMOPI(second, lr=0.05)
        second.load_state_dict(weights)
        two.load_state_dict(saved)
        two.resume(tmp_path / "a.zomopi")
        same(first, second)

    def test_failures(self, tmp_path):
        first, second = model_of(), model_of()
        one = ZOMOPI(first, lr=0.05, journal=tmp_path / "a.zomopi")
        count = itertools.count()

        def closure():
            loss = closure_of(first)()
            return loss * float("nan") if next(count) % 5 == 0 else loss

        for _ in range(6):
            one.step(closure)
        one.close()
        ZOMOPI(second, lr=0.05).resume(tmp_path / "a.zomopi")
        same(first, second)


class TestRefusals:
    @pytest.fixture
    def path(self, tmp_path):
        model = model_of()
        optimizer = ZOMOPI(model, lr=0.05, journal=tmp_path / "a.zomopi")
        optimizer.step(closure_of(model))
        optimizer.close()
        return tmp_path / "a.zomopi"

    def test_another_start(self, path):
        model = model_of()
        with torch.no_grad():
            model[0].weight[0, 0] += 1
        with pytest.raises(zo.JournalError, match="other numbers"):
            ZOMOPI(model, lr=0.05).resume(path)

    @pytest.mark.parametrize(
        ("options", "text"),
        [({"lr": 0.1}, "its methods were others"), ({"lr": 0.05, "seed": 1}, "its seed was 0")],
    )
    def test_other_options(self, path, options, text):
        with pytest.raises(zo.JournalError, match=text):
            ZOMOPI(model_of(), **options).resume(path)

    def test_other_drivers(self, path):
        with pytest.raises(zo.JournalError, match="was written by torch"):
            zo.resume(path, lambda x: 0.0)

    def test_what_depends_on_inputs(self, tmp_path):
        model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4))
        with pytest.raises(ValueError, match="BatchNorm1d keeps statistics"):
            ZOMOPI(model, lr=0.05, journal=tmp_path / "a.zomopi")
        with pytest.raises(ValueError, match="takes its subspaces"):
            ZOMOPI(model_of(), lr=0.05, sketch="activation", journal=tmp_path / "a.zomopi")
        with pytest.raises(ValueError, match="has no use here"):
            ZOMOPI(model_of(), journal=zo.Journal(tmp_path / "a.zomopi", snapshot_steps=3))
        assert not list(tmp_path.iterdir())
