"""Servers on a TCP port of the loopback interface, which keep nothing on disk."""

from __future__ import annotations

import random
import socket
import tempfile
from abc import abstractmethod
from pathlib import Path

from app.devservers.process import ServerFailed, ServerProcess, Started

LOOPBACK = "127.0.0.1"

_chosen = random.SystemRandom()  # tests that run at the same time may have the same seed


def free_port() -> int:
    """Return a TCP port of the loopback interface that nothing is bound to.

    The port is not reserved: another process may take it before the caller does. That is unlikely,
    because no system gives ports of this range to outgoing connections.

    Raises:
        OSError: a hundred ports were taken.
    """
    for last in reversed(range(100)):
        port = _chosen.randrange(20_000, 32_000)
        with socket.socket() as listener:
            try:
                listener.bind((LOOPBACK, port))
            except OSError:
                if not last:
                    raise
            else:
                return port
    raise AssertionError


class PortServer(Started):
    """One server on a port of its own.

    Args:
        process: The process of the server.
        port: The TCP port to listen on; ``None`` takes a free one, and another one if another
            process takes the first before the server binds it.
    """

    def __init__(self, process: ServerProcess, port: int | None) -> None:
        self._process = process
        self._port = free_port() if port is None else port
        self._port_is_known = port is not None
        self._own: tempfile.TemporaryDirectory[str] | None = None

    @property
    def port(self) -> int:
        """Return the TCP port; it is fixed once the first `start` has returned."""
        return self._port

    @property
    def pid(self) -> int:
        """The process id of the running server.

        Raises:
            ServerFailed: If it is not running.
        """
        return self._process.pid

    def start(self) -> None:
        """Start the server, and return once it accepts connections.

        After it was stopped or killed it starts on the same port, and empty.

        Raises:
            ServerFailed: If it is running, ends at once, or is not ready in time. Nothing new
                runs then.
        """
        if self._own is None:
            self._own = tempfile.TemporaryDirectory(prefix="devserver-")
        try:
            self._launch(Path(self._own.name))
        except ServerFailed as failure:
            # Another process may have bound the port since it was found free. Twice in a row is
            # no accident.
            if self._port_is_known or "Address already in use" not in str(failure):
                raise
            self._port = free_port()
            self._launch(Path(self._own.name))
        self._port_is_known = True

    def kill(self) -> None:
        """Kill the server, as a crash would. Does nothing if it is not running."""
        self._process.end()

    def pause(self) -> None:
        """Freeze the server: its port accepts connections, but it sends no replies.

        Returns once it is frozen.

        Raises:
            ServerFailed: If it is not running.
        """
        self._process.freeze()

    def resume(self) -> None:
        """Let a paused server continue, with the commands that have queued up.

        Raises:
            ServerFailed: If it is not running.
        """
        self._process.thaw()

    def close(self) -> None:
        """Kill the server and remove the directory made for it. May be called again."""
        self.kill()
        if self._own is not None:
            self._own.cleanup()
            self._own = None

    @abstractmethod
    def _launch(self, own: Path) -> None:
        """Start the process in the directory `own`."""
