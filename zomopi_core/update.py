"""Directions to steps: learning rate and its schedules, decoupled weight decay, default scaling.

A step is factored, ``X <- X - eta lambda X - eta A O``; whoever holds X applies it.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

from . import _arrays, errors
from ._arrays import Array
from ._checks import as_python, check_count, not_negative, positive

#: maps the step t = 0, 1, ... to a learning rate
Schedule = Callable[[Any], Any]


class Change(NamedTuple):
    """The factored step of one leaf: ``X <- X - decay X + scale * (left @ right)``.

    Attributes
    ----------
    left : array of shape (..., m, r), or None
        None stands for the identity.
    right : array of shape (..., r, n), or the leaf's shape where `left` is None
    scale : 0-d array
        Minus the learning rate; 0 where the step changes nothing.
    decay : 0-d array or None
        Learning rate times weight decay; None where there is none.
    """

    left: Array | None
    right: Array
    scale: Any
    decay: Any


def _maximum(a: Any, b: Any) -> Any:
    """Return the larger of numbers, or of a traced or device scalar and a number."""
    if isinstance(a, numbers.Real):
        return max(a, b)
    xp = _arrays.namespace(a)
    return xp.where(a > b, a, b)


def _cosine(x: Any) -> Any:
    return math.cos(x) if isinstance(x, numbers.Real) else _arrays.namespace(x).cos(x)


@dataclass(frozen=True)
class _Decay:
    """Linear warm-up to `peak`, then a fall to `final` at `steps`, where it stays."""

    peak: float
    steps: int
    warmup: int
    final: float
    cosine: bool

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_count("warmup", self.warmup, 0)
        as_python(
            self,
            peak=partial(positive, "peak"),
            steps=int,
            warmup=int,
            final=partial(not_negative, "final"),
        )
        if self.warmup >= self.steps:
            raise errors.not_a_number("warmup", self.warmup, f"below steps={self.steps}")

    def __call__(self, step: Any) -> Any:
        left = _maximum((self.steps - step) / (self.steps - self.warmup), 0.0)  # 1 .. 0
        left = -_maximum(-left, -1.0)
        if self.cosine:
            left = 0.5 - 0.5 * _cosine(math.pi * left)
        rate = self.final + (self.peak - self.final) * left
        if self.warmup:
            rate = rate * -_maximum(-(step + 1) / (self.warmup + 1), -1.0)
        return rate


@dataclass(frozen=True)
class _Constant:
    """The same rate at every step; an object, so that it can be stored and compared."""

    rate: float

    def __post_init__(self) -> None:
        as_python(self, rate=partial(positive, "rate"))

    def __call__(self, step: Any) -> float:
        return self.rate


def constant(rate: float) -> Schedule:
    """Return a schedule that gives `rate` at every step.

    Parameters
    ----------
    rate : float
        The learning rate, positive.

    Returns
    -------
    callable
        Maps a step to a learning rate.

    Raises
    ------
    ValueError
        If `rate` is not a positive number.

    Examples
    --------
    >>> import zomopi_core as zo
    >>> zo.constant(0.1)(1000)
    0.1
    """
    return _Constant(rate)


def linear_decay(peak: float, steps: int, *, warmup: int = 0, final: float = 0.0) -> Schedule:
    """Return a schedule that falls on a straight line from `peak` to `final`.

    Parameters
    ----------
    peak : float
        Largest learning rate.
    steps : int
        Step at which `final` is reached; it stays there.
    warmup : int
        Steps over which the rate first rises linearly to `peak`.
    final : float
        Learning rate at the end.

    Returns
    -------
    callable
        Maps a step (an integer, or an integer array under tracing) to a learning rate.

    Raises
    ------
    ValueError
        If a number is out of range or `warmup` not below `steps`.

    Examples
    --------
    >>> import zomopi_core as zo
    >>> schedule = zo.linear_decay(0.1, 10)
    >>> [round(schedule(t), 3) for t in (0, 5, 10, 11)]
    [0.1, 0.05, 0.0, 0.0]
    """
    return _Decay(peak, steps, warmup, final, cosine=False)


def cosine_decay(peak: float, steps: int, *, warmup: int = 0, final: float = 0.0) -> Schedule:
    """Return a schedule that falls from `peak` to `final` along half a cosine.

    Parameters
    ----------
    peak : float
        Largest learning rate.
    steps : int
        Step at which `final` is reached; it stays there.
    warmup : int
        Steps over which the rate first rises linearly to `peak`.
    final : float
        Learning rate at the end.

    Returns
    -------
    callable
        Maps a step (an integer, or an integer array under tracing) to a learning rate.

    Raises
    ------
    ValueError
        If a number is out of range or `warmup` not below `steps`.

    Examples
    --------
    >>> import zomopi_core as zo
    >>> schedule = zo.cosine_decay(0.1, 10, warmup=3)
    >>> [round(schedule(t), 3) for t in (0, 1, 2, 3, 10)]
    [0.025, 0.05, 0.075, 0.1, 0.0]
    """
    return _Decay(peak, steps, warmup, final, cosine=True)


def typical_size(x: Array, columns: int) -> Array:
    """Return ``max(rms(x), 1 / sqrt(columns))`` as a 0-d array in the working dtype of `x`.

    The second term is the size at which a row times a vector of unit entries is about 1: it is
    what a parameter that starts at zero is measured by.
    """
    return at_least_a_row(root_mean_square(x), columns)


def at_least_a_row(size: Any, columns: int) -> Any:
    """Return the typical size for a root mean square, a number or a 0-d array."""
    return _maximum(size, 1.0 / math.sqrt(columns))


def root_mean_square(x: Array) -> Array:
    """Return the root mean square of the entries as a 0-d array in the working dtype of `x`."""
    xp = _arrays.namespace(x)
    dtype = _arrays.working_dtype(x)
    # In parts, without arrays of the size of x; each divided by the largest entry of all, so that
    # the squares neither overflow nor vanish.
    parts = [xp.astype(part, dtype, copy=False) for part in _arrays.blocks_of(x)]
    largest = xp.max(xp.stack([xp.max(xp.abs(part)) for part in parts]))
    unit = xp.where(largest > 0, largest, 1.0)
    squares = xp.stack([xp.sum((part / unit) ** 2) for part in parts])
    return largest * xp.sqrt(xp.sum(squares) / _arrays.size(x))


@dataclass(frozen=True)
class Update:
    """Learning rate and decoupled weight decay.

    Parameters
    ----------
    learning_rate : float, schedule, "auto" or None
        eta, or a callable of the step. With ``"auto"`` whoever evaluates the function measures
        the rate (`rate_search`), in units of the size of the parameters at the start
        (`typical_size`) where steps are normalised; 0.01 for whoever does not. None takes a
        default.
    weight_decay : float
        lambda.
    horizon : int or None
        Number T of steps of the run, for a default learning rate: the entries of its first step
        have a root mean square of ``0.5 / sqrt(T)`` times the size of the parameters at the
        start (`typical_size`), and it falls linearly to zero over T steps. Where T is not known,
        the ratio is 0.01, that of 2,500 steps, and constant.
    name : str
        What the learning rate is called where it is set, for messages.
    aspect : {"tall", "ratio"}, optional
        Factor of a given learning rate for an m x n matrix: ``"tall"`` for sqrt(max(1, m/n)),
        ``"ratio"`` for sqrt(m/n).
    """

    learning_rate: float | Schedule | str | None
    weight_decay: float = 0.0
    horizon: int | None = None
    name: str = "learning_rate"
    aspect: str | None = None

    def __post_init__(self) -> None:
        given = self.learning_rate is not None and not self.tuned
        if given and not callable(self.learning_rate):
            as_python(self, learning_rate=partial(positive, self.name))
        as_python(self, weight_decay=partial(not_negative, "weight_decay"))

    @property
    def tuned(self) -> bool:
        """Whether the learning rate is measured during the run."""
        return isinstance(self.learning_rate, str) and self.learning_rate == "auto"

    @property
    def constant(self) -> bool:
        """Whether `rate` is the same for all steps."""
        if self.learning_rate is None:
            return self.horizon is None
        return not callable(self.learning_rate)

    def init(self, x: Array, columns: int, gain: float | None) -> Array | None:
        """Return the unit of the learning rate, a 0-d array, or None where it is 1.

        Parameters
        ----------
        x : array
            The leaf at the start.
        columns : int
            Length of a row of its matrix.
        gain : float or None
            Learning rate for which the entries of a step have root mean square 1; None where a
            step has the scale of the gradient.
        """
        xp = _arrays.namespace(x)
        if self.tuned:
            return None if gain is None else typical_size(x, columns) * gain
        if self.learning_rate is not None:
            if self.aspect is None or x.ndim < 2:
                return None
            m, n = _arrays.size(x) / columns, columns
            factor = math.sqrt(max(1.0, m / n) if self.aspect == "tall" else m / n)
            dtype = _arrays.working_dtype(x)
            return xp.full((), factor, dtype=dtype, device=_arrays.device(x))
        if gain is None:
            raise errors.needs_learning_rate(self.name)
        # With normalised steps the error after T of them is least for a rate of distance over
        # sqrt(T). The best factor differed by 30 between problems (nine small ones and the digits,
        # T = 100 to 2,500); 0.5 lies between.
        relative = 0.01 if self.horizon is None else 0.5 / math.sqrt(self.horizon)
        return typical_size(x, columns) * (relative * gain)

    @cached_property
    def _fall(self) -> Schedule | None:
        return None if self.horizon is None else linear_decay(1.0, self.horizon)

    def rate(self, step: Any) -> Any:
        """Return the learning rate of `step`, in units of `init` where it was not given."""
        if self.tuned:
            return 0.01
        if self.learning_rate is None:
            return 1.0 if self._fall is None else self._fall(step)
        if not callable(self.learning_rate):
            return self.learning_rate
        rate = self.learning_rate(step)
        if not isinstance(step, int):  # an array under tracing
            return rate
        try:
            if isinstance(rate, str):
                raise TypeError
            number = float(rate)  # a NumPy float would widen float32 arrays that it multiplies
        except (TypeError, ValueError) as error:
            raise errors.bad_rate(self.name, rate, step) from error
        if not 0 <= number < math.inf:
            raise errors.bad_rate(self.name, rate, step)
        return number

    def change(
        self,
        left: Array | None,
        right: Array,
        rate: Any,
        unit: Array | None,
        alive: Array,
        gradient: Array,
    ) -> tuple[Change, Array | None]:
        """Return the step along ``left @ right``, nothing where `alive` is 0, and the unit."""
        rate = alive * rate
        if unit is not None:
            rate = rate * unit
        return self._change(left, right, rate), unit

    def _change(self, left: Array | None, right: Array, rate: Array) -> Change:
        return Change(left, right, -rate, rate * self.weight_decay if self.weight_decay else None)


@dataclass(frozen=True)
class NormAdaptive(Update):
    """Learning rate over the accumulated norm of the gradients (AdaGO, arXiv 2509.02981).

    ``v^2 <- v^2 + min(norm(G), gamma)^2``, rate ``max(eps, eta min(norm(G), gamma) / v)``.

    Parameters
    ----------
    clip : float
        gamma.
    floor : float
        eps, the least rate.
    start : float
        v_0.
    """

    clip: float = 1.0
    floor: float = 0.0
    start: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        as_python(
            self,
            clip=partial(positive, "clip"),
            floor=partial(not_negative, "floor"),
            start=partial(positive, "start"),
        )

    def init(self, x: Array, columns: int, gain: float | None) -> Array:
        """Return v_0."""
        if self.learning_rate is None or self.tuned:
            raise errors.needs_learning_rate(self.name)
        xp = _arrays.namespace(x)
        dtype = _arrays.working_dtype(x)
        return xp.full((), self.start, dtype=dtype, device=_arrays.device(x))

    def change(
        self,
        left: Array | None,
        right: Array,
        rate: Any,
        unit: Array | None,
        alive: Array,
        gradient: Array,
    ) -> tuple[Change, Array | None]:
        """Return the step, and v."""
        assert unit is not None
        xp = _arrays.namespace(gradient)
        largest = xp.max(xp.abs(gradient))
        scaled = gradient / xp.where(largest > 0, largest, 1.0)
        norm = largest * xp.sqrt(xp.sum(scaled * scaled))
        norm = alive * -_maximum(-norm, -self.clip)
        unit = xp.sqrt(unit * unit + norm * norm)
        rate = alive * _maximum(rate * norm / unit, self.floor)
        return self._change(left, right, rate), unit
