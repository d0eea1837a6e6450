"""What the service makes of each error of a database: 503, another attempt, or 500."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import httpx
import pytest
from sqlalchemy import event, exc, text

from app.db import database as db
from app.db.database import Database
from app.db.driver_errors import POSTGRES, SQLITE, Failure, classify
from app.db.errors import DatabaseUnavailable
from app.devservers import PostgresServer
from app.ops.readiness import Readiness
from tests.app.db.databases import closed
from tests.app.db.test_database import make_function
from tests.app.running import Service, Start
from tests.pairs import SERVICE_BACKENDS

postgres_only = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
uncached = pytest.mark.parametrize("backend_environment", ["null"], indirect=True)

# An SQLSTATE for each row of the table, siblings of the rows, and some that are not in it.
STATES = {
    **{row if len(row) == 5 else f"{row}000": failure for row, failure in POSTGRES.items()},
    "08006": Failure.DISCONNECTED,
    "08P01": Failure.DISCONNECTED,
    "25006": Failure.DISCONNECTED,
    "25P02": Failure.DISCONNECTED,
    "25P03": Failure.DISCONNECTED,
    "25P04": Failure.DISCONNECTED,
    "28P01": Failure.DISCONNECTED,
    "40001": Failure.RETRY,
    "40P01": Failure.RETRY,
    "53100": Failure.UNAVAILABLE,
    "53200": Failure.UNAVAILABLE,
    "53300": Failure.UNAVAILABLE,
    "55P03": Failure.UNAVAILABLE,
    "55006": Failure.UNAVAILABLE,
    "57014": Failure.UNAVAILABLE,
    "57P01": Failure.DISCONNECTED,
    "57P02": Failure.DISCONNECTED,
    "57P03": Failure.DISCONNECTED,
    "57P05": Failure.DISCONNECTED,
    "58030": Failure.UNAVAILABLE,
    "XX000": Failure.UNAVAILABLE,
    "XX001": Failure.UNAVAILABLE,
    "0A000": Failure.BUG,
    "22012": Failure.BUG,
    "23514": Failure.BUG,
    "42501": Failure.BUG,
    "42703": Failure.BUG,
    "54001": Failure.BUG,
    "P0001": Failure.BUG,
}


@pytest.fixture(autouse=True)
def readiness_is_checked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once per second, or a test would have to wait for it."""
    monkeypatch.setattr(Readiness.__init__, "__defaults__", (0.0, time.monotonic))


# --- one statement ---


def states(failure: Failure) -> list[str]:
    return [state for state, theirs in STATES.items() if theirs is failure]


@postgres_only
@pytest.mark.parametrize("failure", Failure)
async def test_a_state_that_lasts_is_unavailable_or_a_bug(
    database: Database, failure: Failure
) -> None:
    expected = exc.DBAPIError if failure is Failure.BUG else DatabaseUnavailable
    for state in states(failure):
        await make_function(database, state, times=99)
        with pytest.raises(expected):
            await database.read(text("SELECT trouble()"), state)
        with pytest.raises(expected):
            await database.write(text("SELECT trouble()"))


@postgres_only
@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("failure", Failure)
async def test_a_state_that_passes_is_tried_again_where_that_is_safe(
    database: Database, failure: Failure, *, writes: bool
) -> None:
    async def use(statement: str) -> int:
        if writes:
            rows = await database.write(text(statement))
        else:
            rows = await database.read(text(statement), "test")
        backend: int = rows[0][0]
        return backend

    for state in states(failure):
        await make_function(database, state, times=1)
        before = await use("SELECT pg_backend_pid()")
        if failure in {Failure.RETRY, Failure.DISCONNECTED}:
            after = await use("SELECT trouble()")
        else:
            with pytest.raises(exc.DBAPIError if failure is Failure.BUG else DatabaseUnavailable):
                await use("SELECT trouble()")
            after = await use("SELECT pg_backend_pid()")
        assert (after == before) is (failure is not Failure.DISCONNECTED), state


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (asyncpg.InterfaceError("connection is closed"), Failure.DISCONNECTED),
        (
            asyncpg.InterfaceError("cannot perform operation: another operation is in progress"),
            Failure.DISCONNECTED,
        ),
        (asyncpg.InternalClientError("got result for unknown protocol"), Failure.DISCONNECTED),
        (asyncpg.DataError("invalid input for query argument $1"), Failure.BUG),
        (
            asyncpg.InterfaceError("the server expects 1 argument for this query, 2 were passed"),
            Failure.BUG,
        ),
        (exc.TimeoutError("QueuePool limit"), Failure.UNAVAILABLE),
        (ConnectionRefusedError(), Failure.UNAVAILABLE),
        (TimeoutError(), Failure.UNAVAILABLE),
        (RuntimeError("unable to perform operation; the handler is closed"), Failure.DISCONNECTED),
        (RuntimeError("something else"), Failure.BUG),
        (KeyError("x"), Failure.BUG),
    ],
)
def test_errors_without_a_state_are_told_apart(error: Exception, failure: Failure) -> None:
    assert classify(error) is failure


@postgres_only
async def test_a_wrong_argument_is_a_bug_and_a_connection_in_use_is_not(
    database: Database,
) -> None:
    with pytest.raises(exc.DBAPIError):
        await database.read(text("SELECT CAST(:x AS int)"), "test", x="no number")
    async with database.connections.engine.connect() as connection:
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        busy = asyncio.create_task(raw.fetch("SELECT pg_sleep(0.2)"))
        await asyncio.sleep(0)
        with pytest.raises(exc.DBAPIError) as caught:
            await connection.execute(text("SELECT 1"))
        assert classify(caught.value) is Failure.DISCONNECTED
        assert caught.value.connection_invalidated
        await asyncio.gather(busy, return_exceptions=True)


# --- over HTTP ---

TROUBLE = """
CREATE FUNCTION trouble() RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE wanted text;
BEGIN
    SELECT state INTO wanted FROM trouble;
    IF wanted <> '' THEN RAISE EXCEPTION 'trouble' USING ERRCODE = wanted; END IF;
    RETURN true;
END $$;
CREATE TABLE trouble (state text);
INSERT INTO trouble VALUES ('');
ALTER TABLE jobs RENAME TO real_jobs;
ALTER TABLE clients RENAME TO real_clients;
CREATE VIEW jobs AS SELECT * FROM real_jobs WHERE trouble();
CREATE VIEW clients AS SELECT * FROM real_clients WHERE trouble();
CREATE FUNCTION trouble_too() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM trouble(); RETURN NEW; END $$;
CREATE TRIGGER insertion BEFORE INSERT ON real_jobs FOR EACH ROW EXECUTE FUNCTION trouble_too();
"""


@asynccontextmanager
async def administrator(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        yield connection
    finally:
        await connection.close()


async def everything(service: Service, job_id: int) -> list[httpx.Response]:
    """Every kind of request that needs the database, at once."""
    http, path = service.http, f"/api/v2/jobs/{job_id}"
    return await asyncio.gather(
        http.get(path),
        http.get(f"/api/v2/jobs?ids={job_id}"),
        http.get("/api/v2/jobs"),
        http.get("/api/v2/jobs?client_id=acme"),
        http.get("/api/v2/jobs?status=rendering"),
        http.get(f"{path}/storyboard"),
        http.post(f"{path}/progress", json={"percent": 1}),
        http.post(f"{path}/render"),
        http.post("/api/v2/jobs", json={"client_id": "acme", "prompt": "A cat."}),
    )


def unavailable(responses: list[httpx.Response]) -> None:
    for response in responses:
        assert response.status_code == 503, (response.request.url, response.text)
        assert response.headers["retry-after"] == "2"
        assert response.headers["content-type"] == "application/problem+json"


@postgres_only
@uncached
@pytest.mark.parametrize(
    "state", ["25006", "57014", "40001", "40P01", "55P03", "53100", "58030", "25P02", "XX001"]
)
async def test_every_request_says_unavailable_and_the_next_one_succeeds(
    service: Service, database_url: str, state: str
) -> None:
    job = await service.rendering()
    async with administrator(database_url) as connection:
        await connection.execute(TROUBLE)
        await connection.execute("UPDATE trouble SET state = $1", state)
        unavailable(await everything(service, job["id"]))
        await connection.execute("UPDATE trouble SET state = ''")
    for response in await everything(service, job["id"]):
        assert response.status_code in {200, 202}, response.text
    assert (await service.http.get("/readyz")).status_code == 200


@postgres_only
@uncached
async def test_a_bug_stays_a_bug(service: Service, database_url: str) -> None:
    job = await service.rendering()
    async with administrator(database_url) as connection:
        await connection.execute(TROUBLE)
        await connection.execute("UPDATE trouble SET state = '42501'")
    for response in await everything(service, job["id"]):
        assert response.status_code == 500, response.text


COLUMNS = ["message", "prompt", "percent", "version", "status"]


@postgres_only
@pytest.mark.parametrize(
    ("backend_environment", "column"),
    [
        *(("null", column) for column in COLUMNS),
        *((backend, "version") for backend in SERVICE_BACKENDS[1:]),
        *(
            pytest.param(backend, column, marks=pytest.mark.long)
            for backend in SERVICE_BACKENDS[1:]
            for column in COLUMNS
            if column != "version"
        ),
    ],
    indirect=["backend_environment"],
)
async def test_a_column_that_changes_its_type_costs_no_request(
    service: Service, database_url: str, column: str
) -> None:
    """Each pooled connection has prepared its statements for the type of before."""
    kinds = {"percent": "real", "version": "int", "status": "text"}
    job = await service.rendering()
    jobs = [await service.rendering() for _ in range(4)]
    for _ in range(3):
        for response in await everything(service, job["id"]):
            assert response.status_code in {200, 202}, response.text
    async with administrator(database_url) as connection:
        kind = kinds.get(column, "varchar(5000)")
        await connection.execute(f"ALTER TABLE jobs ALTER COLUMN {column} TYPE {kind}")
    answers = await asyncio.gather(*(everything(service, each["id"]) for each in [job, *jobs]))
    for response in [response for each in answers for response in each]:
        assert response.status_code in {200, 202}, response.text


@postgres_only
@uncached
@pytest.mark.parametrize("how", ["cancelled", "statement_timeout", "lock_timeout"])
async def test_a_statement_that_the_server_ends_is_unavailable(
    service: Service, database_url: str, how: str
) -> None:
    job = await service.rendering()
    async with (
        administrator(database_url) as connection,
        administrator(database_url) as another,  # sees new activity also during the transaction
    ):
        if how != "cancelled":
            await connection.execute(f"ALTER ROLE postgres SET {how} = '50ms'")
            await service.services.database.connections.engine.dispose()
        try:
            async with connection.transaction():
                await connection.execute("SET LOCAL statement_timeout = 0")
                await connection.execute("LOCK TABLE jobs")
                asked = asyncio.create_task(everything(service, job["id"]))
                async with asyncio.timeout(60):
                    while not asked.done():
                        if how == "cancelled":
                            await another.execute(
                                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
                                " WHERE wait_event_type = 'Lock'"
                                " AND datname = current_database()"
                            )
                        await asyncio.sleep(0.01)
                unavailable(await asked)
        finally:
            await connection.execute("ALTER ROLE postgres RESET ALL")
    await service.services.database.connections.engine.dispose()
    for response in await everything(service, job["id"]):
        assert response.status_code in {200, 202}, response.text


# --- servers that refuse writes ---


@pytest.fixture(scope="module")
def another_postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """A server whose settings a test may change."""
    with PostgresServer() as server:
        yield server


async def set_read_only(url: str, value: str) -> None:
    async with administrator(url) as connection:
        await connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
        await connection.execute("SELECT pg_reload_conf()")
        # A new connection may come before the reload, and would say nothing of it.
        async with asyncio.timeout(60):
            while True:
                async with administrator(url) as another:
                    if await another.fetchval("SHOW transaction_read_only") == value:
                        return
                await asyncio.sleep(0.01)


async def test_a_server_turned_read_only_is_unavailable_for_writes(
    start: Start, own_postgres: PostgresServer, tmp_path: Path, backend_environment: dict[str, str]
) -> None:
    own_postgres.create_database(tmp_path.name)
    url = own_postgres.url(tmp_path.name)
    async with start(DATABASE_URL=url, **backend_environment) as service:
        job = await service.rendering()
        path = f"/api/v2/jobs/{job['id']}"
        await set_read_only(url, "on")
        try:
            unavailable([await service.http.post(f"{path}/progress", json={"percent": 1})])
            unavailable(
                [await service.http.post("/api/v2/jobs", json={"client_id": "a", "prompt": "x"})]
            )
            unavailable([await service.http.get("/readyz")])
            assert await service.job(job["id"]) == job, "it can be read"
        finally:
            await set_read_only(url, "off")
        reported = await service.post(f"{job['id']}/progress", percent=5)
        assert reported["version"] == job["version"] + 1
        assert await service.job(job["id"]) == reported
        assert (await service.http.get("/readyz")).status_code == 200


@pytest.mark.parametrize("first", ["write", "readyz"])
async def test_after_a_failover_the_pool_leaves_the_server_that_became_read_only(
    start: Start,
    own_postgres: PostgresServer,
    another_postgres: PostgresServer,
    tmp_path: Path,
    first: str,
) -> None:
    """The address moves, as a DNS name does; the old primary lives on and keeps connections."""
    name = tmp_path.name
    for server in (own_postgres, another_postgres):
        server.create_database(name)
    new = Database(another_postgres.url(name))
    await new.prepare_tables()
    await closed(new)
    with TemporaryDirectory(prefix="pg-", dir="/tmp") as directory:
        address = Path(directory) / "address"
        address.symlink_to(own_postgres._socket_directory())
        url = f"postgresql://postgres@/{name}?host={address}"
        async with start(DATABASE_URL=url, JOBCACHE_BACKEND="null") as service:
            await asyncio.gather(*(service.create() for _ in range(12)))
            await set_read_only(own_postgres.url(name), "on")
            try:
                unavailable([await service.http.get("/readyz")])
                moved = Path(directory) / "moved"
                moved.symlink_to(another_postgres._socket_directory())
                os.replace(moved, address)  # noqa: PTH105 - atomic, of the link itself
                if first == "readyz":
                    assert (await service.http.get("/readyz")).status_code == 200
                created = await service.create()
                assert created["id"] <= 2, "a job of the new server, which was empty"
                assert (await service.http.get("/readyz")).status_code == 200
                assert await service.job(created["id"])
            finally:
                await set_read_only(own_postgres.url(name), "off")


@postgres_only
async def test_a_role_that_may_not_log_in_any_more_is_unavailable(
    start: Start, database_url: str
) -> None:
    async with administrator(database_url) as connection:
        await connection.execute("DROP ROLE IF EXISTS service")
        await connection.execute("CREATE ROLE service SUPERUSER LOGIN")
        url = database_url.replace("postgres@", "service@")
        async with start(DATABASE_URL=url, JOBCACHE_BACKEND="null") as service:
            job = await service.rendering()
            for refusal in ("NOLOGIN", "CONNECTION LIMIT 0 NOSUPERUSER LOGIN"):
                await connection.execute(f"ALTER ROLE service {refusal}")
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE usename = 'service'"
                )
                unavailable(await everything(service, job["id"]))
                unavailable([await service.http.get("/readyz")])
            await connection.execute("ALTER ROLE service CONNECTION LIMIT -1 SUPERUSER")
            for response in await everything(service, job["id"]):
                assert response.status_code in {200, 202}, response.text


# --- SQLite ---


@pytest.mark.parametrize("code", SQLITE)
def test_every_code_of_sqlite_is_understood_with_its_extensions(code: int) -> None:
    error = sqlite3.OperationalError("trouble")
    error.sqlite_errorcode = code | 5 << 8
    assert classify(error) is SQLITE[code]
    wrapped = exc.OperationalError("SELECT 1", {}, error)
    assert classify(wrapped) is SQLITE[code]


@pytest.mark.parametrize("trouble", ["PRAGMA query_only = ON", "PRAGMA max_page_count = 1"])
async def test_a_file_that_refuses_writes_is_unavailable_for_them(
    start: Start, trouble: str
) -> None:
    async with start(JOBCACHE_BACKEND="null", JOBCACHE_CLAIM_SECONDS="600") as service:
        job = await service.rendering()
        await service.services.runner.aclose()  # its writes are smaller, and may succeed
        pragmas = [trouble]  # the page count stops at what the file has

        def apply(connection: Any, *_: Any) -> None:
            cursor = connection.cursor()
            for pragma in pragmas:
                cursor.execute(pragma)
            cursor.close()

        event.listen(service.services.database.connections.engine.sync_engine, "checkout", apply)
        new = {"client_id": "acme", "prompt": "A cat. " * 250, "renderer": "external"}
        async with asyncio.timeout(60):
            while (answer := await service.http.post("/api/v2/jobs", json=new)).status_code == 202:
                pass
        unavailable([answer, await service.http.get("/readyz")])
        assert await service.job(job["id"]) == job
        pragmas[:] = ["PRAGMA query_only = OFF", "PRAGMA max_page_count = 1000000"]
        assert (await service.http.post("/api/v2/jobs", json=new)).status_code == 202
        assert (await service.http.get("/readyz")).status_code == 200


async def test_a_refused_write_is_forgotten_after_a_while(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that is not ready gets no requests, and so no write that could succeed."""
    database._refused_at = 0.0
    now = 9.9
    # A clock of the module's own: the event loop needs the one of `time`.
    monkeypatch.setattr(db, "time", SimpleNamespace(monotonic=lambda: now))
    with pytest.raises(DatabaseUnavailable):
        await database.check()
    now = 10.0
    await database.check()


# --- age ---


@postgres_only
async def test_a_connection_is_replaced_when_it_has_become_old(
    start: Start, database_url: str
) -> None:
    environment = {"DATABASE_URL": database_url, "JOBCACHE_BACKEND": "null"}
    async with start(**environment, JOBCACHE_POOL_RECYCLE="3600") as service:
        assert service.services.database.connections.engine.pool._recycle == 3600
        assert service.settings.pool_recycle == 3600
    database = Database(database_url, pool_recycle=0)
    (first,) = await database.read(text("SELECT pg_backend_pid()"), "test")
    (second,) = await database.read(text("SELECT pg_backend_pid()"), "test")
    assert first != second
    await closed(database)
