"""The evaluations of a step: one by one, or all probes in one forward pass."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zomopi_core.estimator import Evaluation

from . import _torch_errors as errors
from ._torch_leaf import Leaf, Source
from ._torch_overlay import NotBatchableError, Overlaid, Overlay
from ._torch_scope import Replay, forget_casts, own_arithmetic, uninterrupted
from ._torch_slices import evaluating

Closure = Callable[[], Any]


@dataclass(frozen=True)
class Evaluator:
    """What the evaluations of one step have in common.

    Parameters
    ----------
    source : Source
    leaves : list of Leaf
        The parameters that move.
    closures : list of callables
        One for each micro-batch.
    replay : Replay
    kinds : set of str
        Kinds of devices.
    overlay : Overlay
    evaluations : tuple of Evaluation
        The points of the step.
    """

    source: Source
    leaves: list[Leaf]
    closures: list[Closure]
    replay: Replay
    kinds: set[str]
    overlay: Overlay
    evaluations: tuple[Evaluation, ...]

    def back(self) -> None:
        """Put all parameters back to where the step began."""
        with uninterrupted(), own_arithmetic(self.kinds):
            for leaf in self.leaves:
                leaf.move(self.source, None, 0.0)

    def move_to(self, number: int) -> None:
        """Put all parameters to a point."""
        with own_arithmetic(self.kinds), uninterrupted():
            for leaf in self.leaves:
                leaf.move(self.source, *leaf.place(self.evaluations[number]))

    def one(self, number: int) -> Any:
        """Return the loss at one point."""
        self.move_to(number)
        forget_casts(self.kinds)
        with self.overlay.on(), self.replay.forward_pass():
            return mean([_scalar(closure()) for closure in self.closures])

    @property
    def points(self) -> list[int]:
        """The numbers of all points."""
        return list(range(len(self.evaluations)))

    def one_by_one(self, points: list[int]) -> list[Any]:
        """Return the losses at points."""
        return [self.one(number) for number in points]

    def batched(self, points: list[int], chunk: int | None) -> list[Any]:
        """Return the losses at points, `chunk` of them from each forward pass."""
        size = chunk or len(points)
        losses: list[Any] = []
        try:
            for start in range(0, len(points), size):
                places = points[start : start + size]
                losses += self._slices([self.evaluations[number] for number in places])
        finally:
            self.overlay.slices = 1
            self.back()
        return losses

    def _slices(self, places: list[Evaluation]) -> tuple[Tensor, ...]:
        with own_arithmetic(self.kinds):
            for leaf in self.leaves:
                if not isinstance(leaf, Overlaid):
                    raise NotBatchableError(f"{leaf.name} is moved in place")
                leaf.spread(self.source, [leaf.place(e) for e in places])
        self.overlay.slices = len(places)
        with self.overlay.on(), self.replay.forward_pass(), evaluating(len(places)):
            losses = mean([_vector(closure(), len(places)) for closure in self.closures])
        return losses.unbind()  # type: ignore[no-any-return]

    def compare(self, losses: list[Any]) -> bool:
        """Compare two losses of a batched step with what they are one by one.

        Where the batch is not the first axis throughout, slices would get the probes of others.

        Returns
        -------
        bool
            Whether there was anything to compare: not if a loss is not finite.

        Raises
        ------
        NotBatchableError
            If they differ.
        """
        ends = (0, len(losses) - 1)
        alone = [float(self.one(number)) for number in ends]
        self.back()
        found = [float(losses[number]) for number in ends]
        if not all(map(math.isfinite, [*alone, *found])):
            return False
        precision = max(torch.finfo(leaf.param.dtype).eps for leaf in self.leaves)
        noise = 100 * precision * max(map(abs, alone))
        expected, got = alone[1] - alone[0], found[1] - found[0]
        if abs(got - expected) > noise + 0.2 * max(abs(expected), abs(got)):
            raise NotBatchableError(
                f"two losses differ by {got:.6g} in one forward pass, one by one by "
                f"{expected:.6g}; is the batch the first axis throughout?"
            )
        return True


def _scalar(loss: Any) -> Any:
    if isinstance(loss, Tensor) and loss.ndim == 0 and not loss.is_complex():
        return loss.detach()
    if isinstance(loss, numbers.Real):
        return float(loss)
    if getattr(loss, "shape", None) == () and not isinstance(loss, Tensor):  # of NumPy
        return float(loss)
    raise errors.wrong_loss(loss)


def _vector(losses: Any, slices: int) -> Tensor:
    if not isinstance(losses, Tensor) or tuple(losses.shape) != (slices,) or losses.is_complex():
        raise errors.wrong_slices(losses, slices)
    return losses.detach()


def mean(losses: list[Any]) -> Any:
    """Return the mean over micro-batches."""
    return losses[0] if len(losses) == 1 else sum(losses) / len(losses)


def mean_of_finite(losses: list[Any], joined: Any) -> Any:
    """Return the mean of the finite losses, NaN if there is none; a float if all were floats."""
    if isinstance(losses[0], float):
        finite = [x for x in losses if math.isfinite(x)]
        return sum(finite) / len(finite) if finite else math.nan
    joined = torch.as_tensor(joined)
    return torch.where(torch.isfinite(joined), joined, math.nan).nanmean()
