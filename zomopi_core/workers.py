"""Evaluations in other processes: workers of our own that may die or hang, or any executor.

A worker of our own may hold a copy of the optimizer. It is then sent the losses of each step, a
few bytes, from which it takes the step itself, and a point as its number: nothing of the size of
the parameters travels. The points are the same to the bit, as all draws are functions of keys.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import numbers
import pickle
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from typing import Any

from . import _arrays, errors
from ._arrays import Array
from ._checks import check_count
from ._journal_rows import pack_losses, unpack_loss
from .evaluation import Parallel
from .losses import join_losses, scalar_loss
from .method import leaves_of

# Bytes of the parameters from which a worker holds them.
HELD_BYTES = 2**18
# A process that takes longer to start, beside the time of an evaluation, hangs.
_START_SECONDS = 60.0


def check_workers(workers: Any, stacked: bool, shared: bool, timeout: float | None) -> None:
    """Raise where points cannot be handed out as `workers` and `timeout` need it."""
    if workers is not None and stacked:
        raise errors.stack_in_workers()
    if isinstance(workers, numbers.Integral):
        check_count("workers", workers)
        return
    if workers is not None and not callable(getattr(workers, "submit", None)):
        raise errors.wrong_workers(workers)
    if shared and workers is not None:
        raise errors.shared_memory_in_workers()
    if shared and timeout is not None:
        raise errors.timeout_of_shared_memory()


def parallel_of(
    workers: Any, call: Callable[..., Any], optimizer: Any, timeout: float | None
) -> Parallel | None:
    """Return what evaluates in parallel for `workers=`; None for one by one."""
    if workers is None:
        return None
    if isinstance(workers, numbers.Integral):
        return WorkerPool(int(workers), call, optimizer, timeout)
    return Submitted(workers, call, leaves_of(optimizer.x)[0], timeout)


def _answer(call: Callable[..., Any], point: Any, key: int | None) -> tuple[bytes | None, Any]:
    """Return a packed loss, or the exception in its place."""
    try:
        loss = scalar_loss(call(point, key))
        return pack_losses(join_losses([loss])), None
    except Exception as error:
        return None, _sendable(error)


def _sendable(error: Exception) -> Exception:
    """Return an exception that survives the way to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class Submitted:
    """Evaluates through an executor of the user's, which gets points as arrays."""

    def __init__(
        self, executor: Executor, call: Callable[..., Any], like: Array, timeout: float | None
    ) -> None:
        self._executor, self._call, self._like = executor, call, like
        self._timeout = timeout
        self._pending: dict[Future[Any], int] = {}
        self._heard = 0.0  # when the last evaluation began to wait, or ended

    def start(self, number: int, point: Any, index: int | None, key: int | None) -> None:
        """Submit a point."""
        future = self._executor.submit(_answer, self._call, point, key)
        self._pending[future] = number
        self._heard = time.monotonic()

    def finished(self) -> list[tuple[int, Any, BaseException | None]]:
        """Wait for evaluations to end, or for their time to be up.

        When an evaluation begins only its executor knows, since points may wait for others. Where
        none has ended for as long as one may take, those that are under way have taken longer.
        """
        left = None
        if self._timeout is not None:
            left = max(0.0, self._heard + self._timeout - time.monotonic())
        done = _first_done(self._pending, left)
        self._heard = time.monotonic()
        if not done:
            # Not all executors tell what they are at.
            running = [f for f in self._pending if getattr(f, "running", bool)()]
            late = errors.evaluation_timeout(self._timeout or 0.0)
            return [(self._forget(f), None, late) for f in running or list(self._pending)]
        ended: list[tuple[int, Any, BaseException | None]] = []
        for future in done:
            number = self._pending.pop(future)
            try:
                packed, error = future.result()
            except Exception as lost:  # the worker died, or what it was sent cannot be sent
                packed, error = None, lost
            loss = None if packed is None else unpack_loss(packed, self._like)
            ended.append((number, loss, error))
        return ended

    def _forget(self, future: Future[Any]) -> int:
        future.cancel()
        return self._pending.pop(future)

    def discard(self) -> None:
        """Cancel what has not begun, and look at nothing more."""
        for future in self._pending:
            future.cancel()
        self._pending = {}

    def advance(self, losses: Array) -> None:
        """Do nothing: points are sent as they are."""

    def renew(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Leave the executor to its owner."""
        self.discard()


def _first_done(pending: Any, timeout: float | None) -> list[Future[Any]]:
    """Wait for the first future, also of an executor whose futures are of its own kind."""
    if all(isinstance(future, Future) for future in pending):
        return list(wait(pending, timeout, FIRST_COMPLETED).done)
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = 1e-4
    while True:
        done = [future for future in pending if future.done()]
        if done or (deadline is not None and time.monotonic() >= deadline):
            return done
        time.sleep(pause)
        pause = min(2.0 * pause, 0.01)


class _Worker:
    """A process, the way to it, and what it does."""

    def __init__(self, call: Callable[..., Any], replica: bytes | None) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context().Process(
            target=_work, args=(theirs, self.connection, call), daemon=True
        )
        try:
            self.process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise errors.not_for_workers("fun", error) from error
        theirs.close()
        self.ready = False  # whether it has said that it is there
        self.number: int | None = None  # of the evaluation that it makes
        self.began = 0.0
        if replica is not None:
            self.connection.send_bytes(replica)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class WorkerPool:
    """Processes of our own: one that dies or hangs is replaced, its point goes to another.

    Parameters
    ----------
    count : int
    call : callable
        Takes a point and a key.
    optimizer : Optimizer
        Copied to the workers where its parameters are large.
    timeout : float or None
    """

    def __init__(
        self, count: int, call: Callable[..., Any], optimizer: Any, timeout: float | None
    ) -> None:
        self._count, self._call, self._optimizer = count, call, optimizer
        self._timeout = timeout
        arrays = leaves_of(optimizer.x)
        self._like = arrays[0]
        bytes_held = sum(_arrays.size(x) * 8 for x in arrays)
        self.holds = bytes_held >= HELD_BYTES and _can_be_sent(optimizer)
        self._workers: list[_Worker] = []
        self._waiting: list[tuple[int, Any, int | None, int | None]] = []
        self._under_way: dict[int, tuple[Any, int | None, int | None]] = {}
        self._deaths: dict[int, int] = {}

    def start(self, number: int, point: Any, index: int | None, key: int | None) -> None:
        """Hand a point to a free worker, or keep it until there is one."""
        self._waiting.append((number, point, index, key))
        self._assign()

    def _assign(self) -> None:
        while self._waiting:
            worker = next((w for w in self._workers if w.number is None), None)
            if worker is None:
                if len(self._workers) >= self._count:
                    return
                worker = _Worker(self._call, self._replica() if self.holds else None)
                self._workers.append(worker)
            number, point, index, key = self._waiting.pop(0)
            held = self.holds and index is not None
            task = ("held", index, key) if held else ("dense", point, key)
            try:
                worker.connection.send(task)
            except (BrokenPipeError, ConnectionError):
                self._waiting.insert(0, (number, point, index, key))
                self._bury(worker)
                continue
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise errors.not_for_workers("a point", error) from error
            worker.number, worker.began = number, time.monotonic()
            self._under_way[number] = point, index, key

    def _replica(self) -> bytes:
        return pickle.dumps(("optimizer", self._optimizer))

    def finished(self) -> list[tuple[int, Any, BaseException | None]]:
        """Wait for evaluations to end, for workers to die, or for their time to be up."""
        busy = [w for w in self._workers if w.number is not None]
        left = None
        if self._timeout is not None:
            left = max(0.0, min(map(self._deadline, busy)) - time.monotonic())
        ready = wait_for([w.connection for w in busy], left)
        ended: list[tuple[int, Any, BaseException | None]] = []
        for worker in busy:
            if worker.connection in ready:
                ended += self._heard(worker)
            elif self._timeout is not None and time.monotonic() >= self._deadline(worker):
                number = self._released(worker)
                self._bury(worker)
                ended.append((number, None, errors.evaluation_timeout(self._timeout)))
        self._assign()
        return ended

    def _deadline(self, worker: _Worker) -> float:
        """Return when the time of a worker is up; to start is no part of an evaluation."""
        start = 0.0 if worker.ready else _START_SECONDS
        return worker.began + start + (self._timeout or 0.0)

    def _heard(self, worker: _Worker) -> list[tuple[int, Any, BaseException | None]]:
        try:
            packed, error = worker.connection.recv()
        except (EOFError, ConnectionError, OSError):
            return self._died(worker)
        if not worker.ready:
            worker.ready, worker.began = True, time.monotonic()
            return []
        number = self._released(worker)
        self._deaths.pop(number, None)
        return [(number, None if packed is None else unpack_loss(packed, self._like), error)]

    def _died(self, worker: _Worker) -> list[tuple[int, Any, BaseException | None]]:
        """Replace a worker that died; its point goes to another one, once."""
        number = worker.number
        assert number is not None
        task = self._under_way[number]
        self._released(worker)
        self._bury(worker)
        code = worker.process.exitcode
        if not worker.ready and code == 1:
            # An exception that was raised before it could say a word, whatever the point.
            raise errors.worker_not_started()
        self._deaths[number] = self._deaths.get(number, 0) + 1
        if self._deaths[number] > 1:
            del self._deaths[number]
            return [(number, None, errors.worker_died(code))]
        self._waiting.insert(0, (number, *task))
        return []

    def _released(self, worker: _Worker) -> int:
        number, worker.number = worker.number, None
        assert number is not None
        self._under_way.pop(number, None)
        return number

    def _bury(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.end()

    def discard(self) -> None:
        """End the workers that are busy, and forget what waits."""
        for worker in [w for w in self._workers if w.number is not None]:
            self._bury(worker)
        self._waiting, self._under_way, self._deaths = [], {}, {}

    def advance(self, losses: Array) -> None:
        """Let the workers that hold the parameters take the step that the optimizer took."""
        if self.holds:
            self._tell(pickle.dumps(("losses", losses, self._optimizer.nit)))

    def renew(self) -> None:
        """Send the workers the optimizer as it is, after a change that was no step."""
        if self.holds and self._workers:
            self._tell(self._replica())

    def _tell(self, message: bytes) -> None:
        for worker in list(self._workers):
            try:
                worker.connection.send_bytes(message)
            except (BrokenPipeError, ConnectionError):
                self._bury(worker)

    def close(self) -> None:
        """End all workers."""
        for worker in list(self._workers):
            self._bury(worker)
        self._waiting = []


def _can_be_sent(optimizer: Any) -> bool:
    try:
        pickle.dumps((optimizer.method, optimizer._project, optimizer.state.random))
    except Exception:
        return False
    return True


def _work(connection: Connection, parents: Connection, call: Callable[..., Any]) -> None:
    """Answer until the parent is gone."""
    with contextlib.suppress(OSError):
        parents.close()  # a fork has both ends
    optimizer: Any = None
    with contextlib.suppress(EOFError, KeyboardInterrupt, ConnectionError):
        connection.send((None, None))  # it is there
        while True:
            kind, *task = connection.recv()
            if kind == "optimizer":
                (optimizer,) = task
            elif kind == "losses":
                losses, step = task
                if optimizer.nit < step:
                    optimizer.follow(losses)
            elif kind == "held":
                connection.send(_answer(call, optimizer.ask()[task[0]], task[1]))
            else:
                connection.send(_answer(call, *task))
