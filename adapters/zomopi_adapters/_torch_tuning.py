"""Learning rate and smoothing of a model, measured: `zomopi_core.tuning` on its leaves.

The line searches go along the last step, which each leaf keeps as the varying factor of a product
with its frame, so that every binding evaluates it as it does a probe. A refresh changes the
frames: a search that is due then waits for the next step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np

from zomopi_core.balance import Balance, Share
from zomopi_core.estimator import Evaluation, FiniteDifference
from zomopi_core.line_search import LineModel, MeanParabola, Parabola
from zomopi_core.look import Length, Size, look, sizes_of
from zomopi_core.noise import Noise
from zomopi_core.rate_search import RateSearch
from zomopi_core.retreat import Descent
from zomopi_core.smoothing import Smoothing
from zomopi_core.tuning import USABLE, Tuning, Verdict, count_unknowns, fitted_average, tuning_of

from . import _torch_errors as errors
from ._torch_leaf import STEP, Leaf, Source
from ._torch_repetition import Repair


class Tuner:
    """What is tuned of a run, and how its steps go along.

    Parameters
    ----------
    estimator : FiniteDifference
    leaves : list of Leaf
    """

    def __init__(self, estimator: FiniteDifference, leaves: list[Leaf]) -> None:
        self._estimator = estimator
        self.tuning = tuning_of(estimator, [(x.rule, x.param.detach()) for x in leaves])
        self.enlist(leaves)

    def enlist(self, leaves: list[Leaf]) -> None:
        """Let leaves take part; those whose rate is tuned remember where they were best."""
        for leaf in leaves:
            if leaf.rule.update.tuned and leaf.is_large:
                raise errors.tuned_full_space(leaf.name)
            if leaf.rule.update.tuned and leaf.rule.subspace.refresh_every == 1:
                raise errors.tuned_without_frames(leaf.name)
            if self.tuning is not None and self.tuning.search.tuned:
                leaf.remembers = True
        if self.tuning is not None:
            count = 1 + max(leaf.index for leaf in leaves)
            self.tuning = replace(self.tuning, balance=self.tuning.balance.grown(count))

    @property
    def rate(self) -> float:
        """Learning rate of the next step, where it is tuned."""
        return 0.0 if self.tuning is None else self.tuning.rate

    @property
    def estimator(self) -> FiniteDifference:
        """The estimator of the next step."""
        if self.tuning is None or not self._estimator.tuned:
            return self._estimator
        return self._estimator.at(self.tuning.smoothing.width)

    def postpone(self) -> None:
        """Let a line search wait for the next step."""
        if self.tuning is not None and self.tuning.plan.kind == "line":
            self.tuning = self.tuning.postponed()

    def points(self, leaves: list[Leaf]) -> tuple[Evaluation, ...]:
        """Return the points that the next step needs beside those of its probes.

        Where they lie along the steps of a group, the other leaves rest.
        """
        if self.tuning is None:
            return ()
        share(self.tuning, leaves)
        kind, scales, group = self.tuning.plan
        for leaf in leaves:
            own = self.tuning.balance.groups[leaf.index]
            leaf.rests = kind == "line" and group is not None and own != group
        if kind == "noise":
            width = self.estimator.width
            return tuple(Evaluation(0 if s else None, s * width) for s in scales)
        return tuple(Evaluation(STEP if s else None, s) for s in scales)

    @property
    def looks(self) -> bool:
        """Whether the next step needs numbers of the device."""
        return self.tuning is not None and self.tuning.attentive

    def sizes(self, leaves: list[Leaf]) -> list[Size]:
        """Return the sizes of the parameters, which must stand at X, if the step `looks`."""
        return sizes_of([(x.rule, x.param.detach()) for x in leaves]) if self.looks else []

    def told(self, repair: Repair) -> tuple[Tuning | None, Verdict]:
        """Return the tuning after a step, and what becomes of the step.

        Parameters
        ----------
        repair : Repair
            The losses of the step's probes, and of the points of `points`; it has looked at what
            else is needed.
        """
        tuning = self.tuning
        if tuning is None:
            return None, USABLE
        if repair.seen is None:
            return tuning.passed(), USABLE
        count, host = len(self.estimator.evaluations), repair.host
        c = self.estimator.differences(np.asarray(host[:count])).tolist()
        _, sizes, geometry = repair.seen
        return tuning.grown(sizes).told(c, host[:count], host[count:], geometry)

    def begun(self, tuning: Tuning | None, leaves: list[Leaf], source: Source) -> Tuning | None:
        """Return the tuning after the leaves have new directions."""
        if tuning is None or not tuning.can_begin:
            return tuning
        return tuning.begin(look((), (), *lengths(leaves, source)).geometry)

    def pack(self) -> dict[str, Any] | None:
        """Return the tuning as numbers, tuples and dicts."""
        return None if self.tuning is None else _plain(self.tuning)

    def unpack(self, saved: Mapping[str, Any] | None) -> None:
        """Take over what `pack` returned."""
        if (saved is None) != (self.tuning is None):
            raise errors.wrong_checkpoint("lr='auto' or smoothing='auto' was on one side only")
        if saved is not None:
            self.tuning = _restored(Tuning, saved)


def share(tuning: Tuning | None, leaves: list[Leaf]) -> None:
    """Give each leaf the factor of its steps."""
    if tuning is not None:
        factors = tuning.balance.factors
        for leaf in leaves:
            leaf.share = factors[leaf.index]


def lengths(leaves: list[Leaf], source: Source) -> tuple[list[Length], list[Length]]:
    """Return the lengths of the first probe and of the direction, leaf by leaf."""
    return (
        [leaf.length(leaf.varying(source, 0)) for leaf in leaves],
        [leaf.length(leaf.direction) for leaf in leaves if leaf.direction is not None],
    )


def fit_memories(groups: Sequence[dict[str, Any]], estimator: FiniteDifference) -> None:
    """Give momenta that may be fitted the memory for the unknowns of all groups."""
    leaves = [(g["method"].rule(p.ndim), p) for g in groups for p in g["params"]]
    unknowns, per_step = count_unknowns(leaves), len(estimator.evaluations)
    for group in groups:
        method = group["method"]
        average = fitted_average(method.matrices.momentum, unknowns, per_step)
        if average is not method.matrices.momentum:
            matrices = replace(method.matrices, momentum=average)
            vectors = replace(method.vectors, momentum=average)
            group["method"] = replace(method, matrices=matrices, vectors=vectors)


# What a tuning is made of, by the attribute that holds it.
_PARTS: dict[str, type] = {
    "noise": Noise, "smoothing": Smoothing, "search": RateSearch, "descent": Descent,
    "model": LineModel, "mean": MeanParabola, "parabola": Parabola,
    "balance": Balance, "shares": Share,
}  # fmt: skip


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if hasattr(value, "_asdict"):
        return {name: _plain(v) for name, v in value._asdict().items()}
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


def _restored(cls: Any, saved: Mapping[str, Any]) -> Any:
    def part(name: str, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(part(name, v) for v in value)
        return _restored(_PARTS[name], value) if isinstance(value, Mapping) else value

    return cls(**{name: part(name, value) for name, value in saved.items()})
