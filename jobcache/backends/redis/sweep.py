"""Empty a namespace: scan all servers for its keys, and delete its cells."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from jobcache.backends.redis.cache_errors import translated
from jobcache.backends.redis.script_calls import Call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from jobcache.backends.redis.topology.single import Topology

logger = logging.getLogger("jobcache")

_EVICTED_TOGETHER = 100  # keys for each call of the script
_BETWEEN_REPORTS = 5.0  # seconds


class Sweep:
    """Empties a namespace once, and logs its progress every few seconds.

    Each step has the time limits of its connection.

    Args:
        topology: the servers.
        call: calls a script on the server that owns its key, and returns the reply first.
        prefix: the prefix of the namespace.
        clock: monotonic time in seconds.
    """

    def __init__(
        self,
        topology: Topology,
        call: Callable[[Call], Awaitable[Sequence[Any]]],
        prefix: str,
        clock: Callable[[], float],
    ) -> None:
        self._topology = topology
        self._call = call
        self._prefix = prefix
        self._clock = clock
        self._scanned = 0
        self._dropped = 0
        self._began = self._reported_at = clock()

    async def run(self) -> int:
        """Delete all cells of the namespace; return their number. Other keys are not touched.

        Raises:
            CacheError: a server did not answer.
        """
        pattern = f"{_escaped(self._prefix)}*"
        with translated():
            await self._topology.refresh()
        for server in self._topology.servers():
            cursor = 0
            while True:
                with translated():
                    cursor, names = await server.scan(cursor, pattern)
                await self._evict(names)
                if cursor == 0:
                    break
        if self._reported_at != self._began:
            self._report("emptied")
        return self._dropped

    async def _evict(self, names: Sequence[bytes]) -> None:
        """Delete the keys that hold cells of this namespace."""
        most = 1 if self._topology.is_sharded else _EVICTED_TOGETHER
        starts = range(0, len(names), most)
        calls = [
            Call("evict", names[start], (), tuple(names[start + 1 : start + most]))
            for start in starts
        ]
        replies = await asyncio.gather(*map(self._call, calls))
        self._scanned += len(names)
        self._dropped += sum(dropped for dropped, *_ in replies)
        if self._clock() - self._reported_at >= _BETWEEN_REPORTS:
            self._reported_at = self._clock()
            self._report("emptying")

    def _report(self, verb: str) -> None:
        logger.info(
            "%s the cache under the prefix %r: %d keys looked at, %d entries dropped in %.0f s",
            *(verb, self._prefix, self._scanned, self._dropped, self._clock() - self._began),
        )


def _escaped(text: str) -> str:
    """Return a glob pattern that matches exactly this text."""
    return "".join(f"\\{char}" if char in "*?[]\\^" else char for char in text)
