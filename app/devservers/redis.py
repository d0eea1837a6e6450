"""A private Redis-compatible server."""

from __future__ import annotations

import re
import signal
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.devservers.process import ServerFailed, ServerProcess, Started, run
from app.devservers.programs import redis_programs

if TYPE_CHECKING:
    from collections.abc import Sequence

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """Return a TCP port of the loopback interface that nothing is bound to.

    The port is not reserved: another process may take it before the caller does.
    """
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        port: int = listener.getsockname()[1]
        return port


def order(port: int, *words: str | int) -> Any:  # noqa: ANN401 - any reply
    """Return a server's reply to a command; raise `redis.RedisError` if it is an error.

    The command is given in separate words. Then redis-py does not recognise most commands, and does
    not convert their replies.
    """
    # Imported here, because the client is needed for commands only.
    from redis import Redis  # noqa: PLC0415
    from redis.backoff import NoBackoff  # noqa: PLC0415
    from redis.retry import Retry  # noqa: PLC0415

    with Redis(
        port=port, socket_timeout=5, decode_responses=True, retry=Retry(NoBackoff(), 0)
    ) as client:
        return client.execute_command(*words)


def redis_servers() -> dict[str, Path]:
    """Return every installed Redis-compatible server program, by an id such as ``valkey-9.1``.

    The id comes from ``PROGRAM --version``; of two equal ones, the extra's is used.

    Raises:
        ServerMissing: If none is installed.
        ServerFailed: If one does not run.
    """
    servers: dict[str, Path] = {}
    for program in redis_programs():
        servers.setdefault(_id(program), program)
    return servers


class RedisServer(Started):
    """One Redis-compatible server that keeps nothing on disk, as a context manager.

    Args:
        program: The server program; ``None`` takes the first of `redis_servers`.
        port: The TCP port to listen on; ``None`` takes a free one, and another one if another
            process takes the first before the server binds it.
        arguments: Further arguments, which override those set here. They must not change the log,
            because it shows when the server is ready.

    Raises:
        ServerMissing: If no program is given and none is installed.
    """

    def __init__(
        self,
        program: Path | None = None,
        *,
        port: int | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        program = redis_programs()[0] if program is None else program
        self._program = program.absolute()  # it starts in another directory
        self._arguments = tuple(arguments)
        self._port = free_port() if port is None else port
        self._port_is_known = port is not None
        self._process = ServerProcess(program.name, when_orphaned=signal.SIGKILL)
        self._own: tempfile.TemporaryDirectory[str] | None = None

    @property
    def port(self) -> int:
        """Return the TCP port; it is fixed once the first `start` has returned."""
        return self._port

    @property
    def url(self) -> str:
        """Return the URL of database 0."""
        return f"redis://{LOOPBACK}:{self._port}/0"

    @property
    def pid(self) -> int:
        """The process id of the running server.

        Raises:
            ServerFailed: If it is not running.
        """
        return self._process.pid

    def start(self) -> None:
        """Start the server, and return once it takes connections.

        After `stop` or `kill` it starts on the same port.

        Raises:
            ServerFailed: If it is running, ends at once, or is not ready in time. Nothing new
                runs then.
        """
        if self._own is None:
            self._own = tempfile.TemporaryDirectory(prefix="devserver-redis-")
        try:
            self._launch(Path(self._own.name))
        except ServerFailed as failure:
            # Between finding a port and binding it, somebody else may have bound it. Twice in
            # a row is no accident.
            if self._port_is_known or "Address already in use" not in str(failure):
                raise
            self._port = free_port()
            self._launch(Path(self._own.name))
        self._port_is_known = True

    def stop(self) -> None:
        """Stop the server, or kill it if it does not end; does nothing if it is not running."""
        self._process.end(signal.SIGTERM)

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
        self.kill()  # its data is not kept
        if self._own is not None:
            self._own.cleanup()
            self._own = None

    def _launch(self, own: Path) -> None:
        command = [
            *(str(self._program), "--save", "", "--appendonly", "no", "--daemonize", "no"),
            *("--bind", LOOPBACK, "--port", str(self._port), "--dir", str(own)),
            *self._arguments,
        ]
        self._process.start(command, directory=own)


def _id(program: Path) -> str:
    said = run([str(program), "--version"])
    version = re.search(r"(\w+) server v=(\d+\.\d+)", said, re.IGNORECASE)
    if version is None:
        raise ServerFailed(f"{program} does not print its version:\n{said}")
    return f"{version[1]}-{version[2]}".lower()
