"""The journal of the Torch optimizer: losses and learning rates, from which weights follow."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from zomopi_core import _arrays
from zomopi_core._header import check_driver, check_start, check_surroundings
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
from ._torch_groups import Carrier
from ._torch_state import described


def _start(optimizer: Any) -> dict[str, Tensor]:
    """Return the weights by name; what an int8 layer learns beside its weight begins at zero."""
    return {
        leaf.name: leaf.param.detach()
        for leaf in optimizer._leaves
        if not isinstance(leaf.param, Carrier)
    }


def _settings(optimizer: Any) -> dict[str, Any]:
    return {"groups": [described(g["method"]) for g in optimizer.param_groups]}


def check_journal(journal: Journal, optimizer: Any) -> None:
    """Raise where the weights would not follow from losses, or an option has no use."""
    if journal.snapshot_steps is not None:
        raise errors.snapshots_of_model()
    if optimizer._basis is not None:
        raise errors.journal_needs_inputs("sketch='activation' takes its subspaces from them")
    model = optimizer.model
    for module in () if model is None else model.modules():
        if isinstance(module, _NormBase) and module.track_running_stats and module.training:
            raise errors.journal_needs_inputs(f"{type(module).__name__} keeps statistics of them")


class StepJournal:
    """Records the steps of an optimizer.

    Parameters
    ----------
    recorder : Recorder
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    @classmethod
    def begin(cls, journal: Journal, optimizer: Any) -> StepJournal:
        """Make the journal of an optimizer that has taken no step."""
        check_journal(journal, optimizer)
        # The start of a model is a file that its owner has.
        plain = Journal(
            journal.path, durable=journal.durable, snapshots=False, on_error=journal.on_error
        )
        method, sampler = optimizer.param_groups[0]["method"], optimizer._random.sampler
        start, rules = _start(optimizer), _settings(optimizer)
        return cls(Recorder.start(plain, "torch", start, method, sampler, None, None, rules))

    @classmethod
    def resume(
        cls, journal: Journal, optimizer: Any, exact: bool
    ) -> tuple[StepJournal, Iterator[Row]]:
        """Open the journal of an optimizer's run; return the rows that it has still to take."""
        check_journal(journal, optimizer)
        file = JournalFile(journal._file, durable=journal.durable)
        try:
            check_driver(file.header, "torch")
            start = _start(optimizer)
            if optimizer._step == 0:
                check_start(file.header, start)
            elif sorted(start) != file.header["names"]:
                raise errors.wrong_journal("its parameters have other names")
            if file.header["rules"] != _settings(optimizer):
                raise errors.wrong_journal("its methods were others")
            sampler = optimizer._random.sampler
            if file.header["sampler"]["seed"] not in (None, str(getattr(sampler, "seed", None))):
                raise errors.wrong_journal(f"its seed was {file.header['sampler']['seed']}")
            like = next(iter(start.values()), optimizer._started)
            check_surroundings(file.header, like, exact=exact)
            recorder = Recorder(journal, file, file.header["run"], like, file.rows())
        except BaseException:
            file.close()
            raise
        return cls(recorder), cls._left(recorder, optimizer)

    @staticmethod
    def _left(recorder: Recorder, optimizer: Any) -> Iterator[Row]:
        while (row := recorder.peek()) is not None:
            recorder.take("", row.step)
            recorder.queries, recorder.began = row.queries, time.perf_counter() - row.elapsed
            if row.step >= optimizer._step:
                yield row

    def record(self, optimizer: Any, losses: Tensor, probes: int) -> None:
        """Record a step that is about to be taken; the first losses are those of the probes."""
        recorder = self._recorder
        host = _arrays.to_host(losses).tolist()
        recorder.queries += len(host)
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        failed = sum(not math.isfinite(x) for x in host)
        note = note_of(lr=rates, failed=failed)
        elapsed, packed = time.perf_counter() - recorder.began, pack_losses(losses)
        loss = mean_of_finite(host[:probes])
        recorder.write(
            Row(optimizer._step, "", recorder.queries, loss, rates[0], elapsed, packed, note)
        )

    def close(self) -> None:
        """Close the file."""
        self._recorder.close()


def replay_step(optimizer: Any, row: Row) -> None:
    """Let an optimizer take a recorded step: weights move as they did, the model is not called."""
    if row.step != optimizer._step:
        raise errors.wrong_journal(f"step {row.step} follows where {optimizer._step} is due")
    rates = read_note(row).get("lr")
    groups = optimizer.param_groups
    if not isinstance(rates, list) or [type(r) for r in rates] != [float] * len(groups):
        raise errors.wrong_journal("its learning rates are not those of the groups")
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    like = next(iter(_start(optimizer).values()), optimizer._started)
    optimizer._take_recorded(unpack_losses(row.losses, like))
