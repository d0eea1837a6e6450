"""PgBouncer for tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.devservers import PgBouncerServer, PostgresServer
from app.devservers.programs import pgbouncer_program
from tests.installed import require_program


@pytest.fixture(scope="module")
def pgbouncer(postgres: PostgresServer) -> Iterator[PgBouncerServer]:
    """PgBouncer in transaction mode, before the server that the tests share."""
    require_program(pgbouncer_program)
    with PgBouncerServer(postgres) as server:
        yield server
