"""What stands between the formulas and the clock: bookkeeping, checks, keys of draws."""

from __future__ import annotations

import itertools
import time
from typing import ClassVar

import numpy as np

import zomopi_core as zo

from .common import QUICK, median_ratio, turns

LEARNING_RATE, SMOOTHING, MOMENTUM = 1e-3, 1e-3, 0.9
SIZE, RANK, SPECTRAL_RANK, PROBES = 64, 16, 8, 4


def method_of_overhead():
    """Return the method whose overhead is measured."""
    return zo.zo_mopi(
        learning_rate=LEARNING_RATE,
        rank=RANK,
        spectral_rank=SPECTRAL_RANK,
        probes=PROBES,
        smoothing=SMOOTHING,
        momentum=MOMENTUM,
    )


def start(dtype):
    """Return the parameters at the start."""
    return np.random.default_rng(0).standard_normal((SIZE, SIZE)).astype(dtype)


def free_function():
    """Return a function that costs next to nothing and does not return the same at all points.

    Equal losses would give M = 0 and leave the formulas without work.
    """
    losses = itertools.cycle(np.random.default_rng(1).standard_normal(2 * PROBES).tolist())
    return lambda x: next(losses)


class BareStep:
    """The formulas of a step in NumPy calls, with nothing around them."""

    def __init__(self, x, frame, right):
        self.x, self.frame, self.right = x, frame, right
        self.momentum = np.zeros((frame.shape[1], x.shape[1]), dtype=x.dtype)
        self.step = 0

    def run(self, fun, steps):
        """Take steps and return the seconds of each."""
        X, A, V, M = self.x, self.frame, self.right, self.momentum
        mu, beta, eta, dtype = SMOOTHING, MOMENTUM, LEARNING_RATE, X.dtype
        marks = [time.perf_counter()]
        for t in range(self.step, self.step + steps):
            # A new key each step: the rejections of a repeated sequence are learnt by the branch
            # predictor, and a draw seems to take less than it does.
            generator = np.random.Generator(np.random.Philox(key=t))
            B = generator.standard_normal((PROBES, *M.shape), dtype=dtype)
            losses = []
            for i in range(PROBES):
                D = A @ (mu * B[i])
                losses += [fun(X + D), fun(X - D)]
            losses = np.asarray(losses)
            c = (losses[0::2] - losses[1::2]) / (2 * mu)
            G = ((c / PROBES).astype(dtype) @ B.reshape(PROBES, -1)).reshape(M.shape)
            M = beta * M + (1 - beta) * G if t else G
            V, _ = np.linalg.qr(M.T @ (M @ V))
            U = M @ V
            U = U / np.sqrt(np.sum(U * U, axis=0))
            X = X - A @ (eta * (U @ V.T))
            marks.append(time.perf_counter())
        self.x, self.right, self.momentum = X, V, M
        self.step += steps
        return np.diff(marks)


class LibraryStep:
    """The same with the functions of a method."""

    def __init__(self, x, seed=0):
        self.method = method_of_overhead()
        self.x, self.state = x, self.method.init(x, seed)

    def run(self, fun, steps, refresh_every=None):
        """Take steps and return the seconds of each; without `refresh_every` in one subspace."""
        method, x, state = self.method, self.x, self.state
        marks = [time.perf_counter()]
        for _ in range(steps):
            if refresh_every and state.step > 0 and state.step % refresh_every == 0:
                state = method.refresh(state)
            probes = method.propose(state)
            losses = np.asarray([fun(point) for point in zo.perturb(method, x, probes)])
            state, step = method.update(state, losses, probes)
            x = zo.apply_step(x, step)
            marks.append(time.perf_counter())
        self.x, self.state = x, state
        return np.diff(marks)


def median_steps(runs, rounds):
    """Return the seconds (rounds, runs) of the median step of runs that take turns.

    A step is far shorter than the time for which a neighbour takes the processor: its bursts hit
    few steps and leave the median alone, what slows the machine for long slows all runs.
    """
    for run in runs:
        run()
    return np.asarray([[np.median(run()) for run in runs] for _ in range(rounds)])


def step_and_bare_numpy_seconds(dtype, rounds, steps):
    """Return the seconds (rounds, 2) of a step by a method's functions and by bare NumPy."""
    ours = LibraryStep(start(dtype))
    leaf = ours.state.leaves[0]
    bare = BareStep(ours.x, leaf.frame, leaf.right)
    fun = free_function()
    return median_steps([lambda: ours.run(fun, steps), lambda: bare.run(fun, steps)], rounds)


def minimize_and_step_seconds(dtype, rounds, steps):
    """Return the seconds (rounds, 2) of a step of `minimize` and of the loop written by hand."""
    x0, method, fun = start(dtype), method_of_overhead(), free_function()
    seeds = itertools.count()

    def by_minimize():
        result = zo.minimize(fun, x0, method=method, max_steps=steps, seed=next(seeds))
        return np.diff(result.history["elapsed"])

    def by_hand():
        return LibraryStep(x0, seed=next(seeds)).run(fun, steps, method.refresh_every)

    return median_steps([by_minimize, by_hand], rounds)


class Overhead:
    """64 x 64, r = 16, k = 8, four probes, central differences, NumPy."""

    params: ClassVar = [["float64", "float32"]]
    param_names: ClassVar = ["dtype"]
    turns = turns(7)
    steps = 20 if QUICK else 200

    def track_step_over_bare_numpy(self, dtype):
        return median_ratio(step_and_bare_numpy_seconds(dtype, self.turns, self.steps))

    track_step_over_bare_numpy.unit = "ratio"

    def track_minimize_over_step(self, dtype):
        return median_ratio(minimize_and_step_seconds(dtype, self.turns, self.steps))

    track_minimize_over_step.unit = "ratio"
