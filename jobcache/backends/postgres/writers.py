"""The connections on which a process writes, as the feed uses them: to notify, and for heartbeats.

A service gives the feed its own pool, the one of its reads and writes, because the heartbeats prove
that this pool leads to the server that notifies. Without one, `OwnPool` opens two connections.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import asyncpg

from jobcache.backends.postgres.connection import ERRORS, brief, is_reset
from jobcache.errors import CacheUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

NOTIFY = (
    "SELECT pg_notify(channel, payload)"
    " FROM unnest($1::text[], $2::text[]) AS sent (channel, payload)"
)
"""Sends several notifications. Its parameters are the channels and the payloads."""

_PATIENCE = 5.0  # seconds
_CONNECTIONS = 2
_FULL = (asyncpg.ProgramLimitExceededError, asyncpg.InsufficientResourcesError)
"""The queue of notifications, the disk or the memory is full."""


class NotNow(CacheUnavailable):
    """The server refuses for now, or no connection became free. The connections are in order."""


class Writers(Protocol):
    """A pool of connections to the primary, through a pooler or not."""

    async def notify(self, notifications: Sequence[tuple[str, str]]) -> None:
        """Send notifications, each a channel and a payload, in one transaction.

        Raises:
            NotNow: they were not sent, and other connections would not help.
            CacheUnavailable: they may not have been sent.
        """

    async def renew(self) -> None:
        """Have everything that begins from now on use new connections.

        Called when the present ones may lead to another server than the listening connection does.
        """

    async def aclose(self) -> None:
        """Close what the feed alone has used."""


class OwnPool:
    """A small pool of the feed's own.

    Args:
        url: of the database, as asyncpg takes it; it may lead through a pooler.
        options: further arguments of `asyncpg.connect`.
    """

    def __init__(self, url: str, **options: Any) -> None:  # noqa: ANN401 - of asyncpg
        self._url = url
        self._options = options
        self._pool: Any = None

    async def notify(self, notifications: Sequence[tuple[str, str]]) -> None:
        """Send notifications in one transaction."""
        channels, payloads = map(list, zip(*notifications, strict=True))
        if self._pool is None:
            self._pool = asyncpg.create_pool(
                self._url,
                min_size=0,
                max_size=_CONNECTIONS,
                statement_cache_size=0,  # a pooler may swap servers between two statements
                **{"timeout": _PATIENCE, **self._options},
            )
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._pool  # does nothing once it is ready
                async with self._pool.acquire() as connection, connection.transaction():
                    await connection.fetch(NOTIFY, channels, payloads)
        except _FULL as error:
            raise NotNow(brief(error)) from error
        except asyncpg.DataError:
            raise  # another attempt would end in the same way
        except ERRORS as error:
            raise CacheUnavailable(brief(error)) from error
        except RuntimeError as error:
            if not is_reset(error):
                raise
            raise CacheUnavailable(brief(error)) from error

    async def renew(self) -> None:
        """Replace the connections."""
        if self._pool is not None:
            with suppress(asyncpg.InterfaceError):  # it is not ready yet
                await self._pool.expire_connections()

    async def aclose(self) -> None:
        """Close the connections."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.terminate()
