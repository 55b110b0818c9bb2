"""A lock on a file name that ends with the process that holds it, however that ends."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path

# Locks of the system are held by processes: within one, this set keeps writers apart.
_HELD: set[str] = set()
_GUARD = threading.Lock()


class FileLock:
    """An exclusive lock, taken at once or not at all.

    It is a record lock on a file of its own: the system drops it when the process ends, also by
    SIGKILL, and a forked child does not inherit it. The file is removed when the lock is released,
    and one that a dead process left behind locks nothing.

    Parameters
    ----------
    path : Path
        The file that stands for the lock.

    Raises
    ------
    BlockingIOError
        If somebody else holds the lock.
    """

    def __init__(self, path: Path) -> None:
        self._name = os.path.realpath(path)
        self._owner = os.getpid()
        with _GUARD:
            if self._name in _HELD:
                raise BlockingIOError(f"{path} is locked by this process")
            _HELD.add(self._name)
        try:
            self._file = self._locked()
        except BaseException:
            _HELD.discard(self._name)
            raise

    def _locked(self) -> int:
        while True:
            file = os.open(self._name, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
            try:
                _lock(file)
                # Whoever held it before may have removed the file between the two calls.
                if _is_same(file, self._name):
                    return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)

    def release(self) -> None:
        """Let go of the lock; a forked child that inherited the object does nothing."""
        if self._file < 0 or self._owner != os.getpid():
            return
        file, self._file = self._file, -1
        with contextlib.suppress(OSError):
            os.unlink(self._name)
        os.close(file)
        _HELD.discard(self._name)


def _is_same(file: int, name: str) -> bool:
    try:
        there = os.stat(name)
    except FileNotFoundError:
        return False
    here = os.fstat(file)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _lock(file: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(str(error)) from error
        return
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError as error:  # what some systems say of a lock that is held
        raise BlockingIOError(str(error)) from error
