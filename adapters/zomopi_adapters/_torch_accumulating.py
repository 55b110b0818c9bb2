"""Weights beside which the steps are kept in float32, and how they are rounded into 16 bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from zomopi_core.draws import Draw
from zomopi_core.update import Change

from ._torch_leaf import Leaf, Source


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
