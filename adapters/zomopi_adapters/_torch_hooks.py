"""What the optimizer hangs on a model, and what copies and files of the model have in its place.

A copy has the weights as they are: with what was learned up to the last merge, and no tie to the
optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ._torch_layers import low_rank
from ._torch_overlay import Overlaid, Overlay


class OverlaidForward:
    """The forward of a model with the overlay switched on; a copy of the model has the plain one.

    Parameters
    ----------
    model : torch.nn.Module
    overlay : Overlay
    """

    def __init__(self, model: Any, overlay: Overlay) -> None:
        self.__wrapped__ = model.forward  # by which its signature is found
        self._model, self.overlay = model, overlay

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.overlay.on():
            return self.__wrapped__(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return getattr(type(self._model), "forward").__get__(memo[id(self._model)])  # noqa: B009

    def __reduce__(self) -> Any:
        return getattr, (self._model, "forward")


class LoadedWeights:
    """Drops what was learned beside the weights of a model, when others are loaded into it.

    Parameters
    ----------
    model : torch.nn.Module
        Its copies are left alone.
    overlay : Overlay

    Attributes
    ----------
    paused : bool
        Whether weights may come that belong to what is beside them, as in a checkpoint.
    """

    def __init__(self, model: Any, overlay: Overlay) -> None:
        self._model, self._overlay, self.paused = model, overlay, False

    def __call__(self, module: Any, keys: Any) -> None:
        if module is self._model and not self.paused:
            for leaf in self._overlay.leaves.values():
                leaf.forget()

    def __reduce__(self) -> Any:  # of copies, too
        return _Nothing, ()


class _Nothing:
    """Stands in copies of a model for a hook that does nothing there."""

    def __call__(self, *args: Any) -> None:
        """Do nothing."""


class LearnedBeside:
    """Forward hook of a quantised layer: adds what is learned beside its weight.

    Parameters
    ----------
    overlay : Overlay
    leaf : Overlaid
        That of the weight.
    """

    def __init__(self, overlay: Overlay, leaf: Overlaid) -> None:
        self._overlay, self._leaf = overlay, leaf

    def __call__(
        self, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor
    ) -> Tensor:
        x = _input(args, kwargs)
        return low_rank(self._overlay, self._leaf, x, output, transposed=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        kind, factors = self.__reduce__()
        return kind(*(factor.clone() for factor in factors))

    def __reduce__(self) -> Any:
        settled = self._leaf.settled
        return (_Nothing, ()) if settled is None else (Settled, self._leaf.product(settled))


class Settled:
    """Stands for `LearnedBeside` in copies of a model: adds what had been learned.

    Parameters
    ----------
    left : tensor of shape (m, r)
    right : tensor of shape (r, n)
    """

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.left, self.right = left, right

    def __call__(
        self, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor
    ) -> Tensor:
        x = _input(args, kwargs).to(output.dtype)
        return output + (x @ self.right.to(output).mT) @ self.left.to(output).mT


def _input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    return args[0] if args else next(iter(kwargs.values()))
