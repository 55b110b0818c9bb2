"""Float32 and float64 weights that are moved in place, from probe to probe."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zomopi_core.sampling import TorchSampler
from zomopi_core.update import Change

from ._torch_leaf import Leaf, Source


class InPlace(Leaf):
    """Moved in place by one fused low-rank addition, from probe to probe (float32, float64).

    The last restore is part of the addition of the step. An entry x is off by at most
    ``eps / 2 * (abs(x) + 6 * smoothing)`` per addition, 2N + 1 of them in a step with central
    differences: each rounds once, in units of the entry or of the probe, whichever is larger.
    Weight decay is part of the last on a CPU; its factor is a number of the parameter's device,
    and elsewhere it is a pass of its own.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # from what is remembered to X: X = kept * X_best + shared @ since
        self.since: Tensor | None = None
        self.kept: Tensor | None = None
        # of the parameter as this leaf left it; None where any will do, as after a checkpoint
        self._version: int | None = None

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
            self._stand()
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
            out = new if own else None
            ratio = self.scale / scale
            self._add(torch.sub(new, self._current(source), alpha=ratio, out=out), scale)
        self.probe, self.scale = probe, scale
        self._held = None if self.is_large else new

    def follow(self) -> None:
        """Start anew from weights that somebody else has written."""
        if self._version not in {None, self.param._version}:
            self.remember()
        self._version = self.param._version

    def accept(self, source: Source, change: Change) -> None:
        """Add the step and the way back from the last probe in one."""
        step = self.varying_of(change)
        if self.probe is not None and change.decay is None and not self.remembers:
            # One pass over thin arrays: the step in units of the way back.
            back = self._current(source).view(step.shape)
            self._add(torch.addcmul(back, step, change.scale, value=-1 / self.scale), -self.scale)
            self._stand()
            return
        total = step * change.scale
        beta = 1.0
        if self.remembers:
            self._follow_step(total, change.decay)
        if change.decay is not None:
            keep = 1.0 - change.decay
            if _is_read_at_once(keep):
                beta = float(keep)
            else:  # one pass more, where the fused addition would wait for the device
                self.param.mul_(keep)
            if self.probe is not None:
                total -= self._current(source) * (keep * self.scale)
        elif self.probe is not None:
            total.sub_(self._current(source).view(total.shape), alpha=self.scale)
        self._add(total, beta=beta)
        self._stand()

    def _stand(self) -> None:
        """Take note of standing at X."""
        self.probe, self.scale, self._held = None, 0.0, None
        self._version = self.param._version

    def succeed(self, other: Leaf, source: Source) -> None:
        """Bring what another leaf has beside the weight into it; a retreat ends there."""
        other.merge(source)
        super().succeed(other, source)

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
        self._version = self.param._version

    def extra_state(self) -> dict[str, Tensor]:
        """Return the direction, and the way from what is remembered."""
        kept = {"since": self.since, "kept": self.kept}
        return super().extra_state() | {k: v for k, v in kept.items() if v is not None}

    def load_extra(self, extra: dict[str, Tensor]) -> None:
        """Take over the direction, and the way from what is remembered."""
        super().load_extra(extra)
        self.since, self.kept = extra.get("since"), extra.get("kept")
        self._version = None


def _is_read_at_once(number: Tensor) -> bool:
    """Tell whether the host can read a number without waiting."""
    return bool(number.device.type == "cpu")
