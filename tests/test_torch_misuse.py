"""What careless users of the Torch optimizer do, and what they are told."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from zomopi_adapters.torch import ZOMOPI  # noqa: E402

X = torch.linspace(-1, 1, 160).reshape(20, 8).sin()
Y = X.sum(dim=1, keepdim=True)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 1))


def objective(model):
    return lambda: F.mse_loss(model(X), Y)


class TestClosures:
    """A closure that does more than to compute a loss, while the weights stand at a probe."""

    @pytest.mark.parametrize("binding", ["in_place", "overlay"])
    @pytest.mark.parametrize("what", ["step", "merge", "load_state_dict"])
    def test_calls_that_wait_until_the_step_is_over(self, binding, what):
        model = network()
        optimizer = ZOMOPI(model, lr=0.05, binding=binding)
        optimizer.step(objective(model))
        state = optimizer.state_dict()
        calls = {
            "step": lambda: optimizer.step(objective(model)),
            "merge": optimizer.merge,
            "load_state_dict": lambda: optimizer.load_state_dict(state),
        }
        before = [p.detach().clone() for p in model.parameters()]

        def closure():
            calls[what]()
            return objective(model)()

        with pytest.raises(RuntimeError, match=f"{what} was called by the closure"):
            optimizer.step(closure)
        for x, y in zip(model.parameters(), before, strict=True):
            torch.testing.assert_close(x.detach(), y, rtol=0, atol=1e-6)
        calls[what]()  # it is over now
        optimizer.step(objective(model))


class TestRates:
    @pytest.mark.parametrize("rate", [float("nan"), float("inf"), -0.1, None, "auto"])
    def test_with_which_no_step_can_be_taken(self, rate):
        """Refused before anything moves or is evaluated."""
        model = network()
        optimizer = ZOMOPI(model, lr=0.05)
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.param_groups[1]["lr"] = rate
        with pytest.raises(ValueError, match=r"param_groups\[1\]\['lr'\] must be a finite number"):
            optimizer.step(lambda: pytest.fail("it was called"))
        assert all(torch.equal(x, y) for x, y in zip(model.parameters(), before, strict=True))

    @pytest.mark.parametrize("rate", [0, 0.0, torch.tensor(0.02), torch.tensor(0.0)])
    def test_with_which_one_can(self, rate):
        model = network()
        optimizer = ZOMOPI(model, lr=0.05, binding="overlay")
        before = model[0].weight.detach().clone()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step(objective(model))
        optimizer.merge()
        assert torch.equal(model[0].weight, before) == (float(rate) == 0)


class TestModes:
    @pytest.mark.parametrize("binding", ["in_place", "overlay"])
    def test_steps_within_inference_mode_and_without(self, binding):
        """What is made within it would be of no use outside of it."""
        model, other = network(), network()
        options = {"lr": 0.05, "binding": binding, "refresh_every": 2}
        mixed, plain = ZOMOPI(model, **options), ZOMOPI(other, **options)
        for t in range(6):
            with torch.inference_mode(t % 3 == 0):
                mixed.step(objective(model))
            plain.step(objective(other))
        mixed.merge()
        plain.merge()
        for x, y in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(x, y)
        objective(model)().backward()  # and gradients can be taken afterwards
        assert model[0].weight.grad is not None


class TestGroups:
    def test_none_is_added_beside_a_journal(self, tmp_path):
        """A journal begins with all parameters: the run could not be resumed."""
        model = network()
        optimizer = ZOMOPI(model[0].named_parameters(), lr=0.05, journal=tmp_path / "a.zomopi")
        optimizer.step(objective(model))
        with pytest.raises(ValueError, match="begins with all parameters"):
            optimizer.add_param_group({"params": list(model[2].parameters())})
        assert len(optimizer.param_groups) == 1
        optimizer.close()
        optimizer.add_param_group({"params": list(model[2].parameters())})
        optimizer.step(objective(model))
