"""Child processes: servers that are started and stopped, and commands that are run."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app.devservers.account import Account

# Limits in seconds. PostgreSQL may recover from a crash before it is ready.
_START = 60.0
_STOP = 5.0
_POLL = 0.005

_LOG_LINES = 20
_PR_SET_PDEATHSIG = 1


class ServerFailed(RuntimeError):  # noqa: N818 - the name says what is the matter
    """A server, or one of its commands, failed.

    The message ends with the last output of the program, if there is any.
    """


class Started(ABC):
    """A context manager that starts servers, and closes them even if only some have started."""

    @abstractmethod
    def start(self) -> None:
        """Start, and return once it is ready."""

    @abstractmethod
    def close(self) -> None:
        """Stop it and clean up. May be called again, and after a failed `start`."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ServerProcess:
    """A server as a child process; once it has ended, it may be started again.

    Args:
        name: Its name in messages.
        when_orphaned: The signal that it gets when its owner dies.
        ready: The text, in lower case, that its log contains once it accepts connections.
    """

    def __init__(
        self,
        name: str,
        *,
        when_orphaned: signal.Signals,
        ready: bytes = b"ready to accept connections",
    ) -> None:
        self._name = name
        self._ready = ready
        self._when_orphaned = when_orphaned
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = False

    @property
    def pid(self) -> int:
        """Return the process id; raise `ServerFailed` if it is not running."""
        return self._running().pid

    def start(
        self, command: Sequence[str], *, directory: Path, account: Account | None = None
    ) -> None:
        """Run `command` in `directory`, and return once its log says that it takes connections.

        Raises:
            ServerFailed: If it is running, ends at once, or is not ready in time. No second
                process runs then.
        """
        if self._alive() is not None:
            raise ServerFailed(f"{self._name} is running already.")
        log = directory / "log"
        # The output goes into a file, because a full pipe would block the server. The server has
        # its own process group, because Ctrl-C is meant for the owner, which may need the server
        # while it shuts down.
        try:
            with log.open("wb") as output:
                self._process = subprocess.Popen(  # noqa: S603 - the programs are the ones found
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=directory,
                    env=_environment(),
                    process_group=0,
                    preexec_fn=_ask_to_end(self._when_orphaned),  # noqa: PLW1509 - see there
                    **_identity(account),
                )
        except OSError as error:
            raise ServerFailed(f"{command[0]} cannot be run: {error}") from error
        self._frozen = False
        try:
            self._wait_until_ready(self._process, log)
        except BaseException:
            self.end()
            raise

    def freeze(self) -> None:
        """Freeze the process, and return once it is frozen; raise `ServerFailed` if it ended."""
        process = self._running()
        if self._frozen:
            return  # there is no second stop to wait for
        # The signal takes effect with a delay: without the wait, a command sent after it
        # may still be answered.
        process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            raise ServerFailed(f"{self._name} ended instead of being paused.")
        self._frozen = True

    def thaw(self) -> None:
        """Let a frozen process continue; raise `ServerFailed` if it is not running."""
        self._running().send_signal(signal.SIGCONT)
        self._frozen = False

    def end(self, *polite: signal.Signals) -> None:
        """Send each signal in turn and wait a while, then kill; return when there is no process.

        Harmless if it is not running.
        """
        process = self._alive()
        if process is None:
            return
        for number in polite:
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)  # a frozen process sees no signal before this one
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP)
                return
        process.kill()
        process.wait()

    def _alive(self) -> subprocess.Popen[bytes] | None:
        return None if self._process is None or self._process.poll() is not None else self._process

    def _running(self) -> subprocess.Popen[bytes]:
        process = self._alive()
        if process is None:
            raise ServerFailed(f"{self._name} is not running.")
        return process

    def _wait_until_ready(self, process: subprocess.Popen[bytes], log: Path) -> None:
        # Redis, Valkey and PostgreSQL log the same text. A connection would prove less:
        # another program may have taken the port meanwhile.
        deadline = time.monotonic() + _START
        while self._ready not in log.read_bytes().lower():
            status = process.poll()
            if status is not None:
                raise ServerFailed(
                    f"{self._name} ended with status {status} while starting:\n{_tail(log)}"
                )
            if time.monotonic() > deadline:
                raise ServerFailed(
                    f"{self._name} was not ready after {_START:g} seconds:\n{_tail(log)}"
                )
            time.sleep(_POLL)


def run(
    command: Sequence[str], *, directory: Path | None = None, account: Account | None = None
) -> str:
    """Run a command to its end and return its output; raise `ServerFailed` if it fails."""
    try:
        done = subprocess.run(  # noqa: S603 - the programs are the ones found
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=_environment(),
            **_identity(account),
        )
    except OSError as error:
        raise ServerFailed(f"{command[0]} cannot be run: {error}") from error
    said: str = done.stdout.decode(errors="replace").strip()
    if done.returncode != 0:
        raise ServerFailed(f"{Path(command[0]).name} ended with status {done.returncode}:\n{said}")
    return said


def _ask_to_end(number: signal.Signals) -> Callable[[], None] | None:
    """Return a function that makes a new child get a signal when its owner dies; Linux only.

    Without it, only a third process could react to a SIGKILL of the owner. The signal
    is tied to the thread that starts the child, not to the process, so only the main thread, which
    ends last, asks for it. The library is looked up before the fork: after it, another thread's
    locks may be held forever, and nothing may be imported any more.
    """
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return None
    prctl = ctypes.CDLL(None).prctl
    owner = os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number))
        if os.getppid() != owner:  # died between the fork and the line above
            os._exit(1)

    return ask


def _environment() -> dict[str, str]:
    """Return the environment without variables that redirect or translate PostgreSQL."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C"}


def _identity(account: Account | None) -> dict[str, Any]:
    return {} if account is None else account._asdict()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").strip().splitlines()[-_LOG_LINES:])
