"""What the development PostgreSQL servers promise, asked of real ones."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from app.devservers import PostgresServer, ServerFailed, ServerMissing
from app.devservers import postgres as postgres_module
from app.devservers.account import Account, copy_install
from app.devservers.programs import postgres_install

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user's server is its own")


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
def place() -> Iterator[Path]:
    """Return a new directory that every account may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


def test_what_is_not_installed_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ServerMissing, match="install the development extra"):
        PostgresServer()


async def test_a_server_lives_as_long_as_its_block_and_keeps_its_data_while_stopped() -> None:
    with PostgresServer() as server:
        url, pid, directory = server.url(), server.pid, socket_directory(server)
        assert directory.is_dir()
        with pytest.raises(ServerFailed, match="is running already"):
            server.start()
        await fetch(url, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (3)")

        server.stop()
        server.stop()
        assert not psutil.pid_exists(pid)
        with pytest.raises(ServerFailed, match="is not running"):
            assert server.pid

        server.start()
        assert server.url() == url
        assert await fetch(url, "SELECT n FROM kept") == 3
        pid = server.pid
    assert not psutil.pid_exists(pid)
    assert not directory.exists()
    with pytest.raises(ServerFailed, match="is not running"):
        server.url()


async def test_a_database_is_a_copy_of_its_template(postgres: PostgresServer) -> None:
    postgres.create_database("original")
    await fetch(postgres.url("original"), "CREATE TABLE t (n int)", "INSERT INTO t VALUES (7)")
    postgres.create_database("the copy", template="original")
    assert await fetch(postgres.url("the copy"), "DELETE FROM t RETURNING n") == 7
    assert await fetch(postgres.url("original"), "SELECT n FROM t") == 7
    with pytest.raises(ServerFailed, match='database "original" already exists'):
        postgres.create_database("original")
    for name in ("original", "the copy"):
        postgres.drop_database(name)


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


async def test_a_temporary_server_gives_durability_for_speed(postgres: PostgresServer) -> None:
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
        assert await fetch(postgres.url(), f"SHOW {setting}") == "off"
    assert await fetch(postgres.url(), "SHOW max_connections") == "200"
    assert await fetch(postgres.url(), "SHOW timezone") == "UTC"
    assert await fetch(postgres.url(), "SHOW listen_addresses") == ""


async def test_a_crash_costs_nothing_that_was_committed_synchronously() -> None:
    with PostgresServer(settings={"synchronous_commit": "on"}) as server:
        await fetch(server.url(), "CREATE TABLE t AS SELECT 1 AS n")
        server.crash()
        log = server.socket_directory / "log"
        server.start()
        assert "database system was not properly shut down" in log.read_text()
        assert await fetch(server.url(), "SELECT n FROM t") == 1


async def test_a_standby_follows_its_primary_and_takes_its_place() -> None:
    with PostgresServer() as primary:
        await fetch(primary.url(), "CREATE TABLE t AS SELECT 1 AS n")
        with PostgresServer(standby_of=primary) as standby:
            assert await fetch(standby.url(), "SELECT pg_is_in_recovery()") is True
            primary.stop()
            standby.promote()
            assert await fetch(standby.url(), "UPDATE t SET n = n + 1 RETURNING n") == 2
            standby.stop()
            standby.start()
            assert await fetch(standby.url(), "SELECT pg_is_in_recovery()") is False


async def test_the_environment_does_not_lead_to_another_server(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as environment:
        environment.setenv("PGPORT", "1")
        environment.setenv("PGDATABASE", "elsewhere")
        postgres.create_database("here")
    assert await fetch(postgres.url("here"), "SELECT current_database()") == "here"
    postgres.drop_database("here")


async def test_a_given_directory_is_made_and_kept_and_durable(place: Path) -> None:
    data = place / "made" / "data"
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


def test_a_directory_with_something_else_in_it_is_refused_and_left_alone(place: Path) -> None:
    (place / "thesis.txt").write_text("mine")
    before = place.stat()
    with pytest.raises(ServerFailed, match="initdb ended with status 1"), PostgresServer(place):
        pass
    assert [path.name for path in place.iterdir()] == ["thesis.txt"]
    assert place.stat().st_uid == before.st_uid


def test_a_temporary_directory_too_deep_for_a_socket_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = place / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(ServerFailed, match=r"(?s)socket path .* is too long"), PostgresServer():
        pass
    assert list(deep.iterdir()) == []


@needs_root
def test_programs_in_a_closed_directory_serve_root_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install = postgres_install()
    package = install.parent
    tmp_path.chmod(0o700)
    for name in (package.name, f"{package.name}.libs"):
        if package.with_name(name).exists():
            (tmp_path / name).symlink_to(package.with_name(name))
    closed = tmp_path / package.name / install.name
    monkeypatch.setattr(postgres_module, "postgres_install", lambda: closed)
    with PostgresServer() as server:
        directory = socket_directory(server)
        server.create_database("reached")
    assert not directory.exists()
    assert tmp_path.stat().st_mode & 0o777 == 0o700


@needs_root
def test_a_copy_for_another_account_is_whole_and_its_own(tmp_path: Path) -> None:
    """An installer with a strict umask leaves files that nobody but root may read."""
    for name in ("package/install18/bin/postgres", "package.libs/libpq.so"):
        file = tmp_path / "site" / name
        file.parent.mkdir(parents=True)
        file.touch(mode=0o700)
    account, copies = Account(user=12345, group=12345), tmp_path / "copies"
    install = copy_install(tmp_path / "site/package/install18", copies, account)
    libraries = install / "../../package.libs"
    for path in (install, install / "bin/postgres", libraries, libraries / "libpq.so"):
        assert (path.stat().st_uid, path.stat().st_gid) == account[:2]


@needs_root
def test_a_directory_that_postgres_cannot_enter_is_reported_to_root(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    server = PostgresServer(tmp_path / "data")
    with pytest.raises(ServerFailed, match="every account may enter"), server:
        pass
    assert tmp_path.stat().st_mode & 0o777 == 0o700
