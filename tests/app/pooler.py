"""PgBouncer for tests: a machine without it skips them, CI must have it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from app.devservers import PgBouncerServer, PostgresServer, ServerMissing
from app.devservers.programs import pgbouncer_program


def pgbouncer_installed() -> None:
    """Skip the test if PgBouncer is missing, and fail in CI."""
    try:
        pgbouncer_program()
    except ServerMissing as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def pgbouncer(postgres: PostgresServer) -> Iterator[PgBouncerServer]:
    """PgBouncer in transaction mode, before the server that the tests share."""
    pgbouncer_installed()
    with PgBouncerServer(postgres) as server:
        yield server
