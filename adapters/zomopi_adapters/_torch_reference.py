"""16-bit weights that are moved in place and return to the same bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zomopi_core.update import Change

from ._torch_accumulating import Accumulating
from ._torch_leaf import Leaf, Source


class Referenced(Accumulating):
    """Moved in place from a copy of the 16-bit weights, so that it returns to the same bits.

    The copy costs the memory of the weight once more, on the weight's device or on the host.
    Each evaluation writes ``round(X_ref + shared @ (total + scale * probe))``: nothing adds up
    from probe to probe. At a refresh the coordinates are merged with stochastic rounding.
    """

    def __init__(self, *args: Any, device: torch.device) -> None:
        super().__init__(*args)
        self.device = device
        self._reference: Tensor | None = None
        self._version = -1  # of the weight as this leaf wrote it

    @property
    def reference(self) -> Tensor:
        """The weight since the last merge; copied when it is first needed."""
        if self._reference is None:
            self._reference = self._copied(self.param.detach())
            self._version = self.param._version
        return self._reference

    def follow(self) -> None:
        """Start from the weight as it is, if somebody else has changed it since the last step."""
        if self._reference is None or self.param._version == self._version:
            return
        found = self.param.detach().clone()
        self._write(self.param, self._reference, self.displacement(), None)
        if not torch.equal(found, self.param):
            self.param.copy_(found)
            self._reference = self.total = self.shrink = None
            self.remember()
        self._version = self.param._version

    def succeed(self, other: Leaf, source: Source) -> None:
        """Write the weight with the coordinates that another leaf has beside it."""
        super().succeed(other, source)
        self._write(self.param, self.reference, self.displacement(), None)
        self._version = self.param._version

    def _copied(self, value: Tensor) -> Tensor:
        copy = value.to(self.device, copy=True)
        if self.device.type == "cpu" and self.param.device.type == "cuda":
            copy = copy.pin_memory()
        return copy

    def move(self, source: Source, probe: int | None, scale: float) -> None:
        """Write the weight of that point."""
        if probe == self.probe and scale == self.scale:
            return
        if probe is None:
            self._held = None
        elif probe != self.probe or self._held is None:
            self._held = self.varying(source, probe)
        self.probe, self.scale = probe, scale
        self._write(self.param, self.reference, self.displacement(), None)
        self._version = self.param._version
        if self.is_large:
            self._held = None

    def accept(self, source: Source, change: Change) -> None:
        """Add the step to the coordinates, or to the reference where there are none."""
        reference = self.reference
        if self.is_large:
            keep = None if change.decay is None else 1.0 - change.decay
            self.shrink = keep
            step = change.right * change.scale
            self._write(reference, reference, step.to(reference.device), source)
            self.shrink = None
            self.probe, self.scale = None, 0.0
        else:
            super().accept(source, change)
        self._write(self.param, reference, self.displacement(), None)
        self._version = self.param._version

    def retreat(self) -> None:
        """Take the coordinates back, and write the weight."""
        super().retreat()
        self._write(self.param, self.reference, self.displacement(), None)
        self._version = self.param._version

    def merge(self, source: Source) -> None:
        """Round the coordinates into the weight, and take it as the reference."""
        if self.total is None and self.shrink is None:
            return
        self._write(self.param, self.reference, self.total, source)
        self.total = self.shrink = None
        self.remember()
        self.reference.copy_(self.param)
        self._version = self.param._version

    def extra_state(self) -> dict[str, Tensor]:
        """Return the coordinates, the factor of the weight and the reference."""
        extra = super().extra_state()
        if self._reference is not None:
            extra["reference"] = self._reference
        return extra

    def load_extra(self, extra: dict[str, Tensor]) -> None:
        """Take over the coordinates, the factor of the weight and the reference."""
        super().load_extra(extra)
        reference = extra.get("reference")
        self._reference = None if reference is None else self._copied(reference)
