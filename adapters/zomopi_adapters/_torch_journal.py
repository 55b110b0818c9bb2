"""The journal of the Torch optimizer: what weights follow from without calling the model.

Losses and learning rates of each step; where inputs decide more than the losses, also the frames
that were taken from them at a refresh, and the last statistics of normalisation layers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from zomopi_core import _arrays
from zomopi_core._header import check_driver, check_start, check_surroundings
from zomopi_core._journal_attachments import Attachment, attachment, digests_in, noted
from zomopi_core._journal_file import JournalFile
from zomopi_core._journal_rows import (
    Row,
    mean_of_finite,
    note_of,
    pack_losses,
    read_note,
    unpack_losses,
)
from zomopi_core.journal import Journal, Recorder

from . import _torch_errors as errors
from ._torch_activation import Frames
from ._torch_groups import Carrier
from ._torch_repetition import Repair
from ._torch_state import described

if TYPE_CHECKING:
    from ._torch_stepper import Stepper

_FRAMES, _STATISTICS, _MERGE = "frames", "statistics", "merge"
_NO_LOSSES = pack_losses(np.zeros(0))


class Recorded(NamedTuple):
    """A step of a journal, or a merge.

    Attributes
    ----------
    row : Row
    losses : array of shape (points,)
        At the last evaluation of each.
    frames : dict
        Those that it took from its inputs, empty where it took none.
    in_place : list of str
        Parameters that are moved in place from the next step on.
    """

    row: Row
    losses: Any
    frames: Frames
    in_place: list[str]


def _start(stepper: Stepper) -> dict[str, Tensor]:
    """Return the weights by name; what an int8 layer learns beside its weight begins at zero."""
    return {
        leaf.name: leaf.param.detach()
        for leaf in stepper.leaves
        if not isinstance(leaf.param, Carrier)
    }


def _settings(stepper: Stepper, groups: list[dict[str, Any]]) -> dict[str, Any]:
    settings: dict[str, Any] = {"groups": [described(g["method"]) for g in groups]}
    if stepper.basis is not None:
        settings["sketch"] = "activation"
    return settings


def _check(journal: Journal) -> None:
    if journal.snapshot_steps is not None:
        raise errors.snapshots_of_model()


class StepJournal:
    """Records the steps of an optimizer.

    Parameters
    ----------
    recorder : Recorder
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._statistics: tuple[int, str] | None = None  # the last: number of the row, and digest

    @classmethod
    def begin(
        cls, journal: Journal, stepper: Stepper, groups: list[dict[str, Any]]
    ) -> StepJournal:
        """Make the journal of an optimizer that has taken no step."""
        _check(journal)
        # The start of a model is a file that its owner has.
        plain = Journal(
            journal.path, durable=journal.durable, snapshots=False, on_error=journal.on_error
        )
        method, sampler = groups[0]["method"], stepper.random.sampler
        start, rules = _start(stepper), _settings(stepper, groups)
        return cls(Recorder.start(plain, "torch", start, method, sampler, None, None, rules))

    @classmethod
    def resume(
        cls, journal: Journal, stepper: Stepper, groups: list[dict[str, Any]], exact: bool
    ) -> StepJournal:
        """Open the journal of an optimizer's run."""
        _check(journal)
        file = JournalFile(journal._file, durable=journal.durable)
        try:
            check_driver(file.header, "torch")
            start = _start(stepper)
            if stepper.step == 0:
                check_start(file.header, start)
            elif sorted(start) != file.header["names"]:
                raise errors.wrong_journal("its parameters have other names")
            if file.header["rules"] != _settings(stepper, groups):
                raise errors.wrong_journal("its methods were others")
            sampler = stepper.random.sampler
            if file.header["sampler"]["seed"] not in (None, str(getattr(sampler, "seed", None))):
                raise errors.wrong_journal(f"its seed was {file.header['sampler']['seed']}")
            like = next(iter(start.values()), stepper.started)
            check_surroundings(file.header, like, exact=exact)
            return cls(Recorder(journal, file, file.header["run"], like, file.rows()))
        except BaseException:
            file.close()
            raise

    def left(self, stepper: Stepper) -> Iterator[Recorded]:
        """Yield what an optimizer has still to do: steps, and merges between them."""
        recorder = self._recorder
        while (row := recorder.peek()) is not None:
            recorder.take(row.kind, row.step)
            recorder.queries, recorder.began = row.queries, time.perf_counter() - row.elapsed
            if row.kind not in ("", _MERGE):
                raise errors.wrong_journal(f"it holds {row.kind!r}, which is no step")
            try:
                digests = digests_in(read_note(row))
            except ValueError as error:
                raise errors.wrong_journal(f"the note of step {row.step}: {error}") from error
            if _STATISTICS in digests:
                self._statistics = recorder.row, digests[_STATISTICS]
            if row.step >= stepper.step:
                frames = {}
                if _FRAMES in digests:
                    frames = recorder.attached(recorder.row, _FRAMES, digests[_FRAMES])
                    _check_frames(stepper, frames)
                like = next(iter(_start(stepper).values()), stepper.started)
                losses = unpack_losses(row.losses, like)
                yield Recorded(row, losses, frames, _in_place(row))

    def mark_merge(self, step: int) -> None:
        """Record that what is beside the weights is about to be brought into them."""
        recorder = self._recorder
        elapsed = time.perf_counter() - recorder.began
        queries = recorder.queries
        recorder.write(Row(step, _MERGE, queries, math.nan, math.nan, elapsed, _NO_LOSSES))

    def record(
        self,
        stepper: Stepper,
        groups: list[dict[str, Any]],
        repair: Repair,
        probes: int,
        statistics: list[Tensor],
        in_place: list[str],
    ) -> None:
        """Record a step that is about to be taken.

        Parameters
        ----------
        stepper : Stepper
        groups : list of dict
        repair : Repair
            Its losses.
        probes : int
            Number of points that make the estimate, which are the first.
        statistics : list of tensor
            Buffers of the model that its forward passes have changed.
        in_place : list of str
            Parameters that are moved in place from the next step on.
        """
        recorder = self._recorder
        attachments = _attachments(stepper, statistics)
        host = _arrays.to_host(repair.joined).tolist()
        recorder.queries += repair.made
        rates = [float(group["lr"]) for group in groups]
        note = note_of(lr=rates, in_place=in_place, **repair.note(), **noted(attachments))
        elapsed, packed = time.perf_counter() - recorder.began, pack_losses(repair.joined)
        loss = mean_of_finite(host[:probes])
        row = Row(stepper.step, "", recorder.queries, loss, rates[0], elapsed, packed, note)
        recorder.write(row, attachments)

    def restore_statistics(self, model: nn.Module | None) -> None:
        """Bring the statistics of a model to where the last step of the journal left them."""
        if self._statistics is None:
            return
        if model is None:
            raise errors.journal_needs_model()
        buffers = dict(model.named_buffers())
        found = self._recorder.attached(self._statistics[0], _STATISTICS, self._statistics[1])
        if not _are_tensors(found) or not all(
            name in buffers and buffers[name].shape == value.shape for name, value in found.items()
        ):
            raise errors.wrong_journal("its normalisation layers are not those of the model")
        with torch.no_grad():
            for name, value in found.items():
                buffers[name].copy_(value)

    def close(self) -> None:
        """Close the file."""
        self._recorder.close()


def _attachments(stepper: Stepper, statistics: list[Tensor]) -> list[Attachment]:
    found = []
    basis, model = stepper.basis, stepper.parameters.model
    if basis is not None and stepper.refreshed_at == stepper.step:
        # Of the last refresh, also where it was made by a try of this step that failed.
        found.append(attachment(_FRAMES, basis.frames(stepper.leaves)))
    if statistics:
        if model is None:
            raise errors.journal_needs_model()
        names = {id(buffer): name for name, buffer in model.named_buffers()}
        if not all(id(buffer) in names for buffer in statistics):
            raise errors.journal_needs_model()
        values = {names[id(buffer)]: buffer for buffer in statistics}
        found.append(attachment(_STATISTICS, values, replaces=True))
    return found


def _in_place(row: Row) -> list[str]:
    names = read_note(row).get("in_place", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise errors.wrong_journal("it does not say which parameters are moved in place")
    return names


def _are_tensors(tree: Any) -> bool:
    return isinstance(tree, dict) and all(isinstance(x, Tensor) for x in tree.values())


def _check_frames(stepper: Stepper, frames: Any) -> None:
    """Raise unless frames are such as the optimizer's leaves may have."""
    shapes = {leaf.name: tuple(leaf.param.shape) for leaf in stepper.leaves}
    fits = isinstance(frames, dict) and all(
        name in shapes
        and isinstance(entry, tuple)
        and len(entry) == 2
        and entry[0] in ("left", "right")
        and isinstance(entry[1], Tensor)
        and entry[1].ndim == 2
        and entry[1].shape[0] == shapes[name][0 if entry[0] == "left" else 1]
        for name, entry in frames.items()
    )
    if not fits:
        raise errors.wrong_journal("its frames are not those of the parameters")


def replay_recorded(optimizer: Any, stepper: Stepper, recorded: Recorded) -> None:
    """Let an optimizer take a recorded step: weights move as they did, the model is not called."""
    row = recorded.row
    if row.step != stepper.step:
        raise errors.wrong_journal(f"step {row.step} follows where {stepper.step} is due")
    if row.kind == _MERGE:
        optimizer.merge()
        return
    rates = read_note(row).get("lr")
    groups = optimizer.param_groups
    if not isinstance(rates, list) or [type(r) for r in rates] != [float] * len(groups):
        raise errors.wrong_journal("its learning rates are not those of the groups")
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    stepper.replay(recorded, optimizer.step)
