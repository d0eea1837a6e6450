"""A memcached server for development and tests."""

from __future__ import annotations

import signal
import socket
from typing import TYPE_CHECKING

from app.devservers.account import account_for
from app.devservers.port_server import LOOPBACK, PortServer
from app.devservers.process import ServerProcess
from app.devservers.programs import memcached_program

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_PATIENCE = 5.0  # seconds
_LARGEST_ITEM = "4m"  # the default of 1m is less than the largest body of the conformance suite


class MemcachedServer(PortServer):
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
        self._account = account_for(None)  # memcached refuses to run as root
        process = ServerProcess(
            "memcached", when_orphaned=signal.SIGKILL, ready=b"server listening"
        )
        super().__init__(process, port)

    @property
    def url(self) -> str:
        """The address, as `MEMCACHED_URL` takes it."""
        return f"memcached://{LOOPBACK}:{self._port}"

    def start(self) -> None:
        """Start the server, as `PortServer.start` does, and silence its log."""
        super().start()
        # Only its most verbose log says when it is ready; that log has each command, too.
        self.order(b"verbosity 0")

    def order(self, command: bytes) -> bytes:
        """Send one command on a connection of its own; return the first line of the reply."""
        with socket.create_connection((LOOPBACK, self._port), timeout=_PATIENCE) as connection:
            connection.sendall(command + b"\r\n")
            with connection.makefile("rb") as reply:
                return reply.readline().strip()

    def _launch(self, own: Path) -> None:
        command = [
            *(str(self._program), "-l", LOOPBACK, "-p", str(self._port), "-U", "0"),
            *("-m", "64", "-I", _LARGEST_ITEM, "-vv", *self._arguments),
        ]
        self._process.start(command, directory=own, account=self._account)
