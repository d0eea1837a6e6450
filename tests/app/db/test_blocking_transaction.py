"""Transactions of threads: committed, rolled back, cut off by the time limit."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from sqlalchemy import insert, select

from app.db import database as database_module
from app.db.blocking_transaction import blocking_transaction
from app.db.database import Database
from app.db.errors import DatabaseUnavailable
from app.db.tables import clients
from tests.pairs import DATABASES


@pytest.fixture
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture
def database(portal: BlockingPortal, database_url: str) -> Iterator[Database]:
    database = portal.call(Database, database_url)
    portal.call(database.prepare_tables)
    yield database
    portal.call(database.aclose)


def names(portal: BlockingPortal, database: Database) -> list[str]:
    rows = portal.call(database.read, select(clients.c.id), "test")
    return [row.id for row in rows]


NEW = insert(clients).values(id="acme", version=1)


@pytest.mark.parametrize("database_url", DATABASES, indirect=True)
def test_the_end_of_the_block_commits(portal: BlockingPortal, database: Database) -> None:
    with blocking_transaction(portal, database) as connection:
        portal.call(connection.execute, NEW)
    assert names(portal, database) == ["acme"]


@pytest.mark.parametrize("database_url", DATABASES, indirect=True)
def test_an_error_in_the_block_rolls_back(portal: BlockingPortal, database: Database) -> None:
    def fail() -> None:
        with blocking_transaction(portal, database) as connection:
            portal.call(connection.execute, NEW)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(portal, database) == []


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_the_time_limit_rolls_back(
    portal: BlockingPortal, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the block had not ended: what it has done so far is not committed."""
    monkeypatch.setattr(database_module, "_LONGEST_WRITE", 0.3)

    def take_too_long() -> None:
        with blocking_transaction(portal, database) as connection:
            portal.call(connection.execute, NEW)
            give_up_at = time.monotonic() + 60
            while not connection.closed:
                assert time.monotonic() < give_up_at
                time.sleep(0.01)

    with pytest.raises(DatabaseUnavailable):
        take_too_long()
    assert names(portal, database) == []


def test_a_database_that_is_away_refuses_the_block(portal: BlockingPortal) -> None:
    database = portal.call(Database, "postgresql+asyncpg://127.0.0.1:1/none")
    with pytest.raises(DatabaseUnavailable), blocking_transaction(portal, database):
        raise AssertionError
    portal.call(database.aclose)
