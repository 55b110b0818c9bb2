"""The learning rates of several parameter arrays beside each other.

One rate for all arrays suits none of them where they differ: the step that a bias can take without
going too far may be a hundredth of what its matrix needs. So from time to time F is evaluated
along the part of the direction that belongs to one group of arrays alone. Its minimiser there,
slope over curvature, beside that along the whole direction, alpha, is the factor by which the
group's steps should be multiplied, its share: for a quadratic F whose Hessian does not couple the
groups, all of them are then as far from their minima as the same number of steps goes.

Slopes are averaged over lines with their signs. A group that is at its minimum jumps around it,
downhill in one line and uphill in the next, and its share falls. Where each step sees another
sample of data all slopes jump, and a share changes no more than its lines agree on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .line_search import Parabola, is_clear
from .noise import Noise
from .rule import LeafState, Leaves

# Up to so many arrays have a group each; of more, those of one shape have one, or as many that
# follow one another in the order of their names.
_MOST_GROUPS = 8
# Lines that look for a group's curvature, how much farther and nearer one may lie than the last,
# nearer also where no curvature was seen, and within which factor the minimum has to be found.
_FIRST_LINES = 4
_FARTHER, _NEARER, _SOMEWHAT_NEARER = 16.0, 64.0, 4.0
_NEAR = 2.5
# Farther out than this a line says nothing of the steps to come, and may leave the domain of F or
# the range of the parameters' dtype.
_FARTHEST = 256.0
# All groups begin with the same rate, as what one line says of an early direction is noise for
# the most part; but what seems farther off than this begins that much nearer.
_TRUSTED = 8.0
# Lines over which minimisers are averaged; the least share, as a part of what single lines ask
# for; the most that a share changes at a line.
_LINES = 4.0
_LEAST_PART = 0.0625
_CHANGE = 2.0
_LARGEST = 2.0**30
# Where F is noisy, a line lies so far out that curvature raises F by so many noise levels at its
# middle, four times as many at its end, within a factor.
_VISIBLE = 32.0
_FAR = 16.0
# Intervals between line searches along the whole direction from one group's line to the next.
_INTERVALS = 2


@dataclass(frozen=True)
class Share:
    """The steps of a group beside those of all; each method returns a new one.

    Attributes
    ----------
    value : float
        Factor of the group's steps.
    curvature : float
        Of F along the group's direction, before it is multiplied; 0.0 where it is unknown.
    mean, size : float
        Mean and root mean square of the minimisers along it, in units of that along the whole
        direction; negative where F rises.
    lines : int
        Lines so far; among those for the first curvature, or behind them.
    settled : bool
        Whether the first curvature was found.
    """

    value: float = 1.0
    curvature: float = 0.0
    mean: float = 0.0
    size: float = 0.0
    lines: int = 0
    settled: bool = False

    def reach(self, alpha: float, noise: Noise) -> float:
        """Return how far the group's next line lies, in units of the minimiser along all."""
        if not self.settled:
            return self.value
        if not self.curvature > 0:
            return 1.0
        visible = math.sqrt(_VISIBLE * noise.level / self.curvature)
        return min(max(1.0, visible / (alpha * self.value)), _FAR)

    def told(
        self,
        scales: Sequence[float],
        losses: Sequence[float],
        alpha: float,
        noise: Noise,
        *,
        sampled: bool = False,
    ) -> Share:
        """Return the share after a line.

        Parameters
        ----------
        scales, losses : sequence of float
            Steps of the group alone, in units of those of all, and F there; the first one is 0.0.
        alpha : float
            The minimiser along the whole direction.
        noise : Noise
        sampled : bool
            Whether each step sees another sample of data.
        """
        if not self.settled:
            return self._first(scales, losses, alpha, noise)
        if not all(map(math.isfinite, losses)):
            return replace(self, value=_bounded(self.value / _CHANGE))
        if not is_clear(losses, noise.level):
            return self
        slope, curvature = _parabola([self.value * s for s in scales], losses)
        weight = 1.0 / min(self.lines + 1, _LINES)
        if self.curvature > 0:
            curvature = self.curvature + weight * (curvature - self.curvature)
        new = replace(self, curvature=max(curvature, 0.0), lines=self.lines + 1)
        if not curvature > 0:
            return replace(new, value=_bounded(self.value * (_CHANGE if slope > 0 else 1.0)))
        minimum = slope / (curvature * alpha)
        mean = self.mean + weight * (minimum - self.mean)
        size = math.hypot(math.sqrt(1.0 - weight) * self.size, math.sqrt(weight) * minimum)
        wanted = self._within_error(mean, size) if sampled else mean
        change = math.sqrt(max(wanted, _LEAST_PART * size) / self.value)
        value = self.value * min(max(change, 1.0 / _CHANGE), _CHANGE)
        return replace(new, value=_bounded(value), mean=mean, size=size)

    def _within_error(self, mean: float, size: float) -> float:
        """Return what is nearest to the value within the standard error of a mean of samples."""
        spread = max(1.0 - (mean / size) ** 2, 0.0) if size > 0 else 0.0
        error = size * math.sqrt(spread / min(self.lines, _LINES))
        return min(max(self.value, mean - error), mean + error)

    def _first(
        self, scales: Sequence[float], losses: Sequence[float], alpha: float, noise: Noise
    ) -> Share:
        """Return the share after one of the lines that look for the curvature."""
        slope = curvature = 0.0
        if not all(map(math.isfinite, losses)):
            ratio = 1.0 / _SOMEWHAT_NEARER
        elif not is_clear(losses, noise.level):
            if self.curvature > 0:
                return self._begun()
            if self.value >= _FARTHEST:
                return _UNKNOWN
            ratio = _FARTHER  # what there is to see lies farther out
        else:
            slope, curvature = _parabola(scales, losses)
            if curvature > 0:
                # Where F rises, the minimum lies as far behind.
                ratio = abs(slope) / (curvature * alpha * self.value)
            else:
                ratio = math.inf if slope > 0 else 1.0 / _SOMEWHAT_NEARER
        value = min(self.value * min(max(ratio, 1.0 / _NEARER), _FARTHER), _FARTHEST)
        new = replace(self, value=value, lines=self.lines + 1)
        if curvature > 0:
            new = replace(new, curvature=curvature)
        # There is no need to look farther out where F rises.
        near = 1.0 / _NEAR < ratio < (_NEAR if slope > 0 else math.inf)
        if (near and curvature > 0) or new.lines == _FIRST_LINES:
            return new._begun() if new.curvature > 0 else _UNKNOWN
        return new

    def _begun(self) -> Share:
        """Return the share with which a group begins whose minimum was found."""
        found = self.value
        start = found / min(max(found, 1.0 / _TRUSTED), _TRUSTED)
        return Share(start, self.curvature, found, found, 1, True)


# F depends on the group too little to be seen.
_UNKNOWN = Share(mean=1.0, size=1.0, lines=1, settled=True)


def _parabola(steps: Sequence[float], losses: Sequence[float]) -> tuple[float, float]:
    """Return slope, positive downhill, and curvature of F along a line."""
    return Parabola().add(steps, losses).solve()


def _bounded(value: float) -> float:
    return min(max(value, 1.0 / _LARGEST), _LARGEST)


@dataclass(frozen=True)
class Balance:
    """The shares of all groups; each method returns a new one.

    Attributes
    ----------
    groups : tuple of int
        Group of each array, -1 where its rate is not tuned, or its steps have the scale of the
        gradient and so end by themselves.
    shares : tuple of Share
        One for each group; none where there are fewer than two groups.
    turn : int
        The group along whose part the next line goes.
    next_line : int
        Number of steps before it.
    """

    groups: tuple[int, ...] = ()
    shares: tuple[Share, ...] = ()
    turn: int = 0
    next_line: int = 0

    @property
    def factors(self) -> tuple[float, ...]:
        """The factor of each array's steps."""
        if not self.shares:
            return (1.0,) * len(self.groups)
        # While the curvature is looked for the share says where, and nothing of the steps.
        values = [share.value if share.settled else 1.0 for share in self.shares]
        return tuple(1.0 if group < 0 else values[group] for group in self.groups)

    def changes(self, new: Balance) -> list[float]:
        """Return by how much the factors of another balance differ from these."""
        return [b / a for a, b in zip(self.factors, new.factors, strict=True)]

    def due(self, steps: int) -> bool:
        """Tell whether it is time for a line, after so many steps."""
        return bool(self.shares) and steps >= self.next_line

    def distance(self, alpha: float, noise: Noise) -> float:
        """Return the step around which the next line lies, for the minimiser along all."""
        return alpha * self.shares[self.turn].reach(alpha, noise)

    def postponed(self, steps: int) -> Balance:
        """Return the balance with the next line after so many steps, counted from the start."""
        return replace(self, next_line=steps)

    def told(
        self,
        scales: Sequence[float],
        losses: Sequence[float],
        alpha: float,
        noise: Noise,
        *,
        sampled: bool = False,
    ) -> Balance:
        """Return the balance after a line along the part of the group whose turn it is.

        Parameters
        ----------
        scales, losses, alpha, noise, sampled
            As `Share.told` takes them.
        """
        turn = self.turn
        share = self.shares[turn].told(scales, losses, alpha, noise, sampled=sampled)
        shares = (*self.shares[:turn], share, *self.shares[turn + 1 :])
        if share.settled:
            turn = (turn + 1) % len(shares)
        return replace(self, shares=shares, turn=turn)

    def next_after(self, steps: int, interval: int) -> Balance:
        """Return the balance with the next line at once, or in an interval if all are settled."""
        settled = all(share.settled for share in self.shares)
        return self.postponed(steps + (_INTERVALS * interval if settled else 1))

    def grown(self, arrays: int) -> Balance:
        """Return the balance where arrays were added: they have no group."""
        return replace(self, groups=(*self.groups, *(-1,) * (arrays - len(self.groups))))


def rescaled(leaf: LeafState, change: float) -> LeafState:
    """Return the state of an array whose steps are multiplied by a change of its share."""
    if change == 1.0:
        return leaf
    assert leaf.unit is not None  # a tuned rate of normalised steps has one
    return leaf._replace(unit=leaf.unit * change)


def balance_of(leaves: Leaves) -> Balance:
    """Return the balance of a run with these arrays."""
    chosen = [
        i
        for i, (rule, _) in enumerate(leaves)
        if rule.update.tuned and not rule.orthogonalizer.keeps_scale
    ]
    shapes = list(dict.fromkeys(tuple(leaves[i][1].shape) for i in chosen))
    groups = [-1] * len(leaves)
    for place, i in enumerate(chosen):
        if len(chosen) <= _MOST_GROUPS:
            groups[i] = place
        elif 1 < len(shapes) <= _MOST_GROUPS:
            groups[i] = shapes.index(tuple(leaves[i][1].shape))
        else:
            groups[i] = place * _MOST_GROUPS // len(chosen)
    count = 1 + max(groups, default=-1)
    return Balance(tuple(groups), tuple(Share() for _ in range(count)) if count > 1 else ())
