"""Queries that a problem takes: what counts most where a query is a simulation."""

from __future__ import annotations

import math

import numpy as np

import zomopi_core as zo


class Quadratic:
    """Distance to a matrix of rank 2 (64 x 64), from zero, to half of the first loss."""

    max_queries = 20000
    seeds = 3

    def setup(self):
        generator = np.random.default_rng(0)
        left, right = generator.standard_normal((64, 2)), generator.standard_normal((2, 64))
        self.target = left @ right / math.sqrt(2 * 64)
        self.method = zo.zo_mopi(rank=16)

    def loss(self, x):
        return float(np.sum((x - self.target) ** 2))

    def queries(self, seed):
        """Return the queries to the target, NaN where it was not reached."""
        x0 = np.zeros_like(self.target)
        result = zo.minimize(
            self.loss,
            x0,
            method=self.method,
            target=self.loss(x0) / 2,
            max_queries=self.max_queries,
            # the same numbers for every release of NumPy: what changes is the method
            seed=zo.HostSampler(seed),
        )
        return result.nfev if result.success else math.nan

    def track_queries_to_target(self):
        return float(np.median([self.queries(seed) for seed in range(self.seeds)]))

    track_queries_to_target.unit = "queries"
