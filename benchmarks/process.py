"""Processes that are ended in order: a child, by leaving a `with` block; a command, by SIGTERM."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, Self

import psutil

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_STOP = 15.0  # seconds to end when asked to, before it is killed
_LINES = 20
_ROOT = Path(__file__).parents[1]


class Child(Protocol):
    """What is used of `subprocess.Popen`."""

    @property
    def pid(self) -> int:
        """The process id."""

    def poll(self) -> int | None:
        """Return the exit status; None while the process runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit status.

        Raises:
            subprocess.TimeoutExpired: it has not ended in so many seconds.
        """

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL."""


class Process:
    """A program in its own directory, which is removed afterwards.

    Args:
        command: the program and its arguments.
        environment: all of its environment variables.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = command
        # The project's programs are not installed, but for the library.
        path = [str(_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
        self._environment = {**environment, "PYTHONPATH": os.pathsep.join(path)}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jobcache-")))
            self._log = place / "log"
            self._child = self._start(place, stack.enter_context(self._log.open("wb")))
            stack.callback(self._end)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._child.pid

    def descendants(self) -> list[psutil.Process]:
        """Return the processes that it has started, and those that they have started."""
        try:
            found: list[psutil.Process] = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return found

    @property
    def alive(self) -> bool:
        """Return False once it has ended by itself."""
        return self._child.poll() is None

    def wait(self, seconds: float) -> int:
        """Wait until the process has ended by itself, and return its exit status.

        Raises:
            subprocess.TimeoutExpired: it has not, in so many seconds.
        """
        return self._child.wait(seconds)

    def log_tail(self) -> str:
        """Return the last lines that the process has written."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return "\n".join(lines[-_LINES:])

    def _start(self, directory: Path, output: IO[bytes]) -> Child:
        return subprocess.Popen(  # noqa: S603 - the project's own programs
            self._command,
            cwd=directory,  # where there is no .env
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,  # Ctrl-C is for the owner, who then ends it in order
        )

    def _end(self) -> None:
        self._child.terminate()
        try:
            self._child.wait(_STOP)
        except subprocess.TimeoutExpired:
            # Killed, it cannot end its own children, such as the workers of a service.
            for process in (*self.descendants(), self._child):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._child.wait()


def exit_at_sigterm() -> None:
    """Let SIGTERM end this command in order, with status 143: no process and no folder is left."""
    signal.signal(signal.SIGTERM, _exit)


def _exit(number: int, _: object) -> None:
    sys.exit(128 + number)
