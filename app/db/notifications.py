"""Notifications of PostgreSQL for the cache: the connection that listens, the pool that sends."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import asyncpg
from sqlalchemy import ARRAY, Text, bindparam, text
from sqlalchemy.engine import make_url

from app.db.driver_errors import is_refused
from app.db.errors import DatabaseUnavailable
from app.db.url import read_postgres_url
from jobcache import CacheUnavailable, SettingsError
from jobcache.backends.heartbeat_feed import FeedLost, FeedUnsupported
from jobcache.backends.postgres.connection import listen
from jobcache.backends.postgres.factory import APPLICATION_NAME, LISTENER
from jobcache.backends.postgres.writers import NotNow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.db.database import Database
    from jobcache.backends.postgres.connection import Connect

_NOTIFY = text(
    "SELECT pg_notify(channel, payload)"
    " FROM unnest(:channels, :payloads) AS sent (channel, payload)"
).bindparams(bindparam("channels", type_=ARRAY(Text)), bindparam("payloads", type_=ARRAY(Text)))


class DatabaseWriters:
    """The service's own pool, as the feed of the cache uses it.

    Args:
        database: the database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def notify(self, notifications: Sequence[tuple[str, str]]) -> None:
        """Send notifications, each a channel and a payload, in one statement.

        Raises:
            NotNow: they were not sent, and other connections would not help.
            CacheUnavailable: they may not have been sent.
        """
        channels, payloads = map(list, zip(*notifications, strict=True))
        try:
            await self._database.read(_NOTIFY, "feed", channels=channels, payloads=payloads)
        except DatabaseUnavailable as error:
            cause = error.__cause__ or error
            if is_refused(cause) or self._database.connections.exhausted:
                raise NotNow(str(error)) from error
            raise CacheUnavailable(str(error)) from error

    async def renew(self) -> None:
        """Have everything that begins from now on use new connections."""
        self._database.connections.renew()

    async def aclose(self) -> None:
        """Do nothing: the pool belongs to the service."""


def listener(url: str) -> Connect:
    """Return what opens the listening connection.

    Args:
        url: an SQLAlchemy URL of PostgreSQL, without a pooler.
    """
    address = read_postgres_url(make_url(url))
    parsed, given = address.url, dict(address.arguments)
    for name in ("prepared_statement_cache_size", "command_timeout"):
        given.pop(name, None)
    settings = {"application_name": APPLICATION_NAME, **given.pop("server_settings", {})}
    place: dict[str, Any] = {
        "host": parsed.query.get("host", parsed.host),
        "port": parsed.query.get("port", parsed.port),
        "user": parsed.username,
        "password": parsed.password,
        "database": parsed.database,
    }
    arguments = {
        **LISTENER,
        **{name: value for name, value in place.items() if value is not None},
        **given,
        "statement_cache_size": 0,
        "server_settings": settings,
    }
    if isinstance(arguments.get("port"), str):
        arguments["port"] = int(arguments["port"])
    return partial(asyncpg.connect, **arguments)


async def check_listener(url: str) -> None:
    """Find out whether a pooler stands before the server. A server that is away is no error.

    Raises:
        SettingsError: it does.
    """
    try:
        async with listen(listener(url), (), _ignore, _ignore):
            return
    except FeedUnsupported as error:
        raise SettingsError("DATABASE_DIRECT_URL", "", str(error)) from error
    except FeedLost:
        return


def _ignore(*_: object) -> None:
    """Take no notice of an event."""
