"""Subspaces from what layers are fed: leading right singular vectors of their inputs.

The gradient of ``y = x W^T`` is ``dy^T x``: its rows lie in the span of the inputs' rows. A frame
on that side that spans the inputs' leading directions holds most of the gradient, where a random
one of rank r holds r / n of it (arXiv 2601.17261, arXiv 2607.01125).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name
from torch.overrides import TorchFunctionMode

from zomopi_core.draws import Draw
from zomopi_core.sampling import Randomness
from zomopi_core.subspace import Sketch

from ._torch_leaf import Leaf

# Sweeps of subspace iteration on the inputs of one call.
_SWEEPS = 2


#: name of a parameter -> side of its frame, and the frame
Frames = dict[str, tuple[str, Tensor]]


class ActivationBasis:
    """Frames of linear layers from their inputs in one forward pass.

    Leaves that no matrix product uses keep the subspaces of their method.
    """

    def __init__(self) -> None:
        self.adopted: dict[int, str] = {}  # number of a leaf -> side of its frame
        self.seen = False  # whether a forward pass was watched
        self.fresh: set[int] = set()  # numbers of leaves whose frame was another one until now
        self._columns: dict[int, Tensor] = {}
        self._recorded: dict[int, Tensor] = {}

    def __repr__(self) -> str:
        return "ActivationBasis()"

    def __call__(self, leaf: int, step: int) -> Tensor | None:
        """Return the directions of a leaf, the leading one first."""
        return self._columns.get(leaf)

    def adopt(self, leaf: Leaf, side: str) -> None:
        """Let the frame of a leaf be taken from its inputs."""
        if leaf.index in self.adopted:
            return
        self.adopted[leaf.index] = side
        self.fresh.add(leaf.index)
        subspace = replace(leaf.rule.subspace, side=side, basis=self)  # type: ignore[type-var]
        leaf.rule = replace(leaf.rule, subspace=subspace)

    @contextlib.contextmanager
    def watching(self, leaves: list[Leaf], random: Randomness, step: int) -> Iterator[None]:
        """Surround a forward pass whose inputs make the frames."""
        watch = _Watch(leaves, random, step)
        with torch.compiler.set_stance("force_eager"), watch:
            yield
        self._columns = {}
        for leaf in leaves:
            found = watch.found.get(leaf.index)
            if found is None:
                continue
            side, sums = found
            self.adopt(leaf, side)
            # in float32 at least, ordered by singular value
            self._columns[leaf.index] = torch.linalg.svd(sums, full_matrices=False)[0]
        self.seen = True

    def frames(self, leaves: list[Leaf]) -> Frames:
        """Return the frames that are taken from inputs, to be written down."""
        return {
            leaf.name: (self.adopted[leaf.index], leaf.state.frame)
            for leaf in leaves
            if leaf.index in self.adopted
        }

    def recall(self, leaves: list[Leaf], frames: Frames) -> None:
        """Take over frames that were written down, in the place of a forward pass."""
        for leaf in leaves:
            if leaf.name in frames:
                side, frame = frames[leaf.name]
                self.adopt(leaf, side)
                self._recorded[leaf.index] = frame.to(leaf.param.device)
        self.seen = True

    def recorded(self, leaf: Leaf) -> Tensor | None:
        """Return the frame that was written down, None where there is none."""
        return self._recorded.get(leaf.index)

    def forget(self) -> None:
        """Drop the directions; the frames are made of them."""
        self._columns, self._recorded, self.fresh = {}, {}, set()


class _Watch(TorchFunctionMode):  # type: ignore[misc]
    """Sums ``x^T (x Q)`` over the inputs x of each weight."""

    def __init__(self, leaves: list[Leaf], random: Randomness, step: int) -> None:
        super().__init__()
        self._leaves = {
            id(leaf.param): leaf
            for leaf in leaves
            if leaf.param.ndim == 2 and isinstance(leaf.rule.subspace, Sketch)
        }
        self._random, self._step = random, step
        self._start: dict[int, Tensor] = {}
        self.found: dict[int, tuple[str, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        place = _PLACES.get(func)
        if place is not None and len(args) > place[1]:
            x, weight = args[place[0]], args[place[1]]
            leaf = self._leaves.get(id(weight))
            if (
                leaf is not None
                and isinstance(x, Tensor)
                and x.shape[-1] == self._size(leaf, place)
            ):
                self._watch(leaf, place[2], x.detach())
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _size(leaf: Leaf, place: tuple[int, int, str]) -> int:
        return int(leaf.param.shape[1 if place[2] == "right" else 0])

    def _watch(self, leaf: Leaf, side: str, x: Tensor) -> None:
        like = leaf.state.momentum
        with torch.autocast(x.device.type, enabled=False):
            x = x.reshape(-1, x.shape[-1]).to(like.dtype)
            start = self._start.get(leaf.index)
            if start is None:
                subspace: Any = leaf.rule.subspace
                shape = (x.shape[1], min(subspace.rank, x.shape[1]))
                draw = Draw("sketch", leaf.index, self._step, 1)
                start = self._random.normal(draw, shape, like)
                for _ in range(_SWEEPS):
                    start = torch.linalg.qr(x.T @ (x @ start))[0]
                self._start[leaf.index] = start
            sums = x.T @ (x @ start)
            if leaf.index in self.found:
                before, total = self.found[leaf.index]
                if before != side:  # a tied weight that is used both ways
                    return
                sums = sums + total
            self.found[leaf.index] = side, sums


# Function -> (position of the inputs, of the weight, side of the weight that meets the inputs).
_PLACES: dict[Any, tuple[int, int, str]] = {
    F.linear: (0, 1, "right"),
    torch.addmm: (1, 2, "left"),
    torch.matmul: (0, 1, "left"),
    Tensor.matmul: (0, 1, "left"),
    Tensor.__matmul__: (0, 1, "left"),
    torch.mm: (0, 1, "left"),
    Tensor.mm: (0, 1, "left"),
}
