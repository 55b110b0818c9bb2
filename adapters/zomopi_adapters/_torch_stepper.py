"""The steps of the Torch optimizer: from closures to moved parameters."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from zomopi_core import _arrays
from zomopi_core.estimator import FiniteDifference
from zomopi_core.failures import Failures
from zomopi_core.look import Size
from zomopi_core.rule import has_started
from zomopi_core.sampling import Randomness, Sampler

from . import _torch_errors as errors
from ._torch_activation import ActivationBasis
from ._torch_evaluate import Closure, Evaluator, mean_of_finite
from ._torch_groups import check_rates
from ._torch_journal import Recorded, StepJournal
from ._torch_leaf import Leaf, Source
from ._torch_overlay import NotBatchableError
from ._torch_parameters import Parameters
from ._torch_repetition import Repair
from ._torch_scope import Replay, forget_casts, own_arithmetic, uninterrupted
from ._torch_step import accept, advance, keep_what_fits, warn_of_invisible_probes, weigh
from ._torch_tuning import Tuner, fit_memories, lengths, share


class Stepper:
    """Takes the steps of an optimizer, and knows where its run is.

    Parameters
    ----------
    groups : list of dict
        Those of the optimizer, which have one estimator; leaves are made of their parameters.
    parameters : Parameters
        Without leaves.
    seed : int or Sampler
    failures : Failures
    generators : sequence
        Those that closures draw from, beside the global ones.
    basis : ActivationBasis, optional
    batched : bool
    chunk : int, optional

    Attributes
    ----------
    step : int
        Number of steps that were taken.
    refreshed_at : int
        The step before which subspaces were refreshed last.
    started : 0-d tensor
        1 once a step had an estimate, as in the state of a method.
    warned : bool
        Whether somebody was told that probes vanish.
    compared : bool
        Whether the losses of a batched step were compared with those one by one.
    journal : StepJournal or None
        Where steps are recorded.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        parameters: Parameters,
        *,
        seed: int | Sampler,
        failures: Failures,
        generators: Sequence[Any],
        basis: ActivationBasis | None,
        batched: bool,
        chunk: int | None,
    ) -> None:
        self.parameters, self.leaves, self.basis = parameters, parameters.leaves, basis
        self.seed, self.failures = seed, failures
        self.batched, self.chunk = batched, chunk
        self._generators = tuple(generators)
        leaves, self.random = self._made(groups, seed)
        with own_arithmetic({leaf.param.device.type for leaf in leaves}):
            self.tuner = Tuner(_estimator_of(groups), leaves)
        parameters.take(leaves)
        first = self.leaves[0]
        self.step, self.refreshed_at = 0, 0
        self.started = torch.zeros((), dtype=first.state.momentum.dtype, device=first.param.device)
        self.warned, self.compared = False, False
        self.journal: StepJournal | None = None
        self._recorded: Recorded | None = None

    def enlist(self, groups: list[dict[str, Any]]) -> None:
        """Let what is new in the groups take part."""
        leaves, _ = self._made(groups, self.random)
        self.tuner.enlist(leaves)
        self.parameters.take(leaves)

    def _made(
        self, groups: list[dict[str, Any]], seed: Randomness | int | Sampler
    ) -> tuple[list[Leaf], Randomness]:
        fit_memories(groups, _estimator_of(groups))
        leaves, random = self.parameters.make(groups, seed)
        if self.batched and (others := [x.name for x in leaves if x.binding != "overlay"]):
            raise errors.batched_needs_overlay(others)
        return leaves, random

    def take(self, closures: list[Closure], groups: list[dict[str, Any]]) -> Any:
        """Take a step, and return the mean of the losses at its probes that are finite."""
        check_rates(groups)
        leaves, tuner = self._active(), self.tuner
        if any(_is_due(leaf, self.step) for leaf in leaves):
            tuner.postpone()
        estimator = tuner.estimator
        keep_what_fits(leaves, estimator.probes)
        run = self._evaluator(leaves, closures)
        self.parameters.expect_weights(False)
        with own_arithmetic(run.kinds):
            for leaf in leaves:
                leaf.follow()
        self._refresh(run)
        with own_arithmetic(run.kinds):
            sizes = tuner.sizes(leaves)
        failures, count = self.failures.state(), len(estimator.evaluations)
        try:
            losses = self._losses(run)
            with own_arithmetic(run.kinds):
                repair = self._repair(run, losses, count, sizes)
                self._move(run, repair, estimator, groups)
        except BaseException:
            self.failures.restore(failures)
            run.back()
            raise
        finally:
            forget_casts(run.kinds)
        return mean_of_finite(repair.losses[:count], repair.joined[:count])

    def _active(self) -> list[Leaf]:
        leaves = [x for x in self.leaves if not x.group["frozen"] and x.param.requires_grad]
        for leaf in leaves:
            leaf.check()
        if not leaves:
            raise errors.nothing_to_train()
        return leaves

    def _evaluator(self, leaves: list[Leaf], closures: list[Closure]) -> Evaluator:
        model, tuner = self.parameters.model, self.tuner
        replay = Replay(
            {leaf.param.device for leaf in leaves},
            self._generators,
            None if model is None else model.modules(),
        )
        return Evaluator(
            Source(self.random, self.step, tuner.rate),
            leaves,
            closures,
            replay,
            {leaf.param.device.type for leaf in leaves},
            self.parameters.overlay,
            (*tuner.estimator.evaluations, *tuner.points(leaves)),
        )

    def _refresh(self, run: Evaluator) -> None:
        """Refresh the subspaces that are due; once, however often a step is tried."""
        step, leaves, basis = run.source.step, run.leaves, self.basis
        first = step == 0 and basis is not None and not basis.seen
        due = [x for x in leaves if _is_due(x, step)] if step != self.refreshed_at else []
        numbers = {leaf.index for leaf in due}
        if basis is not None and (due or first):
            self._look_at_inputs(run, basis)
        with own_arithmetic(run.kinds), uninterrupted():
            for leaf in due if basis is None else leaves:
                known = None if basis is None else basis.recorded(leaf)
                if basis is not None and leaf.index in basis.fresh:
                    leaf.merge(run.source)
                    leaf.restart(run.source, known)
                elif leaf.index in numbers:
                    leaf.merge(run.source)
                    leaf.refresh(run.source, known)
            if basis is not None:
                basis.forget()
            if due or first:
                self.refreshed_at = step
        if not self.warned and (due or step == 0):
            with own_arithmetic(run.kinds):
                width = self.tuner.estimator.width
                self.warned = warn_of_invisible_probes(leaves, run.source, width)

    def _look_at_inputs(self, run: Evaluator, basis: ActivationBasis) -> None:
        """Take the frames of linear layers from a forward pass, or from the journal."""
        if self._recorded is not None:
            basis.recall(run.leaves, self._recorded.frames)
            return
        watching = basis.watching(run.leaves, run.source.random, run.source.step)
        with run.overlay.on(), watching, run.replay.forward_pass():
            for closure in run.closures:
                closure()

    def _losses(self, run: Evaluator) -> list[Any]:
        if self.batched and self._recorded is not None:  # of points that leave the weights alone
            return list(self._recorded.losses)
        if self.batched:
            try:
                losses = run.batched(run.points, self.chunk)
                self.compared = self.compared or run.compare(losses)
                return losses
            except NotBatchableError as error:
                # The caller of ZOMOPI.step, around which Torch puts a function of its own.
                warnings.warn(
                    f"the probes run one by one from now on: {error}", UserWarning, stacklevel=5
                )
                self.batched = False
        return run.one_by_one(run.points)

    def _repair(self, run: Evaluator, losses: list[Any], probes: int, sizes: list[Size]) -> Repair:
        """Look at what failed, unless nothing follows from it: that would wait for the device."""

        def again(points: list[int]) -> list[Any]:
            return run.batched(points, self.chunk) if self.batched else run.one_by_one(points)

        repair = Repair(self.failures, losses, again)
        if self.tuner.looks:
            repair.look(sizes, *lengths(run.leaves, run.source))
        if self._recorded is not None:
            if len(self._recorded.losses) != len(losses):
                raise errors.wrong_journal("a step has too many losses")
            repair.recall(self._recorded.row, run.move_to)
        elif self.failures.policy["non-finite"] != "skip" or run.points[probes:] or self.journal:
            repair.run(run.source.step, probes)
        return repair

    def _move(
        self,
        run: Evaluator,
        repair: Repair,
        estimator: FiniteDifference,
        groups: list[dict[str, Any]],
    ) -> None:
        """Move the parameters by what the losses say; the journal knows it first."""
        leaves, source, tuner = run.leaves, run.source, self.tuner
        count = len(estimator.evaluations)
        coefficients = estimator.differences(repair.joined[:count])
        tuning, verdict = tuner.told(repair)
        if not verdict.usable:
            coefficients = coefficients * math.nan
        share(tuning, leaves)
        known = self._recorded
        in_place = sorted(run.overlay.unknown) if known is None else known.in_place
        weighted = weigh(estimator, leaves, coefficients)
        moved = advance(estimator, weighted, self.started, leaves, source)
        with uninterrupted():
            if self.journal is not None:
                statistics = run.replay.statistics
                self.journal.record(self, groups, repair, count, statistics, in_place)
            accept(moved, source, verdict)
            alive = _arrays.to_like(weighted.alive, self.started)
            self.started = has_started(self.started, alive)
            self.step += 1
            tuner.tuning = tuner.begun(tuning, leaves, source)
            if in_place:
                self.parameters.fall_back(in_place, source)
                self.batched = False

    def replay(self, recorded: Recorded, step: Callable[[Closure], Any]) -> None:
        """Let the optimizer's `step` take a recorded one; weights move through all its points."""
        losses = recorded.losses
        known = iter(losses.tolist() if isinstance(losses, np.ndarray) else losses)
        self._recorded = recorded
        try:
            step(lambda: next(known))
        except StopIteration:
            raise errors.wrong_journal("a step has too few losses") from None
        finally:
            self._recorded = None

    def merge(self) -> None:
        """Bring what was learned beside the weights into them; the journal knows it first."""
        if self.journal is not None:
            self.journal.mark_merge(self.step)
        self.parameters.merge(Source(self.random, self.step))


def _estimator_of(groups: list[dict[str, Any]]) -> FiniteDifference:
    estimator: FiniteDifference = groups[0]["method"].finite_difference
    return estimator


def _is_due(leaf: Leaf, step: int) -> bool:
    every = leaf.rule.subspace.refresh_every
    return bool(every) and step > 0 and step % every == 0
