"""An ASGI application served by one uvicorn worker, in its own process."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from app.devservers import free_port
from benchmarks.process import Process
from benchmarks.service import HOST

if TYPE_CHECKING:
    from collections.abc import Mapping

_START = 120.0  # seconds to listen, beside twenty others that start
_PAUSE = 0.02  # seconds between two looks


class Uvicorn:
    """One worker; entering starts it, leaving stops it.

    Args:
        command: starts it.
        port: of loopback, where it listens.
        environment: further environment variables.
    """

    def __init__(self, command: list[str], port: int, environment: Mapping[str, str]) -> None:
        self.port = port
        self._process = Process(command, {**os.environ, **environment})

    @classmethod
    def factory(cls, factory: str, environment: Mapping[str, str]) -> Self:
        """Return a worker that serves the application of a factory, as `module:function`."""
        port = free_port()
        command = [
            *(sys.executable, "-m", "uvicorn", "--factory", factory),
            *("--app-dir", str(Path(__file__).parents[1]), "--host", HOST),
            *("--port", str(port), "--no-access-log", "--log-level", "warning"),
        ]
        return cls(command, port, environment)

    def __enter__(self) -> Self:
        self._process.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.__exit__()

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    def wait_until_it_listens(self) -> None:
        """Return once it accepts connections."""
        wait_for_listener(self.port, self._process)


def wait_for_listener(port: int, process: Process) -> None:
    """Return once a process accepts connections on a port of loopback."""
    deadline = time.monotonic() + _START
    while not _listens(port):
        assert process.alive, process.log_tail()
        assert time.monotonic() < deadline, f"nothing listens on {port}: {process.log_tail()}"
        time.sleep(_PAUSE)


def _listens(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True
