"""One parameter of a model: its state, its probes, and where it stands.

A leaf knows its matrix as ``shared factor x varying factor`` (or the other way round): the shared
one is kept from one refresh to the next, the varying one is linear in the coordinates. Moves from
probe to probe therefore add up in the thin varying factor before one addition goes to the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zomopi_core.draws import Draw
from zomopi_core.estimator import Evaluation, Weighted
from zomopi_core.look import Length, length
from zomopi_core.momentum import ExponentialAverage
from zomopi_core.rule import LeafState, Rule
from zomopi_core.sampling import Randomness, TorchSampler
from zomopi_core.subspace import Sketch
from zomopi_core.update import Change

from . import _torch_errors as errors

HALF = (torch.float16, torch.bfloat16)

#: stands in the place of a probe's index for the direction of the last step
STEP = -1


class Source(NamedTuple):
    """Where the draws of a step come from."""

    random: Randomness
    step: int
    rate: float = 0.0  # of the step, where it is tuned


class Leaf:
    """A parameter, the method's state that belongs to it, and where it stands.

    Parameters
    ----------
    index : int
        Key of its draws.
    name : str
    param : torch.Tensor
    rule : Rule
        The parts of the method of its group.
    group : dict
        Its param group, from which the learning rate is read at each step.
    """

    binding = "in_place"

    def __init__(
        self, index: int, name: str, param: Tensor, rule: Rule, group: dict[str, Any]
    ) -> None:
        self.index, self.name, self.param, self.rule, self.group = index, name, param, rule, group
        self.state: LeafState
        self.kind = "full"
        self.shared: Tensor | None = None
        self.probe: int | None = None  # where the leaf stands: at X + scale * P_probe
        self.scale = 0.0
        self.direction: Tensor | None = None  # varying factor of the last step, for rate 1
        self.share = 1.0  # factor of its steps, see `zomopi_core.balance`
        self.rests = False  # while a line goes along the steps of others
        self.remembers = False  # where it was best, see `remember`
        self.still: int | None = None  # a row that is neither probed nor moved
        self.succeeds = False  # whether another way to evaluate was tried before
        self._held: Tensor | None = None
        self.keeps_probes = False  # whether all B of a step are kept until it is taken
        self._drawn: dict[tuple[int, int], Tensor] = {}  # step and probe -> B, of the last draw
        average = rule.momentum
        keeps = isinstance(rule.subspace, Sketch) and rule.subspace.refresh_kind == "anchored"
        # Without memory M is only what one step hands to the orthogonalizer.
        self._forgets = isinstance(average, ExponentialAverage) and average.beta == 0 and not keeps

        self._made_for = self._look()

    def _look(self) -> tuple[Any, ...]:
        return self.param.dtype, self.param.shape, self.param.device

    def check(self) -> None:
        """Raise if the parameter is not what this leaf was made for."""
        if (now := self._look()) != self._made_for:
            raise errors.changed_parameter(self.name, self._made_for, now)

    def init(self, random: Randomness) -> None:
        """Make the state before the first step."""
        self.set_state(self.rule.init(random, self.index, self.param.detach()))

    def succeed(self, other: Leaf, source: Source) -> None:
        """Go on where another leaf of the parameter stands, which is at X."""
        self.succeeds, self.remembers = True, other.remembers
        self.set_state(other.state)
        self.load_extra(other.extra_state())

    def set_state(self, state: LeafState) -> None:
        """Take over a state, and what follows from it."""
        if self._forgets:
            nothing = torch.zeros((), dtype=state.momentum.dtype, device=state.momentum.device)
            state = state._replace(momentum=nothing.expand(state.momentum.shape))
        old = getattr(self, "state", None)
        self.state, self._drawn = state, {}
        if old is None or old.frame is not state.frame:
            left, right = self.rule.subspace.factors(state.frame, state.momentum[None])
            if left is None:
                self.kind, self.shared = "full", None
            elif right.ndim > left.ndim:
                self.kind, self.shared = "left", self._without_still(left)
            else:
                self.kind, self.shared = "right", right

    @property
    def is_large(self) -> bool:
        """Whether a probe is as large as the parameter and so is drawn again, never held."""
        return self.kind == "full" and self.param.ndim >= 2

    def refresh(self, source: Source, frame: Tensor | None = None) -> None:
        """Draw a new frame, or take one that is known, and carry the momentum over to it."""
        key = source.random, self.index, source.step, self.state
        self._begin(
            self.rule.refresh(*key) if frame is None else self.rule.refresh_to(*key, frame)
        )

    def restart(self, source: Source, frame: Tensor | None = None) -> None:
        """Make the state anew: the subspace is another one; with a frame that is known, if any."""
        state = self.rule.init(source.random, self.index, self.param.detach())
        self._begin(state if frame is None else state._replace(frame=frame))

    def _begin(self, state: LeafState) -> None:
        self.set_state(state)
        # Both are known in the old frame.
        self.direction = None
        self.remember()

    def coordinates(self, source: Source, probe: int) -> Tensor:
        """Return B of one probe."""
        key = source.step, probe
        if key in self._drawn:
            return self._drawn[key]
        shape = tuple(self.state.momentum.shape)
        draw = Draw("probe", self.index, source.step, probe)
        values: Tensor = source.random.normal(draw, shape, self.state.momentum)
        if self.kind == "full":
            # A sampler of the user's may return what it keeps.
            values = self._without_still(values, isinstance(source.random.sampler, TorchSampler))
        if not self.is_large:
            if not self.keeps_probes or any(step != source.step for step, _ in self._drawn):
                self._drawn = {}
            self._drawn[key] = values
        return values

    def varying(self, source: Source, probe: int) -> Tensor:
        """Return the varying factor of one probe, or of the direction."""
        if probe == STEP:
            assert self.direction is not None
            return self.direction
        left, right = self.rule.subspace.factors(self.state.frame, self.coordinates(source, probe))
        return self._without_still(left) if self.kind == "right" else right

    def varying_of(self, change: Change) -> Tensor:
        """Return the varying factor of a step."""
        return self._without_still(change.left) if self.kind == "right" else change.right

    def _without_still(self, rows: Tensor, own: bool = False) -> Tensor:
        """Return a factor with the same rows as the parameter, zero where that stays as it is."""
        if self.still is None:
            return rows
        rows = rows if own else rows.clone()
        rows[self.still] = 0.0
        return rows

    def product(self, varying: Tensor) -> tuple[Tensor, Tensor]:
        """Return (left, right) for a varying factor."""
        assert self.shared is not None
        return (self.shared, varying) if self.kind == "left" else (varying, self.shared)

    def _again(self, source: Source, count: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the probes of the step, drawn again where they are not at hand.

        In their order, whichever was evaluated last: sums of them have the same bits when they are
        evaluated in another order, as in a replay.
        """
        kept = self._drawn
        for i in range(count):
            values = kept.get((source.step, i))
            yield i, self.coordinates(source, i) if values is None else values
        self._drawn = {}

    def gradient(self, source: Source, weighted: Weighted) -> Tensor:
        """Return ``weight * sum_i c_i B_i`` with one B_i at a time, not all of them in a block."""
        total: Tensor | None = None
        factors = (weighted.c * weighted.weight).unbind()
        for i, values in self._again(source, len(factors)):
            total = values * factors[i] if total is None else total.addcmul_(values, factors[i])
        assert total is not None
        return total

    def block(self, source: Source, count: int) -> Tensor:
        """Return the coordinates of all probes of the step (N, r, n)."""
        like = self.state.momentum
        block = torch.empty((count, *like.shape), dtype=like.dtype, device=like.device)
        for i, values in self._again(source, count):
            block[i] = values
        return block

    def length(self, varying: Tensor) -> Length:
        """Return the Frobenius norm of what a varying factor stands for, not read yet."""
        return length(*((None, varying) if self.kind == "full" else self.product(varying)))

    def direct(self, change: Change, state: LeafState) -> None:
        """Keep the direction of a step, where the rate is tuned."""
        if self.rule.update.tuned:
            unit = 1.0 if state.unit is None else state.unit
            self.direction = self.varying_of(change) * (-self.share * unit)

    def place(self, evaluation: Evaluation) -> tuple[int | None, float]:
        """Return the probe and the scale of an evaluation, for `move`."""
        if evaluation.probe == STEP and (self.direction is None or self.rests):
            return None, 0.0
        return evaluation.probe, evaluation.scale

    def rate(self, source: Source) -> Any:
        """Return the learning rate of a step: the method's, times what a scheduler made of it."""
        lr, base = self.group["lr"], self.group["base_lr"]
        update = self.rule.update
        rate = source.rate * self.share if update.tuned else update.rate(source.step)
        return rate if lr == base else rate * (float(lr) / base)

    def move(self, source: Source, probe: int | None, scale: float) -> None:
        """Put the parameter at X + scale * P_probe, at X where `probe` is None."""
        raise NotImplementedError

    def accept(self, source: Source, change: Change) -> None:
        """Take a step from X; the parameter stands at the new X afterwards."""
        raise NotImplementedError

    def merge(self, source: Source) -> None:
        """Bring into the weights what was accumulated beside them, before a refresh."""

    def follow(self) -> None:
        """Notice that somebody else has changed the weight since the last step."""

    def remember(self) -> None:
        """Take the parameter where it is, at X, as the best that was found; if it `remembers`."""

    def retreat(self) -> None:
        """Go back from X to what was remembered, since the last refresh."""
        raise NotImplementedError

    def extra_state(self) -> dict[str, Tensor]:
        """Return what is kept beside the method's state."""
        return {} if self.direction is None else {"direction": self.direction}

    def load_extra(self, extra: dict[str, Tensor]) -> None:
        """Take over what `extra_state` returned."""
        self.direction = extra.get("direction")
