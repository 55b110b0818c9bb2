"""What a step looks at for the tuning: numbers that come from the device in one transfer.

Where parameters live on a device the host waits for each number that it reads. So sizes and
lengths stay there as 0-d arrays until all that a step needs is read at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from . import _arrays
from ._arrays import Array
from .rule import Leaves
from .update import at_least_a_row, root_mean_square


class Size(NamedTuple):
    """What is compared of one parameter array.

    Attributes
    ----------
    rms : float, or 0-d array before it is read
        Root mean square of the entries.
    columns : int
        Length of a row of its matrix.
    epsilon : float
        Of its dtype.
    """

    rms: Any
    columns: int
    epsilon: float

    @property
    def typical(self) -> float:
        """The size as `zomopi_core.update.typical_size` has it."""
        return float(at_least_a_row(self.rms, self.columns))


class Geometry(NamedTuple):
    """Lengths that are compared, Frobenius norms over all parameters."""

    probe: float  # of a probe for smoothing 1
    direction: float  # of the direction for rate 1


class Length(NamedTuple):
    """The Frobenius norm of a product, before it is read.

    Attributes
    ----------
    square : 0-d array
    scale : 0-d array or float
        Factor of the product.
    """

    square: Array
    scale: Any = 1.0


class Look(NamedTuple):
    """What was read.

    Attributes
    ----------
    numbers : list of lists of float
        Entries of each array.
    sizes : list of Size
    geometry : Geometry
    """

    numbers: list[list[float]]
    sizes: list[Size]
    geometry: Geometry


def sizes_of(leaves: Leaves) -> list[Size]:
    """Return the sizes of parameter arrays, not read yet."""
    return [
        Size(root_mean_square(x), rule.subspace.columns(x.shape), _arrays.epsilon(x))
        for rule, x in leaves
    ]


def length(left: Array | None, right: Array, scale: Any = 1.0) -> Length:
    """Return the length of ``scale * left @ right``, without making the product."""
    image = right if left is None else (_arrays.transposed(left) @ left) @ right
    return Length(_arrays.namespace(right).sum(image * right), scale)


def look(
    numbers: Sequence[Array] = (),
    sizes: Sequence[Size] = (),
    probes: Sequence[Length] = (),
    directions: Sequence[Length] = (),
) -> Look:
    """Read all of it in one transfer from each device.

    Parameters
    ----------
    numbers : sequence of 1-d arrays
    sizes : sequence of Size
    probes, directions : sequence of Length
        Of each parameter array that has one.
    """
    scalars = [size.rms for size in sizes]
    for square, scale in (*probes, *directions):
        scalars += [square, scale]
    found = _arrays.read([*numbers, *scalars])
    rest = (value for (value,) in found[len(numbers) :])
    return Look(
        found[: len(numbers)],
        [size._replace(rms=next(rest)) for size in sizes],
        Geometry(_norm(rest, len(probes)), _norm(rest, len(directions))),
    )


def _norm(values: Iterator[float], count: int) -> float:
    """Return the norm of `count` lengths, each a square and a scale."""
    squares = [(next(values), next(values)) for _ in range(count)]
    return math.hypot(*(math.sqrt(max(square, 0.0)) * abs(scale) for square, scale in squares))
