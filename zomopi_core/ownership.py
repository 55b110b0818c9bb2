"""Whose memory a point is in: that of a run, of the function for a call, or the caller's."""

from __future__ import annotations

from typing import Any

from . import _arrays
from .best import Best
from .binding import ArrayBinding
from .method import leaves_of, like_params


class Ownership:
    """Hands out points of a run, with no more copies than their owners need.

    Parameters
    ----------
    binding : ArrayBinding
        The memory of points and iterates.
    """

    def __init__(self, binding: ArrayBinding) -> None:
        self._binding = binding
        self._handed_over = False

    def lent(self, point: Any) -> Any:
        """Return a copy of a point for a call; where buffers are reused, in the points' memory."""
        return like_params(point, self._binding.copy(leaves_of(point)))

    def lent_best(self, best: Best) -> Any:
        """Return the best point for a call: no copy where it is made anew."""
        point = best.point
        return point if best.is_made else self.lent(point)

    def claimed(self, point: Any) -> Any:
        """Return a point that was just made, as parameters that nobody writes to."""
        return like_params(point, self._binding.claim(leaves_of(point)))

    def given(self, best: Best, last: Any) -> tuple[Any, Any]:
        """Return the best point and the last iterate for the caller to own, at the end of a run.

        Where buffers are reused they are no copies if that can be: no step may follow.
        """
        point = best.point
        if best.is_made and not self._binding.reuse_buffers:
            return point, self._given(last, last)
        return self._given(point, last), self._given(last, last)

    def _given(self, point: Any, last: Any) -> Any:
        arrays = leaves_of(point)
        own = all(x is y for x, y in zip(arrays, leaves_of(last), strict=True))
        may_be_given = own and self._binding.reuse_buffers and not self._handed_over
        if may_be_given and all(_arrays.thaw(x) for x in arrays):
            self._handed_over = True
            return point
        return like_params(point, self._binding.surrender(arrays))
