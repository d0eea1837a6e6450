"""A memcached server for development and tests."""

from __future__ import annotations

import signal
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from app.devservers.account import account_for
from app.devservers.process import ServerFailed, ServerProcess, Started
from app.devservers.programs import memcached_program
from app.devservers.redis import LOOPBACK, free_port

if TYPE_CHECKING:
    from collections.abc import Sequence

_PATIENCE = 5.0  # seconds
_LARGEST_ITEM = "4m"  # the default of 1m is less than the largest body of the conformance suite


class MemcachedServer(Started):
    """One memcached server, as a context manager.

    Args:
        port: The TCP port to listen on; ``None`` takes a free one, and another one if somebody
            else takes that before the server does.
        arguments: Further arguments of memcached, which win over the ones set here.

    Raises:
        ServerMissing: If memcached is not installed.
    """

    def __init__(self, *, port: int | None = None, arguments: Sequence[str] = ()) -> None:
        self._program = memcached_program()
        self._arguments = tuple(arguments)
        self._port = free_port() if port is None else port
        self._port_is_known = port is not None
        self._account = account_for(None)  # memcached refuses to run as root
        self._process = ServerProcess(
            "memcached", when_orphaned=signal.SIGKILL, ready=b"server listening"
        )
        self._own: tempfile.TemporaryDirectory[str] | None = None

    @property
    def port(self) -> int:
        """The TCP port; it does not change once the first `start` has returned."""
        return self._port

    @property
    def url(self) -> str:
        """The address, as `MEMCACHED_URL` takes it."""
        return f"memcached://{LOOPBACK}:{self._port}"

    @property
    def pid(self) -> int:
        """The process id of the running server.

        Raises:
            ServerFailed: If it is not running.
        """
        return self._process.pid

    def start(self) -> None:
        """Start the server, and return once it accepts connections.

        After `kill` it starts on the same port, and empty.

        Raises:
            ServerFailed: If it is running already, ends at once, or is not ready in time. No
                second process runs then.
        """
        if self._own is None:
            self._own = tempfile.TemporaryDirectory(prefix="devserver-memcached-")
        own = Path(self._own.name)
        try:
            self._launch(own)
        except ServerFailed as failure:
            # Another process may have bound the port since it was found free.
            if self._port_is_known or "Address already in use" not in str(failure):
                raise
            self._port = free_port()
            self._launch(own)
        self._port_is_known = True
        # Only its most verbose log says when it is ready; that log has each command, too.
        self.order(b"verbosity 0")

    def order(self, command: bytes) -> bytes:
        """Send one command on a connection of its own; return the first line of the reply."""
        with socket.create_connection((LOOPBACK, self._port), timeout=_PATIENCE) as connection:
            connection.sendall(command + b"\r\n")
            with connection.makefile("rb") as reply:
                return reply.readline().strip()

    def kill(self) -> None:
        """End the server at once. Do nothing if it is not running."""
        self._process.end()

    def pause(self) -> None:
        """Freeze the server: its port accepts connections, and nothing answers on them.

        Raises:
            ServerFailed: If it is not running.
        """
        self._process.freeze()

    def resume(self) -> None:
        """Let a paused server continue.

        Raises:
            ServerFailed: If it is not running.
        """
        self._process.thaw()

    def close(self) -> None:
        """Kill the server and remove its directory. May be called again."""
        self.kill()
        if self._own is not None:
            self._own.cleanup()
            self._own = None

    def _launch(self, own: Path) -> None:
        command = [
            *(str(self._program), "-l", LOOPBACK, "-p", str(self._port), "-U", "0"),
            *("-m", "64", "-I", _LARGEST_ITEM, "-vv", *self._arguments),
        ]
        self._process.start(command, directory=own, account=self._account)
