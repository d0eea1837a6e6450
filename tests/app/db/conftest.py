"""A database of a test's own, whichever one `database_url` says."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from app.db.database import Database
from tests.app.db.databases import closed


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.prepare_tables()
    yield database
    await closed(database)
