"""A private Redis-compatible server."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING, Any

from app.devservers.port_server import LOOPBACK, PortServer
from app.devservers.process import ServerFailed, ServerProcess, run
from app.devservers.programs import redis_programs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


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


class RedisServer(PortServer):
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
        super().__init__(ServerProcess(program.name, when_orphaned=signal.SIGKILL), port)

    @property
    def url(self) -> str:
        """Return the URL of database 0."""
        return f"redis://{LOOPBACK}:{self._port}/0"

    def stop(self) -> None:
        """Stop the server, or kill it if it does not end; does nothing if it is not running."""
        self._process.end(signal.SIGTERM)

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
