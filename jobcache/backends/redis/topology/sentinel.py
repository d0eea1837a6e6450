"""The master that sentinels name.

They are asked whenever a connection is made; of several answers, the one from the latest failover
counts. They are listened to as well, for a master that is deposed while it lives goes on taking
connections for some seconds:

    the sentinels promote B; A has not been told yet
    a new process publishes v2 to B; the old ones would go on reading v1 from A

Rejected: redis-py's `Sentinel`. It believes whichever sentinel answers first in the order of its
list, waits for each that hangs, and hears of no failover.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import RedisError

from jobcache.backends._closing import end_all
from jobcache.backends.redis.redis_py import closed_is_lost
from jobcache.backends.redis.url import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis.asyncio import Redis

# In seconds.
_GRACE = 0.025  # for the other sentinels, once one has answered
_BETWEEN_LISTENINGS = 1.0
_LOOK_ANYWAY = 5.0  # a sentinel that has nothing to say may have been cut off


class _Word(NamedTuple):
    """A sentinel's word. The greater one is to be believed.

    Attributes:
        epoch: the number of the last failover it knows of.
        settled: that is over. While it goes on, the sentinel that leads it knows its number, but
            still names the old master; the others name the new one as soon as that is promoted.
        master: whom it names.
    """

    epoch: int
    settled: bool
    master: Address


class Sentinels:
    """What names the master; redis-py's connections ask it where to go.

    Args:
        clients: of the sentinels.
        service: what they call the master.

    Attributes:
        master: the one they have named last.
        switches: how often that was another one than before.
        deposed: are called then.
    """

    def __init__(self, clients: Sequence[Redis], service: str) -> None:
        self.master: Address | None = None
        self.switches = 0
        self.deposed: list[Callable[[], None]] = []
        self._questions = itertools.count(1)
        self._answered = 0
        self._clients = clients
        self._service = service
        self._listening: list[asyncio.Task[None]] = []

    async def discover_master(self, _service: str) -> Address:
        """Where the master is, in the words of the sentinel that knows of the latest failover.

        Raises:
            MasterNotFoundError: no sentinel names one that it finds well.
        """
        if not self._listening:
            self._listening = [asyncio.create_task(self._listen(to)) for to in self._clients]
        question = next(self._questions)
        named = await self._ask()
        if self.master is not None and question < self._answered:
            return self.master  # whoever asked later has heard sooner
        self._answered = question
        if named != self.master:
            self.master = named
            self.switches += 1
            for deposed in self.deposed:
                deposed()
        return named

    async def _ask(self) -> Address:
        pending = {asyncio.create_task(self._word_of(client)) for client in self._clients}
        words: list[_Word] = []
        try:
            while pending:
                # One that hangs holds nobody up for long.
                done, pending = await asyncio.wait(
                    pending,
                    timeout=_GRACE if words else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not done:
                    break
                words += [word for task in done if (word := task.result()) is not None]
        finally:
            await end_all(pending)
        if not words:
            raise MasterNotFoundError(f"no sentinel knows a master of {self._service!r}")
        return max(words).master

    async def _word_of(self, client: Redis) -> _Word | None:
        with suppress(RedisError, OSError), closed_is_lost():
            masters: Any = await client.sentinel_masters()
            state = masters.get(self._service)
            if state and state["is_master"] and not state["is_sdown"] and not state["is_odown"]:
                settled = "failover_in_progress" not in state["flags"]
                return _Word(state["config-epoch"], settled, Address(state["ip"], state["port"]))
        return None

    async def _listen(self, client: Redis) -> None:
        while True:
            with suppress(RedisError, OSError), closed_is_lost():
                async with client.pubsub() as news:
                    await news.subscribe("+switch-master")
                    while True:
                        with suppress(MasterNotFoundError):
                            await self.discover_master(self._service)
                        await news.get_message(timeout=_LOOK_ANYWAY)
            await asyncio.sleep(_BETWEEN_LISTENINGS)

    async def aclose(self) -> None:
        """Close the connections."""
        await end_all(self._listening)
        for client in self._clients:
            await client.aclose()
