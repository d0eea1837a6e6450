"""The database by itself: what counts as away, starting together, and what queries cost."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pytest
from sqlalchemy import event, exc, text

from app.db import database as db
from app.db import tables
from app.db.database import Database
from app.db.errors import DatabaseUnavailable, translating
from app.db.tables import jobs
from app.jobs.states import BEGIN_STORYBOARD
from app.jobs.storage import JobStore, NewJob
from tests.app.db.databases import closed
from tests.pairs import DATABASES

AWAY = ["57P01", "57P02", "57P03", "57P05", "53100", "53300", "08006"]

postgres_only = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
both = pytest.mark.parametrize("database_url", DATABASES, indirect=True)


@contextmanager
def executed(database: Database) -> Iterator[list[tuple[str, Any]]]:
    """Record the statements that are sent to the database, with their parameters."""
    sent: list[tuple[str, Any]] = []

    def note(*arguments: Any) -> None:
        sent.append((arguments[2], arguments[3]))

    engine = database.connections.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    yield sent
    event.remove(engine, "before_cursor_execute", note)


# --- away ---


async def make_function(database: Database, state: str, times: int) -> None:
    """`trouble()` raises an error with that state so many times; then it returns a backend's id."""
    body = f"""
        BEGIN
            IF nextval('calls') <= {times} THEN
                RAISE EXCEPTION 'trouble' USING ERRCODE = '{state}';
            END IF;
            RETURN pg_backend_pid();
        END"""
    await database.write(text("DROP FUNCTION IF EXISTS trouble()"))
    await database.write(text("DROP SEQUENCE IF EXISTS calls"))
    await database.write(text("CREATE SEQUENCE calls"))
    await database.write(
        text(f"CREATE FUNCTION trouble() RETURNS int LANGUAGE plpgsql AS $${body}$$")
    )


@postgres_only
@pytest.mark.parametrize("state", AWAY)
async def test_a_server_that_says_it_cannot_work_is_away(database: Database, state: str) -> None:
    await make_function(database, state, times=9)
    with pytest.raises(DatabaseUnavailable):
        await database.read(text("SELECT trouble()"), "test")
    with pytest.raises(DatabaseUnavailable):
        await database.write(text("SELECT trouble()"))


@both
@pytest.mark.parametrize("mistake", ["SELECT nonsense", "SELECT 1 FROM nowhere", "SELEKT"])
async def test_a_mistake_in_a_statement_is_not_called_away(
    database: Database, mistake: str
) -> None:
    wrong = exc.OperationalError if database.is_sqlite else exc.ProgrammingError
    with pytest.raises(wrong):
        await database.read(text(mistake), "test")
    with pytest.raises(wrong):
        await database.write(text(mistake))


async def test_a_file_that_cannot_be_opened_is_away(tmp_path: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'no-such-directory' / 'jobs.db'}")
    with pytest.raises(DatabaseUnavailable):
        await database.read(text("SELECT 1"), "test")
    with pytest.raises(DatabaseUnavailable):
        await database.write(text("SELECT 1"))
    await closed(database)


@postgres_only
@pytest.mark.parametrize(("state", "again"), [("57P01", True), ("08006", True), ("53300", False)])
async def test_a_read_on_a_connection_that_died_is_tried_on_a_fresh_one(
    database: Database, state: str, *, again: bool
) -> None:
    await make_function(database, state, times=1)
    (before,) = await database.read(text("SELECT pg_backend_pid()"), "test")
    if again:
        (after,) = await database.read(text("SELECT trouble()"), "test")
        assert after[0] != before[0]
    else:
        with pytest.raises(DatabaseUnavailable):
            await database.read(text("SELECT trouble()"), "test")


@postgres_only
@pytest.mark.parametrize("writes", [False, True])
async def test_nothing_fails_because_idle_connections_have_been_ended(
    database: Database, *, writes: bool
) -> None:
    def use() -> Awaitable[Any]:
        one = text("SELECT 1")
        return database.write(one) if writes else database.read(one, "test")

    await asyncio.gather(*(use() for _ in range(5)))
    killer = await asyncpg.connect(str(database.connections.url.set(drivername="postgresql")))
    await killer.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )
    await killer.close()
    assert await asyncio.gather(*(use() for _ in range(5))) == [[(1,)]] * 5


@postgres_only
async def test_a_transaction_that_takes_too_long_is_ended_and_its_connection_is_not_kept(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "_LONGEST_READ", 0.1)
    monkeypatch.setattr(db, "_LONGEST_WRITE", 0.1)
    with pytest.raises(DatabaseUnavailable, match=r"no answer within 0\.1 s"):
        await database.read(text("SELECT pg_sleep(30)"), "test")
    insert = "WITH slept AS (SELECT pg_sleep(30)) INSERT INTO clients SELECT 'late', 1 FROM slept"
    with pytest.raises(DatabaseUnavailable, match=r"no answer within 0\.1 s"):
        await database.write(text(insert))
    monkeypatch.setattr(db, "_LONGEST_READ", 60)
    counted = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(30)%'"
    async with asyncio.timeout(60):
        while await database.read(text(f"{counted} AND pid <> pg_backend_pid()"), "test") != [(0,)]:
            await asyncio.sleep(0.01)
    assert await database.read(tables.clients.select(), "test") == []


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.CannotConnectNowError("the database system is starting up"),
        asyncpg.TooManyConnectionsError("too many clients already"),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        asyncpg.InterfaceError("connection is closed"),
    ],
)
@postgres_only
async def test_what_the_driver_raises_while_it_connects_is_understood(
    database_url: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(asyncpg, "connect", refuse)
    database = Database(database_url)
    with pytest.raises(DatabaseUnavailable):
        await database.read(text("SELECT 1"), "test")
    with pytest.raises(DatabaseUnavailable):
        await database.write(text("SELECT 1"))
    # SQLAlchemy 2.0 passes it on unchanged, 2.1 wraps it.
    with pytest.raises(DatabaseUnavailable), translating():
        raise error
    await closed(database)


@both
async def test_an_error_does_not_quote_what_clients_wrote(database: Database) -> None:
    with pytest.raises(exc.DBAPIError) as caught:
        await database.write(
            tables.clients.insert().values([{"id": "s3cret", "version": 1}] * 2)  # a duplicate
        )
    assert "s3cret" not in str(caught.value).split("DETAIL:")[0]


async def test_a_write_does_not_wait_without_end(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "_LONGEST_WAIT", 0.05)
    raised = tables.clients.insert().values(id="acme", version=1)
    async with database.transaction(), asyncio.timeout(9):  # less than the limit it has
        with pytest.raises(DatabaseUnavailable):
            await database.write(raised)
    await database.write(raised)


# --- starting ---


async def test_many_that_start_at_once_on_a_new_file_all_start(tmp_path: Path) -> None:
    """Each has connections and threads of its own, as processes have."""
    for number in range(8):
        url = f"sqlite+aiosqlite:///{tmp_path / f'{number}.db'}"
        together = [Database(url) for _ in range(6)]
        await asyncio.gather(*(database.prepare_tables() for database in together))
        await asyncio.gather(*(closed(database) for database in together))


async def test_a_start_outlasts_the_write_of_one_that_has_no_wal_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite refuses at once to switch to WAL then, and does not wait as it does otherwise."""
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'jobs.db'}")
    read, tries = database._revision, 0

    async def counted() -> str | None:
        nonlocal tries
        tries += 1
        return await read()

    monkeypatch.setattr(database, "_revision", counted)
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as other:
        other.execute("CREATE TABLE another (id)")
        other.execute("BEGIN IMMEDIATE")
        starting = asyncio.create_task(database.prepare_tables())
        async with asyncio.timeout(60):
            while tries < 2 and not starting.done():
                await asyncio.sleep(0.005)
        other.rollback()
    await starting
    await closed(database)


# --- what queries cost ---


async def fill(database: Database) -> int:
    """A long history and one job to move, whose id is returned."""
    store = JobStore(database)
    async with database.transaction() as connection:
        await connection.execute(
            tables.clients.insert(), [{"id": f"c{n}", "version": 1} for n in range(100)]
        )
        old = {
            "prompt": "x" * 100,
            "seconds_per_scene": 1.0,
            "renderer": "builtin",
            "status": "completed",
            "version": 1,
            "percent": 0.0,
            "stage": "",
            "message": "",
            "created_at": 0,
            "updated_at": 0,
        }
        rows = [{**old, "client_id": f"c{n % 100}"} for n in range(3000)]
        await connection.execute(jobs.insert(), rows)
        created = await store.create(
            connection, NewJob("c1", "A cat sits.", None, 1.0, "builtin"), 0
        )
    assert created is not None
    await database.write(text("ANALYZE"))
    # EXPLAIN on a connection that was open before would not know what ANALYZE has found.
    await database.connections.aclose()
    return created[0].id


async def plan(database: Database, run: Callable[[], Awaitable[object]]) -> str:
    """How the database goes about the one statement that `run` sends."""
    with executed(database) as sent:
        await run()
    ((statement, parameters),) = sent
    explain = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "
    async with database.connections.reader.connect() as connection:
        rows = (await connection.exec_driver_sql(explain + statement, parameters)).all()
    return "\n".join(str(row[-1]) for row in rows)


@both
async def test_looking_for_work_does_not_read_the_history(database: Database) -> None:
    job_id = await fill(database)
    store = JobStore(database)
    assert [job.id for job in await store.find_unfinished(1, 100)] == [job_id]
    said = await plan(database, lambda: store.find_unfinished(1, 100))
    assert "jobs_to_move" in said
    assert "Seq Scan on jobs" not in said
    assert not re.search(r"SCAN jobs(?! USING INDEX jobs_to_move)", said)


@both
async def test_a_list_reads_no_more_than_it_returns(database: Database) -> None:
    job_id = await fill(database)
    store = JobStore(database)
    listed = await store.load_list("c1", 10)
    assert listed.ids == (job_id, *range(2902, 2902 - 9 * 100, -100))
    assert (listed.complete, listed.version) == (False, 2)
    said = await plan(database, lambda: store.load_list("c1", 10))
    assert "jobs_by_client" in said
    assert "Seq Scan on jobs" not in said
    assert not re.search(r"SCAN jobs", said)
    with executed(database) as sent:
        await store.load_list("c1", 10)
    limited = re.search(r"LIMIT .*\) AS newest", sent[0][0], re.DOTALL)
    assert limited, "the history is cut before it is joined and sorted"


@both
async def test_storyboards_are_read_only_where_they_are_needed(database: Database) -> None:
    job_id = await fill(database)
    store = JobStore(database)
    with executed(database) as sent:
        await store.load(job_id)
        await store.load_many([job_id])
        await store.page(client_id=None, status=None, below=None, limit=5)
        await store.find_unfinished(1, 5)
        async with database.transaction() as connection:
            assert await store.make_transition(connection, job_id, BEGIN_STORYBOARD, 1, {})
    assert len(sent) == 5
    for statement, _ in sent:
        assert not re.search(r"\bstoryboard\b", statement)
    assert await store.load_storyboard(job_id) is None
    await database.write(
        jobs.update().where(jobs.c.id == job_id).values(storyboard="{}", storyboard_version=2)
    )
    stored = await store.load_storyboard(job_id)
    assert stored is not None
    assert (stored.client_id, stored.version, stored.text) == ("c1", 2, "{}")
    assert await store.load_to_render(job_id) is None
    await database.write(jobs.update().where(jobs.c.id == job_id).values(status="rendering"))
    assert await store.load_to_render(job_id) == "{}"
