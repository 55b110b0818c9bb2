"""What a closure uses so that one forward pass serves all probes: `tiled` and `per_probe`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import torch

from . import _torch_errors as errors

_slices: ContextVar[int] = ContextVar("zomopi_slices", default=0)


@contextlib.contextmanager
def evaluating(slices: int) -> Iterator[None]:
    """Surround a closure that is to serve several probes at once."""
    token = _slices.set(slices)
    try:
        yield
    finally:
        _slices.reset(token)


def tiled(batch: Any) -> Any:
    """Repeat a batch along its first axis, once for each probe of the forward pass under way.

    Outside of a step with ``batched=True`` the batch is returned as it is, so that the same
    closure serves both.

    Parameters
    ----------
    batch : tensor, or mapping, list or tuple of what can be tiled
        Tensors without axes and values that are no tensors stay as they are.

    Returns
    -------
    as `batch`
        Mappings become dicts.

    Examples
    --------
    >>> import torch
    >>> from zomopi_adapters.torch import tiled
    >>> tiled({"input_ids": torch.zeros(4, 7)})["input_ids"].shape  # outside of a step
    torch.Size([4, 7])
    """
    slices = _slices.get()
    if slices < 1:
        return batch
    if isinstance(batch, torch.Tensor):
        return batch.repeat(slices, *[1] * (batch.ndim - 1)) if batch.ndim else batch
    if isinstance(batch, Mapping):
        return {name: tiled(value) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(tiled, batch))
    if isinstance(batch, list | tuple):
        return type(batch)(map(tiled, batch))
    return batch


def per_probe(losses: torch.Tensor) -> torch.Tensor:
    """Reduce the losses of the rows of a tiled batch to one mean for each probe.

    Parameters
    ----------
    losses : tensor
        One loss for each row of the tiled inputs, for instance of `cross_entropy` with
        ``reduction="none"``; further axes are averaged over, too.

    Returns
    -------
    tensor of shape (probes,)
        Without axes outside of a step with ``batched=True``: the mean.

    Examples
    --------
    >>> import torch
    >>> from zomopi_adapters.torch import per_probe
    >>> per_probe(torch.tensor([1.0, 3.0]))  # outside of a step
    tensor(2.)
    """
    slices = _slices.get()
    if slices < 1:
        return losses.mean()
    if losses.ndim == 0 or losses.shape[0] % slices:
        raise errors.uneven_rows(losses.shape[0] if losses.ndim else 1, slices)
    return losses.reshape(slices, -1).mean(dim=1)
