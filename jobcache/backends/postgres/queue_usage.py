"""The server's queue of notifications: how full it is.

The queue belongs to the whole server. It grows while a listener of any database does not read, or
is idle in a transaction. When it is full, every commit that notifies fails with SQLSTATE 54000. It
stays full until somebody asks how full it is, even if all listeners have read everything.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import asyncpg

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

logger = logging.getLogger("jobcache")

_EVERY = 5.0  # seconds
_PATIENCE = 5.0  # seconds
_WORTH_A_LINE = 0.05  # the share of the queue from which its growth is logged


class QueueUsage:
    """Asks for the usage of the queue, and logs when it grows.

    Attributes:
        share: the part of the queue that is in use, from 0 to 1; None until it was asked for.
    """

    def __init__(self) -> None:
        self.share: float | None = None
        self._logged = _WORTH_A_LINE

    async def poll(
        self,
        connection: Any,  # noqa: ANN401 - asyncpg has no types
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        """Ask again and again, until the connection is lost."""
        while True:
            try:
                async with asyncio.timeout(_PATIENCE):
                    self.note(await connection.fetchval("SELECT pg_notification_queue_usage()"))
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                if connection.is_closed():
                    return
            await sleep(_EVERY)

    def note(self, share: float) -> None:
        """Note the usage; log it each time that it has doubled, and when it is low again."""
        self.share = share
        if share >= 2 * self._logged:
            self._logged = share
            logger.warning(
                "the queue of notifications in PostgreSQL is %.0f %% full: a session that listens"
                " does not read, or is idle in a transaction; when the queue is full, writes fail",
                share * 100,
            )
        elif share < _WORTH_A_LINE and self._logged > _WORTH_A_LINE:
            self._logged = _WORTH_A_LINE
            logger.warning("the queue of notifications in PostgreSQL is no longer full")
