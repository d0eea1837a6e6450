"""Finds the master that Redis sentinels name, and follows its failovers.

All sentinels are asked whenever a connection is made. The answer that knows the latest failover is
used. This class also subscribes to their announcements of failovers, because an old master that is
still running accepts writes and reads for some seconds:

    the sentinels promote B; A does not know it yet
    a new process publishes v2 to B; the older processes would go on reading v1 from A

Rejected: redis-py's `Sentinel`. It uses the first sentinel of its list that answers, waits for each
one that hangs, and does not notice a failover.
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
_BETWEEN_SUBSCRIPTIONS = 1.0
_ASK_ANYWAY = 5.0  # the connection of a sentinel that announces nothing may be lost


class _MasterReport(NamedTuple):
    """The master that a sentinel names. The greatest report is used.

    Attributes:
        epoch: the number of the latest failover that the sentinel knows.
        settled: whether that failover is over. During a failover the sentinel that leads it knows
            its number, but still names the old master. The others name the new master as soon as
            it is promoted.
        master: the master that the sentinel names.
    """

    epoch: int
    settled: bool
    master: Address


class Sentinels:
    """Names the master to redis-py's connection pool, as redis-py's own `Sentinel` would.

    Args:
        clients: one for each sentinel.
        service: the name of the master's service.

    Attributes:
        master: the address that was named last.
        switches: how often the master has changed.
        on_switch: called after each change.
    """

    def __init__(self, clients: Sequence[Redis], service: str) -> None:
        self.master: Address | None = None
        self.switches = 0
        self.on_switch: list[Callable[[], None]] = []
        self._questions = itertools.count(1)
        self._answered = 0
        self._clients = clients
        self._service = service
        self._listening: list[asyncio.Task[None]] = []

    async def discover_master(self, _service: str) -> Address:
        """Return the address of the master, from the sentinel that knows the latest failover.

        Raises:
            MasterNotFoundError: no sentinel names a master that it finds in order.
        """
        if not self._listening:
            self._listening = [asyncio.create_task(self._listen(to)) for to in self._clients]
        question = next(self._questions)
        named = await self._ask()
        if self.master is not None and question < self._answered:
            return self.master  # a later question was answered first
        self._answered = question
        if named != self.master:
            self.master = named
            self.switches += 1
            for notify in self.on_switch:
                notify()
        return named

    async def _ask(self) -> Address:
        pending = {asyncio.create_task(self._answer_of(client)) for client in self._clients}
        answers: list[_MasterReport] = []
        try:
            while pending:
                # A sentinel that hangs costs a short wait only.
                done, pending = await asyncio.wait(
                    pending,
                    timeout=_GRACE if answers else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not done:
                    break
                answers += [answer for task in done if (answer := task.result()) is not None]
        finally:
            await end_all(pending)
        if not answers:
            raise MasterNotFoundError(f"no sentinel knows a master of {self._service!r}")
        return max(answers).master

    async def _answer_of(self, client: Redis) -> _MasterReport | None:
        with suppress(RedisError, OSError), closed_is_lost():
            masters: Any = await client.sentinel_masters()
            state = masters.get(self._service)
            if state and state["is_master"] and not state["is_sdown"] and not state["is_odown"]:
                settled = "failover_in_progress" not in state["flags"]
                return _MasterReport(
                    state["config-epoch"], settled, Address(state["ip"], state["port"])
                )
        return None

    async def _listen(self, client: Redis) -> None:
        while True:
            with suppress(RedisError, OSError), closed_is_lost():
                async with client.pubsub() as subscription:
                    await subscription.subscribe("+switch-master")
                    while True:
                        with suppress(MasterNotFoundError):
                            await self.discover_master(self._service)
                        await subscription.get_message(timeout=_ASK_ANYWAY)
            await asyncio.sleep(_BETWEEN_SUBSCRIPTIONS)

    async def aclose(self) -> None:
        """Close the connections."""
        await end_all(self._listening)
        for client in self._clients:
            await client.aclose()
