"""Revisions of the tables: new and adopted databases, refused ones, failures, and races."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pytest
from sqlalchemy.engine import make_url

from app.__main__ import main
from app.db.connections import Connections
from app.db.errors import DatabaseUnavailable, RevisionError
from app.db.migrations import operations
from app.db.migrations import run as migrations_run
from app.db.migrations.run import VERSIONS, Migrations
from app.db.migrations.versions import r0001_first_tables as first
from app.db.revisions import HEAD
from app.db.url import scheme_and_host
from app.main import create_app, worker
from app.settings import load
from tests.app.db.schemas import NEXT, drop_tables, prepare, query, schema
from tests.app.process import clean_environment, run, serving
from tests.pairs import DATABASES
from tests.sqlite_threads import sqlite_threads_ended

both = pytest.mark.parametrize("database_url", DATABASES, indirect=True)
postgres_only = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)


@pytest.fixture(autouse=True)
async def no_threads_left() -> AsyncIterator[None]:
    yield
    await sqlite_threads_ended()


def extended(url: str) -> Migrations:
    """Return the migrations of the service, and one more."""
    return Migrations(url, folders=(VERSIONS, NEXT))


async def create_old(url: str, *without: str) -> None:
    """Create tables as versions did that knew no revisions, with one job."""
    connections = Connections(url, recycle=60, pooler="none", sqlite_lock_wait=60)
    names = set(first.metadata.tables) - set(without)
    tables = [first.metadata.tables[name] for name in names]
    async with connections.engine.begin() as connection:
        await connection.run_sync(first.metadata.create_all, tables=tables)
        await connection.execute(first.clients.insert().values(id="acme", version=3))
        await connection.execute(
            first.jobs.insert().values(
                {
                    **{column.name: 1 for column in first.jobs.columns if not column.nullable},
                    "client_id": "acme",
                    "prompt": "A cat sits.",
                    "renderer": "external",
                    "status": "rendering",
                    "stage": "",
                    "message": "",
                    "id": 7,
                }
            )
        )
    await connections.aclose()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    """Open a connection without SQLAlchemy."""
    connection = await asyncpg.connect(str(make_url(url).set(drivername="postgresql")))
    try:
        yield connection
    finally:
        await connection.close()


async def kept(url: str) -> bool:
    jobs = await query(url, "SELECT id, prompt FROM jobs")
    return jobs == [(7, "A cat sits.")] and len(await identities(url)) == 1


async def identities(url: str) -> Sequence[tuple[object, ...]]:
    return await query(url, "SELECT source_id FROM service_identity")


# --- the same tables, however they came about ---


@both
async def test_migrations_make_the_tables_that_a_new_database_has(database_url: str) -> None:
    """And so does `create_all`, because a new database is made by it."""
    await prepare(database_url)
    new = await schema(database_url)
    migrations = Migrations(database_url)
    assert migrations.head == HEAD == await migrations.current()
    await drop_tables(database_url)
    assert await migrations.current() is None
    await migrations.upgrade(HEAD)
    assert await schema(database_url) == new
    assert len(await identities(database_url)) == 1


@both
@pytest.mark.parametrize("without", [(), ("service_identity",)])
async def test_tables_of_versions_without_revisions_are_adopted(
    database_url: str, without: tuple[str, ...]
) -> None:
    await create_old(database_url, *without)
    migrations = Migrations(database_url)
    assert await migrations.current() == "base"
    with pytest.raises(RevisionError, match="too old: its tables have no revision"):
        await prepare(database_url)
    await migrations.upgrade()
    await prepare(database_url)
    assert await kept(database_url)
    adopted = await schema(database_url)
    await drop_tables(database_url)
    await prepare(database_url)
    assert await schema(database_url) == adopted


@both
async def test_an_index_that_an_old_version_did_not_have_is_created(database_url: str) -> None:
    await create_old(database_url)
    await query(database_url, "DROP INDEX jobs_to_move")
    await Migrations(database_url).upgrade()
    await query(database_url, "DROP INDEX jobs_to_move")
    assert await kept(database_url)


@both
async def test_tables_of_another_program_are_left_alone(database_url: str) -> None:
    await query(database_url, "CREATE TABLE jobs (id INTEGER, title TEXT)")
    before = await schema(database_url)
    with pytest.raises(RevisionError, match="table jobs has no column client_id"):
        await Migrations(database_url).upgrade()
    with pytest.raises(RevisionError):
        await prepare(database_url)
    after = await schema(database_url)
    assert {row for row in after if "alembic_version" not in str(row)} == before


@both
async def test_every_revision_can_be_undone_and_loses_nothing(database_url: str) -> None:
    await create_old(database_url, "service_identity")
    migrations = extended(database_url)
    await migrations.upgrade()
    newest, identity = await schema(database_url), await identities(database_url)
    seen = [await migrations.current()]
    while seen[-1] != "base":
        await migrations.downgrade("-1")
        seen.append(await migrations.current())
        assert await kept(database_url)
    assert seen == ["9999", "0002", "0001", "base"]
    await migrations.upgrade()
    assert await schema(database_url) == newest
    assert await identities(database_url) == identity


# --- starts and commands ---


@both
async def test_a_start_refuses_other_revisions_and_names_the_command(database_url: str) -> None:
    await prepare(database_url)
    for revision, words in (
        ("0001", "too old: it is at revision 0001, and this .* Run `python -m app db upgrade`"),
        (
            "9999",
            f"too new: it is at revision 9999, and this .*`python -m app db downgrade {HEAD}`",
        ),
        ("c0ffee", "too new: it is at revision c0ffee, and "),
    ):
        await query(database_url, f"UPDATE alembic_version SET version_num = '{revision}'")  # noqa: S608
        with pytest.raises(RevisionError, match=f"^The database is {words}"):
            await prepare(database_url)
        if revision == "0001":
            continue
        with pytest.raises(RevisionError, match="too new"):
            await Migrations(database_url).upgrade()


async def test_serve_and_dev_refuse_with_one_line_and_a_status_of_its_own(
    database_url: str, tmp_path: Path
) -> None:
    await prepare(database_url)
    await query(database_url, "UPDATE alembic_version SET version_num = '9999'")
    for command in ("serve", "dev"):
        status, said = await asyncio.to_thread(
            run, tmp_path, command, DATABASE_URL=database_url, JOBCACHE_PORT="0"
        )
        assert status == 5
        assert said.startswith("The database is too new: ")
        assert said.count("\n") == 1


async def test_dev_upgrades_the_database(database_url: str, tmp_path: Path) -> None:
    await create_old(database_url)

    def start() -> None:
        with serving(tmp_path, "dev", DATABASE_URL=database_url) as service:
            assert service.http.get("/api/v2/jobs/7").json()["prompt"] == "A cat sits."

    await asyncio.to_thread(start)
    assert await Migrations(database_url).current() == HEAD


async def test_a_worker_starts_while_its_service_runs_on_a_database_of_another_revision(
    database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A worker that takes the place of another has a parent that has checked the revision."""
    await prepare(database_url)
    await extended(database_url).upgrade()
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("JOBCACHE_VAR_DIR", str(tmp_path))
    app = worker()
    async with app.router.lifespan_context(app):
        pass
    app = create_app(load())
    with pytest.raises(RevisionError, match="too new"):
        async with app.router.lifespan_context(app):
            pass


async def test_the_commands_upgrade_downgrade_and_show(
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    await create_old(database_url)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", clean_environment())  # the command writes its flags into it

    async def db(*words: str) -> tuple[int, str]:
        arguments = ["db", *words]
        if words[0] != "history":
            arguments += ["--database-url", database_url]
        status = await asyncio.to_thread(main, arguments)
        said = capsys.readouterr()
        return status, said.out + said.err

    def now(revision: str) -> tuple[int, str]:
        return 0, f"{scheme_and_host(database_url)}: {revision}\n"

    assert "no revision" in (await db("current"))[1]
    assert await db("upgrade") == now(f"{HEAD} (head)")
    assert await db("current") == (0, f"{HEAD} (head)\n")
    assert await db("downgrade", "-1") == now("0001")
    assert await db("current") == (0, "0001\n")
    assert await db("upgrade") == now(f"{HEAD} (head)")
    assert await db("upgrade") == now(f"{HEAD} (head)")
    status, said = await db("history")
    assert status == 0
    assert [line[:4] for line in said.splitlines()] == ["0002", "0001"]
    for wrong in (("upgrade", "0404"), ("downgrade", "-9"), ("downgrade", "nonsense")):
        status, said = await db(*wrong)
        assert status == 5
        assert said.startswith("The database cannot be migrated: ")
        assert said.count("\n") == 1
    assert await db("current") == (0, f"{HEAD} (head)\n")
    assert await kept(database_url)


# --- several at once ---


@both
@pytest.mark.parametrize("old", [True, False])
async def test_many_that_upgrade_at_once_all_succeed(database_url: str, *, old: bool) -> None:
    starting = [] if old else [prepare(database_url) for _ in range(3)]
    if old:
        await create_old(database_url)
    await asyncio.gather(*(Migrations(database_url).upgrade() for _ in range(3)), *starting)
    await asyncio.gather(*(extended(database_url).upgrade() for _ in range(3)))
    assert await extended(database_url).current() == "9999"
    assert len(await identities(database_url)) == 1


# --- failures ---


@both
async def test_a_revision_that_fails_leaves_the_one_before(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_old(database_url)
    with monkeypatch.context() as patch:

        def fail(index: object) -> None:
            raise OSError("the disk is full")

        patch.setattr(operations, "create_index", fail)
        with pytest.raises(DatabaseUnavailable, match="the disk is full"):
            await extended(database_url).upgrade()
    # In SQLite all revisions are one transaction.
    found = await extended(database_url).current()
    assert found == ("base" if "sqlite" in database_url else HEAD)
    assert "priority" not in str(await schema(database_url))
    await extended(database_url).upgrade()
    assert "priority" in str(await schema(database_url))
    assert await kept(database_url)


@postgres_only
async def test_an_index_whose_creation_was_cut_short_is_created_again(database_url: str) -> None:
    await create_old(database_url)
    await Migrations(database_url).upgrade()
    async with connected(database_url) as older:
        await older.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await older.execute("SELECT * FROM clients")  # the index waits for this transaction
        upgrading = asyncio.create_task(extended(database_url).upgrade())
        building = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE query LIKE 'CREATE INDEX CONCURRENTLY%' AND wait_event = 'virtualxid'"
        )
        async with asyncio.timeout(60):
            while not await query(database_url, building):
                await asyncio.sleep(0.01)
        with pytest.raises(DatabaseUnavailable):
            await upgrading
    invalid = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
    assert await query(database_url, invalid) == [("jobs_by_time",)]
    assert await extended(database_url).current() == HEAD
    await extended(database_url).upgrade()
    assert await query(database_url, invalid) == []
    assert "jobs_by_time" in str(await schema(database_url))


@postgres_only
async def test_a_table_that_is_in_use_is_not_blocked_for_others(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that is waited for without a limit stops all readers that come later."""
    await create_old(database_url)
    await Migrations(database_url).upgrade()
    async with connected(database_url) as reader, connected(database_url) as other:
        await reader.execute("BEGIN")
        await reader.fetch("SELECT * FROM jobs")
        with monkeypatch.context() as patch:
            patch.setattr(migrations_run, "_PATIENCE", 0)
            with pytest.raises(DatabaseUnavailable, match="do not let go of a table"):
                await extended(database_url).upgrade()
        upgrading = asyncio.create_task(extended(database_url).upgrade())
        async with asyncio.timeout(60):
            for _ in range(2):  # waits, gives up, waits again
                for waits in (True, False):
                    while waits is not await other.fetchval(
                        "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND relation ="
                        " 'jobs'::regclass AND mode = 'AccessExclusiveLock'"
                    ):
                        await asyncio.sleep(0.01)
                    assert len(await other.fetch("SELECT * FROM jobs")) == 1
            assert not upgrading.done()
            await reader.execute("COMMIT")
            await upgrading
