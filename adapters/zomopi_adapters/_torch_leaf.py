"""One parameter of a model: its state, its probes, and how it is moved in place.

A leaf knows its matrix as ``shared factor x varying factor`` (or the other way round): the shared
one is kept from one refresh to the next, the varying one is linear in the coordinates. Moves from
probe to probe therefore add up in the thin varying factor before one addition goes to the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zomopi_core.estimator import Evaluation
from zomopi_core.momentum import ExponentialAverage
from zomopi_core.objective import frobenius
from zomopi_core.rule import LeafState, Rule
from zomopi_core.sampling import Draw, Randomness, TorchSampler
from zomopi_core.subspace import Sketch
from zomopi_core.update import Change

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
        self.remembers = False  # where it was best, see `remember`
        self._held: Tensor | None = None
        self._drawn: tuple[int, int, Tensor] | None = None  # step, probe and B of the last draw
        average = rule.momentum
        keeps = isinstance(rule.subspace, Sketch) and rule.subspace.refresh_kind == "anchored"
        # Without memory M is only what one step hands to the orthogonalizer.
        self._forgets = isinstance(average, ExponentialAverage) and average.beta == 0 and not keeps

    def init(self, random: Randomness) -> None:
        """Make the state before the first step."""
        self.set_state(self.rule.init(random, self.index, self.param.detach()))

    def set_state(self, state: LeafState) -> None:
        """Take over a state, and what follows from it."""
        if self._forgets:
            nothing = torch.zeros((), dtype=state.momentum.dtype, device=state.momentum.device)
            state = state._replace(momentum=nothing.expand(state.momentum.shape))
        old = getattr(self, "state", None)
        self.state, self._drawn = state, None
        if old is None or old.frame is not state.frame:
            left, right = self.rule.subspace.factors(state.frame, state.momentum[None])
            if left is None:
                self.kind, self.shared = "full", None
            elif right.ndim > left.ndim:
                self.kind, self.shared = "left", left
            else:
                self.kind, self.shared = "right", right

    @property
    def is_large(self) -> bool:
        """Whether a probe is as large as the parameter and so is drawn again, never held."""
        return self.kind == "full" and self.param.ndim >= 2

    def refresh(self, source: Source) -> None:
        """Draw a new frame and carry the momentum over to it."""
        self.set_state(self.rule.refresh(source.random, self.index, source.step, self.state))
        # Both are known in the old frame.
        self.direction = None
        self.remember()

    def coordinates(self, source: Source, probe: int) -> Tensor:
        """Return B of one probe."""
        if self._drawn is not None and self._drawn[:2] == (source.step, probe):
            return self._drawn[2]
        shape = tuple(self.state.momentum.shape)
        draw = Draw("probe", self.index, source.step, probe)
        values: Tensor = source.random.normal(draw, shape, self.state.momentum)
        if not self.is_large:
            self._drawn = source.step, probe, values
        return values

    def varying(self, source: Source, probe: int) -> Tensor:
        """Return the varying factor of one probe, or of the direction."""
        if probe == STEP:
            assert self.direction is not None
            return self.direction
        left, right = self.rule.subspace.factors(self.state.frame, self.coordinates(source, probe))
        return left if self.kind == "right" else right

    def varying_of(self, change: Change) -> Tensor:
        """Return the varying factor of a step."""
        return change.left if self.kind == "right" else change.right

    def product(self, varying: Tensor) -> tuple[Tensor, Tensor]:
        """Return (left, right) for a varying factor."""
        assert self.shared is not None
        return (self.shared, varying) if self.kind == "left" else (varying, self.shared)

    def block(self, source: Source, count: int) -> Tensor:
        """Return the coordinates of all probes of the step (N, r, n), most of them drawn again."""
        like = self.state.momentum
        block = torch.empty((count, *like.shape), dtype=like.dtype, device=like.device)
        last = None if self._drawn is None else self._drawn[1]
        for i in sorted(range(count), key=lambda i: i != last):  # what is at hand first
            block[i] = self.coordinates(source, i)
        self._drawn = None
        return block

    def length(self, varying: Tensor) -> float:
        """Return the Frobenius norm of what a varying factor stands for."""
        left, right = (None, varying) if self.kind == "full" else self.product(varying)
        return frobenius(left, right)

    def direct(self, change: Change, state: LeafState) -> None:
        """Keep the direction of a step, where the rate is tuned."""
        if self.rule.update.tuned:
            unit = 1.0 if state.unit is None else state.unit
            self.direction = self.varying_of(change) * -unit

    def place(self, evaluation: Evaluation) -> tuple[int | None, float]:
        """Return the probe and the scale of an evaluation, for `move`."""
        if evaluation.probe == STEP and self.direction is None:
            return None, 0.0
        return evaluation.probe, evaluation.scale

    def rate(self, source: Source) -> Any:
        """Return the learning rate of a step: the method's, times what a scheduler made of it."""
        lr, base = self.group["lr"], self.group["base_lr"]
        update = self.rule.update
        rate = source.rate if update.tuned else update.rate(source.step)
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


class InPlace(Leaf):
    """Moved in place by one fused low-rank addition, from probe to probe (float32, float64).

    The last restore is part of the addition of the step. Each addition rounds once: an entry is
    off by at most half a unit in its last place per addition, 2N + 1 of them in a step with
    central differences.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # from what is remembered to X: X = kept * X_best + shared @ since
        self.since: Tensor | None = None
        self.kept: Tensor | None = None

    def _flat(self, varying: Tensor) -> Tensor | None:
        """Return the parameter as the product sees it, None where its memory forbids a view."""
        left, right = self.product(varying)
        shape = (*left.shape[:-1], right.shape[-1])
        try:
            view = self.param.view(shape)
            return view.flatten(0, -3) if len(shape) > 3 else view
        except RuntimeError:
            return None

    def _add(self, varying: Tensor, alpha: float = 1.0, beta: float = 1.0) -> None:
        """``X <- beta X + alpha * shared @ varying``."""
        if self.kind == "full":
            if beta != 1.0:
                self.param.mul_(beta)
            self.param.add_(varying.view(self.param.shape), alpha=alpha)
            return
        left, right = self.product(varying)
        view = self._flat(varying)
        if view is None:
            product = (left @ right).reshape(self.param.shape)
            self.param.mul_(beta).add_(product, alpha=alpha)
        elif view.ndim == 2:
            view.addmm_(left, right, beta=beta, alpha=alpha)
        else:
            left, right = left.flatten(0, -3), right.flatten(0, -3)
            view.baddbmm_(left, right, beta=beta, alpha=alpha)

    def _current(self, source: Source) -> Tensor:
        """Return the varying factor of the probe at which the leaf stands."""
        assert self.probe is not None
        return self.varying(source, self.probe) if self._held is None else self._held

    def move(self, source: Source, probe: int | None, scale: float) -> None:
        """Add the difference of two probes."""
        if probe is None:
            if self.probe is not None:
                self._add(self._current(source), -self.scale)
            self.probe, self.scale, self._held = None, 0.0, None
            return
        if probe == self.probe:
            if scale != self.scale:
                self._add(self._current(source), scale - self.scale)
            self.scale = scale
            return
        new = self.varying(source, probe)
        if self.probe is None:
            self._add(new, scale)
        else:
            # A sampler of the user's may return what it keeps.
            own = self.is_large and isinstance(source.random.sampler, TorchSampler)
            difference = new.mul_(scale) if own else new * scale
            self._add(difference.sub_(self._current(source), alpha=self.scale))
        self.probe, self.scale = probe, scale
        self._held = None if self.is_large else new

    def accept(self, source: Source, change: Change) -> None:
        """Add the step and the way back from the last probe in one."""
        total = self.varying_of(change) * change.scale
        beta = 1.0
        if self.remembers:
            self._follow_step(total, change.decay)
        if change.decay is not None:
            keep = 1.0 - change.decay
            if self.param.device.type == "cpu":
                beta = float(keep)
            else:  # a number of the host would wait for the device
                self.param.mul_(keep)
            if self.probe is not None:
                total -= self._current(source) * (keep * self.scale)
        elif self.probe is not None:
            total.sub_(self._current(source).view(total.shape), alpha=self.scale)
        self._add(total, beta=beta)
        self.probe, self.scale, self._held = None, 0.0, None

    def _follow_step(self, step: Tensor, decay: Tensor | None) -> None:
        if decay is not None:
            keep = 1.0 - decay
            self.kept = keep if self.kept is None else self.kept * keep
            self.since = None if self.since is None else self.since * keep
        self.since = step.clone() if self.since is None else self.since + step

    def remember(self) -> None:
        """Start anew from X."""
        self.since = self.kept = None

    def retreat(self) -> None:
        """Undo the steps, to the rounding of one addition."""
        assert self.probe is None
        if self.since is not None:
            part = 1.0 if self.kept is None else 1.0 / float(self.kept)
            self._add(self.since, -part, part)
        self.remember()

    def extra_state(self) -> dict[str, Tensor]:
        """Return the direction, and the way from what is remembered."""
        kept = {"since": self.since, "kept": self.kept}
        return super().extra_state() | {k: v for k, v in kept.items() if v is not None}

    def load_extra(self, extra: dict[str, Tensor]) -> None:
        """Take over the direction, and the way from what is remembered."""
        super().load_extra(extra)
        self.since, self.kept = extra.get("since"), extra.get("kept")


class Accumulating(Leaf):
    """A leaf whose steps since the last merge are kept in float32 coordinates beside the weight.

    ``X = shrink * X_ref + shared @ total``: steps far below one unit in the last place of a
    16-bit weight are not lost.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.total: Tensor | None = None
        self.shrink: Tensor | None = None
        self.best_total: Tensor | None = None
        self.best_shrink: Tensor | None = None

    def remember(self) -> None:
        """Copy the coordinates."""
        if self.remembers:
            self.best_total = None if self.total is None else self.total.clone()
            self.best_shrink = self.shrink

    def retreat(self) -> None:
        """Take the coordinates back."""
        self.total = None if self.best_total is None else self.best_total.clone()
        self.shrink = self.best_shrink
        self.probe, self.scale, self._held = None, 0.0, None

    def accept(self, source: Source, change: Change) -> None:
        """Add the step to the coordinates."""
        varying = self.varying_of(change)
        if change.decay is not None:
            keep = 1.0 - change.decay
            self.shrink = keep if self.shrink is None else self.shrink * keep
            if self.total is not None:
                self.total *= keep
        step = varying * change.scale
        self.total = step if self.total is None else self.total.add_(step)
        self.probe, self.scale, self._held = None, 0.0, None

    def displacement(self) -> Tensor | None:
        """Return the varying factor of what is added to the weight, None where it is nothing."""
        if self._held is None or self.probe is None:
            return self.total
        if self.total is None:
            return self._held * self.scale
        return torch.add(self.total, self._held, alpha=self.scale)

    def extra_state(self) -> dict[str, Tensor]:
        """Return the coordinates and the factor of the weight."""
        kept = {name: getattr(self, name) for name in _KEPT}
        return super().extra_state() | {k: v for k, v in kept.items() if v is not None}

    def load_extra(self, extra: dict[str, Tensor]) -> None:
        """Take over the coordinates and the factor of the weight."""
        super().load_extra(extra)
        for name in _KEPT:
            setattr(self, name, extra.get(name))

    def _write(
        self, target: Tensor, base: Tensor, displacement: Tensor | None, noise: Source | None
    ) -> None:
        """``target <- shrink * base + shared @ displacement``, by blocks of rows in float32.

        Rounded to nearest, or stochastically where `noise` is given; `target` and `base` may be
        one tensor.
        """
        left: Tensor | None = None
        right = displacement
        if self.kind == "full" or displacement is None:
            shape = (target.shape[0], -1) if target.ndim > 1 else (1, -1)
            right = None if right is None else right.reshape(shape)
        else:
            left, right = self.product(displacement)
            if left.ndim > 2:
                for i, matrices in enumerate(_batches(target, base, left, right)):
                    self._write_rows(*matrices, noise, i << 20)
                return
            shape = left.shape[0], right.shape[-1]
        rows = target.reshape(shape)
        self._write_rows(rows, base.reshape(shape), left, right, noise, 0)
        if rows.data_ptr() != target.data_ptr():  # the memory of the target forbids a view
            target.copy_(rows.reshape(target.shape))

    def _write_rows(
        self,
        target: Tensor,
        base: Tensor,
        left: Tensor | None,
        right: Tensor | None,
        noise: Source | None,
        first: int,
    ) -> None:
        count = max(1, _BLOCK // target.shape[1])
        like = self.state.momentum
        for number, start in enumerate(range(0, target.shape[0], count)):
            rows = slice(start, start + count)
            block = base[rows].to(device=target.device, dtype=like.dtype, copy=True)
            if self.shrink is not None:
                block *= self.shrink
            if left is not None:
                block.addmm_(left[rows], right)
            elif right is not None:
                block += right[rows]
            if noise is None or target.dtype == like.dtype:
                target[rows].copy_(block)
            else:
                draw = Draw("key", self.index, noise.step, first + number)
                normal = noise.random.normal(draw, tuple(block.shape), like).to(block.device)
                target[rows].copy_(rounded(block, torch.special.ndtr(normal), target.dtype))


_KEPT = ("total", "shrink", "best_total", "best_shrink")
# Numbers of one block of rows in float32: 16 MiB.
_BLOCK = 2**22


def _batches(
    target: Tensor, base: Tensor, left: Tensor, right: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield the matrices of a stack: target, base, left and right."""
    shape = (-1, left.shape[-2], right.shape[-1])
    left, right = left.flatten(0, -3), right.flatten(0, -3)
    return zip(target.view(shape), base.reshape(shape), left, right, strict=True)


def rounded(values: Tensor, uniform: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 `values` to a 16-bit format, up with the probability that keeps the mean.

    Parameters
    ----------
    values : tensor
    uniform : tensor
        Numbers from 0 to 1 of the same shape.
    dtype : torch.float16 or torch.bfloat16

    Returns
    -------
    tensor of `dtype`
    """
    nearest = values.to(dtype)
    error = values - nearest.to(values.dtype)
    bits = nearest.view(torch.int16)
    # In both formats the next number away from zero has the next integer as its bits.
    away = (error > 0) == (nearest >= 0)
    other = torch.where(away, bits + 1, bits - 1)
    tiny = torch.where(error > 0, 1, -32767).to(torch.int16)  # the smallest numbers beside zero
    other = torch.where(nearest == 0, tiny, other).view(dtype)
    gap = (other.to(values.dtype) - nearest.to(values.dtype)).abs()
    take = (uniform * gap < error.abs()) & torch.isfinite(other)
    return torch.where(take, other, nearest)
