"""A step that fails leaves the model as it was: to the bit under an overlay and in 16 bits."""

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from test_torch import data, network  # noqa: E402
from zomopi_adapters.torch import ZOMOPI, per_probe, tiled  # noqa: E402

OVERLAY = {"binding": "overlay"}
BATCHED = {**OVERLAY, "batched": True}
# calls of the closure in a step with two central probes
CASES = {
    "overlay": (torch.float32, OVERLAY, 4),
    "overlay, bfloat16": (torch.bfloat16, OVERLAY, 4),
    "overlay, float16": (torch.float16, OVERLAY, 4),
    "in place, bfloat16": (torch.bfloat16, {"binding": "in_place"}, 4),
    "in place, float16": (torch.float16, {"binding": "in_place"}, 4),
    "in place, on the host": (torch.bfloat16, {"binding": "in_place", "reference": "host"}, 4),
    "batched": (torch.float32, BATCHED, 1),
    "batched, bfloat16": (torch.bfloat16, BATCHED, 1),
    "in chunks": (torch.float32, {**BATCHED, "chunk": 3}, 2),
}
EVERY_CALL = [(name, call) for name, (_, _, calls) in CASES.items() for call in range(calls)]


def raising(error):
    def fail(loss):
        raise error

    return fail


class Trouble(Exception):
    pass


FAILURES = {
    "exception": (raising(Trouble), Trouble),
    "Ctrl-C": (raising(KeyboardInterrupt), KeyboardInterrupt),
    "shape": (lambda loss: torch.zeros(7), ValueError),
    "type": (lambda loss: "1.0", (TypeError, ValueError)),
}


class Run:
    """A model after a few steps, what it answers, and a closure that fails at one call."""

    def __init__(self, case, **options):
        dtype, binding, _ = CASES[case]
        self.model = network(dtype)
        self.optimizer = ZOMOPI(
            self.model, lr=0.05, rank=3, probes=2, smoothing=0.05, **binding, **options
        )
        self.x, self.y = data(dtype)
        self.left, self.fail = -1, None
        for _ in range(3):
            self.optimizer.step(self.closure)
        self.memory = {k: v.data for k, v in self.model.named_parameters()}
        self.before = self.look()

    def closure(self):
        losses = F.cross_entropy(
            self.model(tiled(self.x)).float(), tiled(self.y), reduction="none"
        )
        loss = per_probe(losses)
        self.left -= 1
        return self.fail(loss) if self.left == -1 and self.fail else loss

    def look(self):
        """Return the weights as they are in memory, and what the model makes of them."""
        with torch.no_grad():
            answer = self.model(self.x)
        return [answer, *(v.clone() for v in self.memory.values())]

    def assert_unmoved(self):
        for now, before in zip(self.look(), self.before, strict=True):
            assert torch.equal(now, before)


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize(("case", "call"), EVERY_CALL)
def test_the_model_is_where_it_was(case, call, failure):
    run = Run(case)
    run.fail, error = FAILURES[failure]
    run.left = call
    with pytest.raises(error):
        run.optimizer.step(run.closure)
    run.assert_unmoved()
    run.fail = None
    assert torch.isfinite(run.optimizer.step(run.closure))  # and the step can be taken again
    assert not torch.equal(run.look()[0], run.before[0])


@pytest.mark.parametrize("case", CASES)
def test_losses_that_are_all_nan_move_nothing(case):
    run = Run(case)
    run.fail, run.left = (lambda loss: loss * torch.nan), 10**6
    for _ in range(2):
        run.left, fail = -1, run.fail
        run.optimizer.step(lambda run=run, fail=fail: fail(run.closure()))
    run.assert_unmoved()


@pytest.mark.parametrize("case", CASES)
def test_a_step_that_failed_is_the_same_when_it_is_taken_again(case):
    ends = []
    for failures in (0, 2):
        run = Run(case)
        for _ in range(failures):
            run.fail, run.left = raising(Trouble), CASES[case][2] - 1
            with pytest.raises(Trouble):
                run.optimizer.step(run.closure)
        run.fail = None
        run.optimizer.step(run.closure)
        ends.append(run.look())
    for a, b in zip(*ends, strict=True):
        assert torch.equal(a, b)
