"""What surrounds the evaluations of a step: equal randomness, statistics, interruptions."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_pre_hook

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Replay:
    """Lets several forward passes see what one of them would: generators and running statistics.

    Each pass begins with the generators and the statistics of normalisation layers where they were
    when the replay began, and the last one leaves behind the state that one pass leaves.

    Parameters
    ----------
    devices : set of torch.device
        Devices whose default generators the passes may use, beside the CPU's.
    generators : sequence
        The user's own generators, of Torch or NumPy.
    modules : iterable of torch.nn.Module, or None
        Where normalisation layers are looked for; None looks at what the first pass calls.
    """

    def __init__(
        self,
        devices: Iterable[torch.device],
        generators: Sequence[Any],
        modules: Iterable[torch.nn.Module] | None,
    ) -> None:
        self._python = random.getstate()
        self._numpy = np.random.get_state()  # noqa: NPY002 - the user's, which is put back
        self._cpu = torch.get_rng_state()
        self._cuda = [(d, torch.cuda.get_rng_state(d)) for d in devices if d.type == "cuda"]
        self._own = [(g, _state_of(g)) for g in generators]
        self._saved: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._known: set[int] = set()
        self._watch = modules is None
        self._passes = 0
        for module in modules or ():
            self._save(module)

    def _save(self, module: torch.nn.Module) -> None:
        if isinstance(module, _NormBase) and module.training and module.track_running_stats:
            buffers = [getattr(module, name) for name in _STATISTICS]
            self._saved += [(b, b.clone()) for b in buffers if b is not None]

    def _see(self, module: torch.nn.Module, inputs: Any) -> None:
        for inner in () if id(module) in self._known else module.modules():
            if id(inner) not in self._known:
                self._known.add(id(inner))
                self._save(inner)

    @contextlib.contextmanager
    def forward_pass(self) -> Iterator[None]:
        """Surround a pass. In the first, normalisation layers are found as they are called."""
        if self._passes:
            self.rewind_generators()
            for buffer, value in self._saved:
                buffer.copy_(value)
        self._passes += 1
        if not self._watch or self._passes > 1:
            yield
            return
        handle = register_module_forward_pre_hook(self._see)
        try:
            with warnings.catch_warnings():
                # It fires once more for a compiled model, which changes nothing here.
                warnings.filterwarnings("ignore", message=r"Using `torch\.compile\(module\)` when")
                yield
        finally:
            handle.remove()

    @property
    def statistics(self) -> list[torch.Tensor]:
        """What the normalisation layers that are trained keep of their inputs."""
        return [buffer for buffer, _ in self._saved]

    def rewind_generators(self) -> None:
        """Put the generators back, and leave the statistics."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002
        torch.set_rng_state(self._cpu)
        for device, state in self._cuda:
            torch.cuda.set_rng_state(state, device)
        for generator, state in self._own:
            _set_state(generator, state)


def _state_of(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    raise TypeError(
        f"generators must hold torch.Generator or numpy.random.Generator objects, got "
        f"{type(generator).__name__}"
    )


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off Ctrl-C to the end of the block: weights and the record of where they are agree.

    Only the main thread is interrupted, and only there can this be changed.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda *which: came.append(which))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if came:
            signal.default_int_handler(*came[0])


@contextlib.contextmanager
def own_arithmetic(kinds: Iterable[str]) -> Iterator[None]:
    """Compute without a graph and without the autocast that may surround the step."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for kind in kinds:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def forget_casts(kinds: Iterable[str]) -> None:
    """Drop the 16-bit copies of weights that a surrounding autocast keeps: they have moved."""
    if any(torch.is_autocast_enabled(kind) for kind in kinds):
        torch.clear_autocast_cache()
