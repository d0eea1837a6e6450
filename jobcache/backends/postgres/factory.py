"""From URLs to the backend "postgres"."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import asyncpg

from jobcache.backends.postgres.backend import PostgresBackend
from jobcache.backends.postgres.feed import PostgresFeed
from jobcache.backends.postgres.payloads import channel_of
from jobcache.backends.postgres.writers import OwnPool
from jobcache.errors import SettingsError, redacted

if TYPE_CHECKING:
    from jobcache.backends.postgres.backend import LocalCells
    from jobcache.backends.postgres.connection import Connect
    from jobcache.backends.postgres.writers import Writers

APPLICATION_NAME = "jobcache feed"
"""What pg_stat_activity shows of the listening connection."""
LISTENER = {
    "timeout": 5,
    "statement_cache_size": 0,
    "server_settings": {"application_name": APPLICATION_NAME},
}
"""Arguments of `asyncpg.connect` for the listening connection."""


def make_postgres(
    local: LocalCells, connect: Connect, writers: Writers, prefix: str
) -> PostgresBackend:
    """Return the backend on connections that the caller opens.

    Args:
        local: the local tier.
        connect: opens the listening connection, of asyncpg. It must not lead through a pooler.
        writers: the connections on which this process writes.
        prefix: names the channel; all processes that share documents have the same.
    """
    return PostgresBackend(local, PostgresFeed(connect, writers, channel=channel_of(prefix)))


def from_url(local: LocalCells, url: str, direct_url: str, prefix: str) -> PostgresBackend:
    """Return the backend on connections of its own.

    Args:
        local: the local tier.
        url: of the database.
        direct_url: of the same database, without a pooler; empty: `url` has none.
        prefix: as for `make_postgres`.

    Raises:
        SettingsError: a URL cannot be used.
    """
    connect = partial(asyncpg.connect, _dsn("DATABASE_DIRECT_URL", direct_url or url), **LISTENER)
    return make_postgres(local, connect, OwnPool(_dsn("DATABASE_URL", url)), prefix)


def _dsn(variable: str, url: str) -> str:
    """Return a URL as asyncpg takes it, without the name of the driver for SQLAlchemy."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.partition("+")[0] not in {"postgres", "postgresql"}:
        allowed = "backend `postgres` needs the URL of a PostgreSQL database"
        raise SettingsError(variable, redacted(url), allowed)
    return f"postgresql://{rest}"
