"""A pool never mixes connections to two servers that have had the same address."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import event, text

from app.db.database import Database
from app.devservers import PostgresServer

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
