"""What journals cost in time and memory; see journal_costs.py, which also measures more."""

import time
import tracemalloc

import journal_costs
from zomopi_core import evaluation

# Time of the processor: what else the machine does has no part in it.
CLOCK = time.process_time


def test_a_step_of_a_fast_function():
    """42 microseconds were measured."""
    plain, kept = journal_costs.per_step(journal_costs.loss, 500, 5, CLOCK)
    assert kept - plain < 150e-6


def test_a_step_of_a_slow_function(monkeypatch):
    """One per cent of 10 ms, where evaluations are written by themselves: 60 were measured."""
    monkeypatch.setattr(evaluation, "SLOW_SECONDS", 0.0)
    plain, kept = journal_costs.per_step(journal_costs.loss, 500, 5, CLOCK)
    assert kept - plain < 100e-6


def test_long_runs():
    tracemalloc.start()
    try:
        growth, quarters, _ = journal_costs.growth(4000)
    finally:
        tracemalloc.stop()
    assert growth < 60  # the five numbers of the history
    assert quarters[-1] < 2.0 * quarters[0]  # time that grew with the steps would be 7 times
