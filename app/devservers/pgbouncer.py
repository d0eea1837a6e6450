"""A PgBouncer in front of a PostgreSQL server."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from app.devservers.account import account_for
from app.devservers.process import ServerFailed, ServerProcess, Started
from app.devservers.programs import pgbouncer_program

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.devservers.postgres import PostgresServer

_PORT = 6432  # part of the socket's name; by default nothing listens on TCP


class PgBouncerServer(Started):
    """One PgBouncer on a socket in a directory of its own, as a context manager.

    Args:
        postgres: the server behind it, running.
        pool_mode: "session", "transaction" or "statement".
        pool_size: the most connections to the server, per database.
        settings: further settings of its configuration file, such as
            ``{"listen_addr": "127.0.0.1"}``.

    Raises:
        ServerMissing: If PgBouncer is not installed.
    """

    def __init__(
        self,
        postgres: PostgresServer,
        *,
        pool_mode: str = "transaction",
        pool_size: int = 5,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._program = pgbouncer_program()
        self._postgres = postgres
        self._settings = {
            "pool_mode": pool_mode,
            "default_pool_size": str(pool_size),
            "max_client_conn": "500",
            "auth_type": "any",
            "listen_addr": "",
            "listen_port": str(_PORT),
            **({} if settings is None else settings),
        }
        # PgBouncer refuses to run as root, like PostgreSQL, and uses the owner of its socket.
        self._account = account_for(None)
        self._process = ServerProcess(
            "PgBouncer", when_orphaned=signal.SIGTERM, ready=b"process up"
        )
        self._own: tempfile.TemporaryDirectory[str] | None = None

    @property
    def pid(self) -> int:
        """Return the process id; raise `ServerFailed` if it is not running."""
        return self._process.pid

    @property
    def socket_directory(self) -> Path:
        """Return the directory of its socket; raise `ServerFailed` if it is not started."""
        if self._own is None:
            raise ServerFailed("PgBouncer is not running: start it first.")
        return Path(self._own.name)

    def url(self, database: str = "postgres") -> str:
        """Return the address of `database` through the pooler, for SQLAlchemy with asyncpg.

        Raises:
            ServerFailed: If it was never started, or is closed.
        """
        host = quote(str(self.socket_directory), safe="")
        path = quote(database, safe="")
        return f"postgresql+asyncpg://postgres@/{path}?host={host}&port={self._settings['listen_port']}"

    def start(self) -> None:
        """Start it, and return once it takes connections.

        Raises:
            ServerFailed: If it is running, ends at once, or is not ready in time.
        """
        if self._own is None:
            self._own = tempfile.TemporaryDirectory(prefix="devserver-pgbouncer-")
        own = Path(self._own.name)
        settings = own / "pgbouncer.ini"
        listed = {**self._settings, "unix_socket_dir": str(own)}
        settings.write_text(
            f"[databases]\n* = host={self._postgres.socket_directory} user=postgres\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in listed.items())
        )
        if self._account is not None:
            for path in (own, settings):
                self._account.take(path)
        command = [str(self._program), str(settings)]
        self._process.start(command, directory=own, account=self._account)

    def stop(self) -> None:
        """Stop it at once, with all its connections; does nothing if it is not running."""
        self._process.end(signal.SIGTERM)

    def close(self) -> None:
        """Stop it and remove its directory. May be called again."""
        self.stop()
        if self._own is not None:
            self._own.cleanup()
            self._own = None
