"""From the losses of a step to moved parameters: estimate, states, steps; the precision guard."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor

from zomopi_core import _arrays
from zomopi_core.errors import PrecisionWarning, invisible_probe
from zomopi_core.estimator import _HEADROOM, FiniteDifference, Weighted
from zomopi_core.rule import LeafState, advance_all
from zomopi_core.tuning import Verdict
from zomopi_core.update import Change

from ._torch_groups import Carrier
from ._torch_leaf import Leaf, Source

# As in the core's optimizer: a probe of which half of the entries vanish says more about rounding.
_INVISIBLE = 0.5
# Fewer entries may all have small numbers in a probe by chance.
_FEW = 8
# Rows on which a probe is looked at.
_ROWS = 64

# Bytes of momenta that are stacked whatever the size of the parameters is.
_STACK = 2**20
# Otherwise the largest parameter has this many times their size.
_PART = 16


class Moved(NamedTuple):
    """A leaf, its state after the step, and its step."""

    leaf: Leaf
    state: LeafState
    change: Change


def keep_what_fits(leaves: list[Leaf], probes: int) -> None:
    """Let leaves keep all probes of a step, unless that takes more than the largest parameter.

    Two probes are there in any case; those that are not kept are drawn once more.
    """
    for device in {leaf.param.device for leaf in leaves}:
        here = [leaf for leaf in leaves if leaf.param.device == device]
        largest = max(_size(leaf.param) for leaf in here)
        thin = sum(_size(x.state.momentum) for x in here if not x.is_large)
        for leaf in here:
            leaf.keeps_probes = (probes - 2) * thin <= largest


def _size(tensor: Tensor) -> int:
    return int(tensor.numel() * tensor.element_size())


def weigh(estimator: FiniteDifference, leaves: list[Leaf], coefficients: Any) -> Weighted:
    """Return the coefficients of a step as the leaves use them, in the widest of their dtypes."""
    momenta = [leaf.state.momentum for leaf in leaves]
    wide, narrow = min(momenta, key=_arrays.epsilon), max(momenta, key=_arrays.epsilon)
    limit = _arrays.largest_number(narrow) * _HEADROOM
    return estimator.weigh(_arrays.to_like(coefficients, wide), limit)


def advance(
    estimator: FiniteDifference,
    weighted: Weighted,
    started: Tensor,
    leaves: list[Leaf],
    source: Source,
) -> Iterator[Moved]:
    """Yield the new states and steps of all leaves.

    Those of thin leaves are computed first, so that nothing has moved if that fails. A leaf in
    its full space comes when it is asked for: its estimate and its step are as large as the
    parameter, and there is memory for one of them. The largest is the first.
    """
    thin = [leaf for leaf in leaves if not leaf.is_large]
    large = sorted((x for x in leaves if x.is_large), key=lambda x: -_size(x.param))
    moved = [
        m for some in _groups(thin) for m in _moved(estimator, weighted, started, some, source)
    ]

    def one_by_one() -> Iterator[Moved]:
        for leaf in large:
            yield from _moved(estimator, weighted, started, [leaf], source)

    return itertools.chain(one_by_one(), moved)


def _groups(leaves: list[Leaf]) -> Iterator[list[Leaf]]:
    """Yield leaves that are computed as a stack: alike, and no more than there is memory for.

    A stack takes about five times the memory of its momenta while it is orthogonalized.
    """
    alike: dict[Any, list[Leaf]] = {}
    for leaf in leaves:
        m = leaf.state.momentum
        alike.setdefault((m.shape, m.dtype, m.device), []).append(leaf)
    limit = max(_STACK, max((_size(leaf.param) for leaf in leaves), default=0) // _PART)
    for group in alike.values():
        count = max(1, limit // max(1, _size(group[0].state.momentum)))
        for start in range(0, len(group), count):
            yield group[start : start + count]


def _moved(
    estimator: FiniteDifference,
    weighted: Weighted,
    started: Tensor,
    leaves: list[Leaf],
    source: Source,
) -> list[Moved]:
    states, gradients, flags = [], [], []
    for leaf in leaves:
        like = leaf.state.momentum
        own = Weighted(*(None if w is None else _arrays.to_like(w, like) for w in weighted))
        state = leaf.state
        if own.curvature is None:
            gradients.append(leaf.gradient(source, own))
        else:
            block = leaf.block(source, estimator.probes)
            gradients.append(estimator.gradient(own, block))
            frame = leaf.rule.subspace.observe(state.frame, block, own)
            state = state._replace(frame=frame)
            del block
        states.append(state)
        flags.append((own.alive, _arrays.to_like(started, like)))
    rules, rates = zip(*((x.rule, x.rate(source)) for x in leaves), strict=True)
    draws = [(source.random, leaf.index, source.step) for leaf in leaves]
    found = advance_all(rules, states, gradients, flags, rates, draws)
    return [Moved(leaf, *pair) for leaf, pair in zip(leaves, found, strict=True)]


def accept(moved: Iterable[Moved], source: Source, verdict: Verdict) -> None:
    """Take the step, or go back to the best iterate."""
    for leaf, state, change in moved:
        if verdict.best:
            leaf.remember()
        if verdict.retreat:
            leaf.move(source, None, 0.0)
            leaf.retreat()
        else:
            leaf.accept(source, change)
        leaf.set_state(state)
        leaf.direct(change, state)


def warn_of_invisible_probes(leaves: list[Leaf], source: Source, smoothing: float) -> bool:
    """Warn, and return True, if adding a probe leaves most entries of a weight as they are.

    An overlay rounds the outputs of a layer, where a probe is as small beside what the weight
    gives as it is beside the weight.
    """
    for leaf in leaves:
        if isinstance(leaf.param, Carrier) or leaf.param.numel() < _FEW:
            continue
        fraction = invisible_fraction(leaf, source, smoothing)
        if fraction > _INVISIBLE:
            message = invisible_probe(leaf.name, leaf.param.dtype, fraction)
            # The caller of ZOMOPI.step, around which Torch puts a function of its own.
            warnings.warn(message, PrecisionWarning, stacklevel=6)
            return True
    return False


def invisible_fraction(leaf: Leaf, source: Source, smoothing: float) -> float:
    """Return the fraction of entries that the first probe does not change, on the first rows."""
    x = leaf.param.detach()
    varying = leaf.varying(source, 0)
    if leaf.kind == "full":
        x, probe = x.reshape(-1), varying.reshape(-1)
        x, probe = x[: _ROWS**2], probe[: _ROWS**2]
    else:
        left, right = leaf.product(varying)
        if left.ndim > 2:  # of a stack, the first matrix
            left, right = left.flatten(0, -3)[0], right.flatten(0, -3)[0]
        probe = left[:_ROWS] @ right
        x = x.reshape(-1, left.shape[0], right.shape[1])[0, :_ROWS]
    moved = (x.to(probe.dtype) + smoothing * probe).to(x.dtype)
    return float((moved == x).float().mean())
