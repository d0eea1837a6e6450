"""A pool never mixes connections to two servers that have had one address; when it is renewed."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlalchemy import ARRAY, Text, bindparam, event, text

from app.db import connections as connections_module
from app.db import database as database_module
from app.db import notifications
from app.db.database import Database
from app.db.errors import DatabaseUnavailable
from app.db.notifications import DatabaseWriters
from app.db.postgres_lock import PostgresLock
from app.db.process_lock import Hold
from app.devservers import PostgresServer
from jobcache.backends.postgres.writers import NotNow

postgres_only = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)

SERVER = text("SELECT pg_postmaster_start_time()::text")


async def servers(database: Database, connections: int) -> list[str]:
    """Which servers a pool's connections lead to, in the order in which they were asked."""
    found = await asyncio.gather(*(database.read(SERVER, "test") for _ in range(connections)))
    return [rows[0][0] for rows in found]


async def test_a_connection_to_another_server_has_those_before_replaced(
    postgres: PostgresServer,
) -> None:
    """Nothing else tells: the former primary lives on, and none of its connections breaks."""
    with PostgresServer() as new, TemporaryDirectory(prefix="pg-", dir="/tmp") as directory:
        address, moved = Path(directory) / "address", Path(directory) / "moved"
        address.symlink_to(postgres.socket_directory)
        database = Database(f"postgresql+asyncpg://postgres@/postgres?host={address}")
        old = set(await servers(database, 3))
        assert len(old) == 1
        moved.symlink_to(new.socket_directory)
        os.replace(moved, address)  # noqa: PTH105 - atomic, of the link itself
        assert set(await servers(database, 3)) == old  # all have a connection, so none is opened
        await servers(database, 4)  # this opens one
        assert not old & set(await servers(database, 4))
        await database.aclose()


async def test_a_pool_that_is_renewed_again_and_again_while_it_connects_is_no_error(
    postgres: PostgresServer,
) -> None:
    """Several heartbeats fail during a failover, and each has the pool renewed."""
    database = Database(postgres.url("postgres"))
    connections = database.connections
    made = 0

    def renew(*_: object) -> None:
        nonlocal made
        made += 1
        if made <= 3:
            connections.renew()

    event.listen(connections.engine.sync_engine, "connect", renew)
    assert len(await servers(database, 1)) == 1
    assert made == 4
    await database.aclose()


async def test_an_attempt_that_began_before_the_move_does_not_bring_the_former_server_back(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the attempt that ends last would decide which server is used."""
    ask, held, asked = connections_module._server_of, asyncio.Event(), asyncio.Event()

    async def slowly(connection: object) -> str:
        server = await ask(connection)
        if not asked.is_set():
            asked.set()
            await held.wait()
        return server

    with PostgresServer() as new, TemporaryDirectory(prefix="pg-", dir="/tmp") as directory:
        address, moved = Path(directory) / "address", Path(directory) / "moved"
        address.symlink_to(postgres.socket_directory)
        database = Database(f"postgresql+asyncpg://postgres@/postgres?host={address}")
        (old,) = await servers(database, 1)
        async with database.connections.reader.connect():
            monkeypatch.setattr(connections_module, "_server_of", slowly)
            late = asyncio.create_task(servers(database, 1))
            await asked.wait()
            moved.symlink_to(new.socket_directory)
            os.replace(moved, address)  # noqa: PTH105 - atomic, of the link itself
            (current,) = await servers(database, 1)
            assert current != old
            held.set()
            assert await late == [current]
        assert set(await servers(database, 4)) == {current}
        await database.aclose()


@postgres_only
async def test_a_lock_on_a_former_server_is_lost(database: Database) -> None:
    lock = PostgresLock(database.connections, lambda: None)
    assert await lock.try_alone() is Hold.ALONE
    assert not await lock.check()
    database.connections.renew()
    with pytest.raises(DatabaseUnavailable, match="another server"):
        await lock.check()
    assert await lock.try_alone() is Hold.ALONE
    await lock.aclose()


REFUSAL = """
    CREATE FUNCTION refuse(text[], text[]) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
        RAISE 'too many notifications in the NOTIFY queue' USING ERRCODE = '54000';
    END $$"""


@postgres_only
async def test_a_full_queue_needs_no_other_connections(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.write(text(REFUSAL))
    monkeypatch.setattr(
        notifications,
        "_NOTIFY",
        text("SELECT refuse(:channels, :payloads)").bindparams(
            bindparam("channels", type_=ARRAY(Text)), bindparam("payloads", type_=ARRAY(Text))
        ),
    )
    with pytest.raises(NotNow, match="too many notifications"):
        await DatabaseWriters(database).notify([("jobcache", "k")])


@postgres_only
async def test_a_busy_pool_needs_no_other_connections(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_LONGEST_READ", 0.05)
    writers = DatabaseWriters(database)
    async with AsyncExitStack() as stack:
        for _ in range(connections_module._CONNECTIONS + 1):
            await stack.enter_async_context(database.connections.engine.connect())
        with pytest.raises(NotNow):
            await writers.notify([("jobcache", "k")])
    await writers.notify([("jobcache", "k")])
