"""What ends a run, and how that is told."""

from __future__ import annotations

from typing import NamedTuple

UNSUCCESSFUL = ("interrupted", "failed", "failures")

MESSAGES = {
    "max_queries": "The budget of evaluations is spent.",
    "max_steps": "The number of steps is reached.",
    "max_time": "The time is up.",
    "target": "The target is reached.",
    "failures": "Too many evaluations failed in a row.",
    "stagnation": "The best loss has not improved for the number of steps given as stagnation.",
    "callback": "The callback asked to stop.",
    "interrupted": "Interrupted from the keyboard; this is what was reached.",
}


class Rules(NamedTuple):
    """What ends a run; None where there is no such rule. See `minimize`."""

    max_queries: int | None = None
    max_steps: int | None = None
    max_time: float | None = None
    target: float | None = None
    stagnation: int | None = None
