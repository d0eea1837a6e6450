"""The processes of a service find each other in a directory, where each has a number.

    lock      held while a process takes a number
    0.lock    held by process 0, for as long as it lives
    0.sock    where this process gives its report; nobody answers there once it has ended
    0.json    its last report, which stays when it ends

When a process ends, however that happens, the next process that starts takes over its number. A
process that finds no other one alive removes all reports: the service begins anew.

The directory of a service of which no process lives is removed a day later, by the next process of
another one: each version and each host name has a directory. A process that starts meanwhile makes
a new directory.

    A removes the directory      B starts
    holds lock, all is free
                                 opens lock, and waits for it
    removes all, and lock last
                                 holds a lock that is in no directory: begins again

All functions here may wait for the disk, and are called in a thread.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import time
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATIENCE = 5.0
"""Seconds to wait for a process that takes a number."""
_PAUSE = 0.01
_DESCRIPTORS = Path("/proc/self/fd")
_BACKLOG = 64
_ABANDONED_AFTER = 24 * 3600.0
"""Seconds after the last report of a service without processes."""
_NAME = re.compile(r"[0-9a-f]{16}")
"""The names of directories that are removed: those that `ProcessReports` gives."""


class Membership:
    """The membership of this process in its service, from its construction until `leave`.

    Args:
        directory: of the service's processes on this machine; it is created.

    Raises:
        OSError: the directory, or a socket in it, cannot be used.

    Attributes:
        number: the lowest that was free.
        listener: the socket where other processes ask for the report.
        inherited: the last report of the process that had the number before, if there is one.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._descriptor = self._lock = -1
        try:
            with _locked(directory):
                self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
                if not any(_is_taken(each) for each in directory.glob("*.lock")):
                    for left in (*directory.glob("*.json"), *directory.glob("*.sock")):
                        left.unlink()
                self.number, self._lock = self._take()
                self.inherited = self.read(self.number)
                self.listener = self._listen()
        except BaseException:
            self._close()
            raise
        _remove_abandoned(directory.parent)

    def _take(self) -> tuple[int, int]:
        for number in count():
            lock = _try_lock(self._directory / f"{number}.lock")
            if lock is not None:
                return number, lock
        raise AssertionError

    def _listen(self) -> socket.socket:
        (self._directory / f"{self.number}.sock").unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(self.address(self.number))
            listener.listen(_BACKLOG)
            listener.setblocking(False)  # noqa: FBT003 - no other way to give it
        except BaseException:
            listener.close()
            raise
        return listener

    def address(self, number: int) -> str:
        """Return the address of a process's socket. The path of a socket must be short."""
        name = f"{number}.sock"
        if _DESCRIPTORS.exists():
            return f"{_DESCRIPTORS}/{self._descriptor}/{name}"
        return str(self._directory / name)

    def others(self) -> list[int]:
        """Return the numbers of other processes that have left a report, dead or alive."""
        numbers = {int(each.stem) for each in self._directory.glob("*.json") if each.stem.isdigit()}
        return sorted(numbers - {self.number})

    def read(self, number: int) -> bytes | None:
        """Return the last report of a process, or None if there is none."""
        try:
            return (self._directory / f"{number}.json").read_bytes()
        except FileNotFoundError:
            return None

    def write(self, report: bytes) -> None:
        """Replace the report of this process, at once or not at all."""
        new = self._directory / f"{self.number}.new"
        new.write_bytes(report)
        new.replace(self._directory / f"{self.number}.json")

    def leave(self) -> None:
        """Leave the number to the next process. The report stays."""
        with suppress(OSError):
            (self._directory / f"{self.number}.sock").unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        for each in (self._lock, self._descriptor):
            if each >= 0:
                os.close(each)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory, which is created, while the block runs."""
    give_up_at = time.monotonic() + _PATIENCE
    while True:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # the directory was removed again
            lock = _try_lock(directory / "lock")
            if lock is not None:
                break
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"{directory}/lock is held by a process that does not go on")
        time.sleep(_PAUSE)
    try:
        yield
    finally:
        os.close(lock)


def _remove_abandoned(parent: Path) -> None:
    """Remove the directories of services of which no process has lived for a day."""
    with suppress(OSError):
        for directory in parent.iterdir():
            if _NAME.fullmatch(directory.name) is None:
                continue
            with suppress(OSError):  # such as that of another user, or one that is in use again
                # Each report that is written changes this time.
                if time.time() - directory.stat().st_mtime > _ABANDONED_AFTER:
                    _remove(directory)


def _remove(directory: Path) -> None:
    """Remove a directory if no process lives or starts there."""
    lock = _try_lock(directory / "lock")
    if lock is None:
        return
    try:
        if not any(_is_taken(each) for each in directory.glob("*.lock")):
            for each in directory.iterdir():
                if each.name != "lock":
                    each.unlink()
            (directory / "lock").unlink()  # last: from now on another process may start there
            directory.rmdir()
    finally:
        os.close(lock)


def _try_lock(path: Path) -> int | None:
    """Return the descriptor that holds a lock until it is closed.

    None if another process holds it, or has removed it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink > 0:
            return descriptor
    except BlockingIOError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _is_taken(lock: Path) -> bool:
    if not lock.stem.isdigit():
        return False  # the lock of the directory, which the caller holds
    descriptor = _try_lock(lock)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None
