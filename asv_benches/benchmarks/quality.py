"""Queries that problems take: what counts most where a query is a simulation."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

import zomopi_core as zo
from zomopi_core import problems

from .common import sizes


class QueriesToTarget:
    """`minimize` with nothing set, to the target of a problem; the budget where it is missed."""

    params: ClassVar = [sizes("gate", "quadratic", "digits", "sensing", "phase-mask")]
    param_names: ClassVar = ["problem"]
    max_queries = 5000
    seeds = 3
    timeout = 600

    def setup(self, name):
        try:
            self.problem = problems.make(name)
        except ImportError as error:
            raise NotImplementedError(str(error)) from error

    def queries(self, seed):
        """Return the queries to the target."""
        result = zo.minimize(
            self.problem.fun,
            self.problem.x0,
            target=self.problem.target,
            max_queries=self.max_queries,
            # the same numbers for every release of NumPy: what changes is the method
            seed=zo.HostSampler(seed),
        )
        return result.nfev if result.success else math.inf

    def track_queries_to_target(self, name):
        found = float(np.median([self.queries(seed) for seed in range(self.seeds)]))
        return min(found, float(self.max_queries))

    track_queries_to_target.unit = "queries"
