"""A guard around any backend whose store can be away.

Nobody waits for the store, and nobody trusts it before it has been told what it missed.

    closed   operations go through, each with a soft deadline. A few failures in a row open it.
    open     operations fail at once. One background task probes the store, with jittered backoff.

A fence or an offer that did not get through leaves its key *unsettled*: the store may hold what is
older than the source. Such a key is not read here; the missed step is repeated, with its own
ticket, until it succeeds, and before the breaker closes:

    W's fence and offer are lost; the source has v2, and the store comes back with v1
    repeating the offer removes v1, or raises the floor of a fence that another writer left

Rejected: to purge the unsettled keys instead. A purge leaves standing fences, and then

    W1 fences, commits v2; W2 cannot fence, commits v3, cannot offer; the key is purged
    W1 offers v2 as the last out of a fence that never heard of v3, and v2 is served

An operation that runs out of its deadline is not cancelled. It goes on in a task of its own, up to
the limits of its socket: cancelling it would drop the connection, and a burst of deadlines would
become a burst of reconnects. Its late effect is harmless, by the protocol: a late fence expires,
a late offer stores nothing that has been fenced since.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from jobcache.errors import CacheUnavailable, UnreadableCell
from jobcache.protocol import CacheBackend, Condition, Entry, Ping, PurgeAll

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

    from jobcache.protocol import Offered, Standing

T = TypeVar("T")
logger = logging.getLogger("jobcache")


class RemoteBackend(CacheBackend, Ping, Protocol):
    """What can be guarded."""


@dataclass(frozen=True, slots=True, eq=False)
class _Missed:
    """A step the store was not told of. Compared by identity: each attempt is its own."""

    step: Literal["fence", "offer", "purge"]
    version: int | None = None  # of an offer; None for a withdrawal


class Guard:
    """A backend with a deadline, a circuit breaker and recovery.

    Args:
        backend: the one to guard.
        deadline: seconds an operation may take before its caller goes on without it.
        failures: how many in a row open the breaker.
        probe_after: seconds until the first probe; doubled for each that fails, with jitter.
        probe_limit: the most seconds between probes, and for one probe to take.
        most_missed: with more missed steps than these, the whole namespace is purged instead.
        clock: monotonic time in seconds.
        sleep: waits for the given seconds.
    """

    def __init__(
        self,
        backend: RemoteBackend,
        *,
        deadline: float = 0.1,
        failures: int = 3,
        probe_after: float = 0.1,
        probe_limit: float = 1.0,
        most_missed: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._backend = backend
        self._deadline = deadline
        self._failures_allowed = failures
        self._probe_after = probe_after
        self._probe_limit = probe_limit
        self._most_missed = most_missed
        self._clock = clock
        self._sleep = sleep
        self._state: Literal["closed", "open"] = "closed"
        self._since = clock()
        self._reason = ""
        self._failures = 0
        self._missed: dict[str, dict[str, _Missed]] = {}  # by key, by ticket
        self._purge_everything = False
        self._recovery: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[Any]] = set()

    @property
    def name(self) -> str:
        """The guarded backend's."""
        return self._backend.name

    # --- the operations, guarded ---

    async def get(self, key: str) -> Entry | None:
        """See `CacheBackend`. An unsettled key is not read."""
        self._refuse_unsettled(key)
        return await self._run(self._backend.get(key))

    async def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """See `CacheBackend`. Unsettled keys are left out."""
        settled = [key for key in keys if not self._is_unsettled(key)]
        return await self._run(self._backend.get_many(settled))

    async def lease(self, key: str, ticket: str) -> Entry | Standing:
        """See `CacheBackend`. An unsettled key is not read."""
        self._refuse_unsettled(key)
        return await self._run(self._backend.lease(key, ticket))

    async def fence(self, key: str, ticket: str) -> None:
        """See `CacheBackend`."""
        await self._tell(self._backend.fence(key, ticket), key, ticket, _Missed("fence"))

    async def offer(self, key: str, ticket: str, entry: Entry | None) -> Offered:
        """See `CacheBackend`."""
        missed = _Missed("offer", None if entry is None else entry.version)
        return await self._tell(self._backend.offer(key, ticket, entry), key, ticket, missed)

    async def purge(self, keys: Sequence[str]) -> int:
        """See `CacheBackend`. What cannot be purged now is purged before it is read again."""
        try:
            return await self._run(self._backend.purge(keys))
        except CacheUnavailable:
            for key in keys:
                self._note(key, "", _Missed("purge"))
            raise

    async def purge_all(self) -> int:
        """See `PurgeAll`."""
        if not isinstance(self._backend, PurgeAll):
            raise CacheUnavailable(f"the {self.name} backend cannot list its keys")
        try:
            return await self._run(self._backend.purge_all(), deadline=None)
        except CacheUnavailable:
            self._purge_everything = True
            self._recover()
            raise

    def condition(self) -> Condition:
        """See `Watched`."""
        return Condition(
            available=self._state == "closed",
            state=self._state,
            age=self._clock() - self._since,
            reason=self._reason,
            unsettled=len(self._missed),
        )

    async def start(self) -> None:
        """Probe once, so that a store that is away from the beginning is known at once."""
        try:
            async with asyncio.timeout(self._probe_limit):
                await self._backend.ping()
        except (CacheUnavailable, TimeoutError) as error:
            self._open(str(error) or "no answer")

    async def aclose(self) -> None:
        """End the recovery and what is still under way, then close the backend."""
        tasks = [*self._running]
        if self._recovery is not None:
            tasks.append(self._recovery)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._backend.aclose()

    # --- the breaker ---

    async def _tell(
        self, operation: Coroutine[Any, Any, T], key: str, ticket: str, missed: _Missed
    ) -> T:
        def settle() -> None:
            # An offer is a writer's last word; a fence settles only its own attempt.
            if missed.step == "offer" or self._missed.get(key, {}).get(ticket) is missed:
                self._forget(key, ticket)

        try:
            return await self._run(operation, on_success=settle)
        except CacheUnavailable:
            self._note(key, ticket, missed)
            raise

    async def _run(
        self,
        operation: Coroutine[Any, Any, T],
        *,
        on_success: Callable[[], None] | None = None,
        deadline: float | None = -1,
    ) -> T:
        if self._state == "open":
            operation.close()
            raise CacheUnavailable(self._reason)
        task = asyncio.create_task(self._watch(operation, on_success))
        self._running.add(task)
        task.add_done_callback(self._ended)
        # wait(), unlike wait_for(), leaves the task alone when time is up or the caller has gone
        await asyncio.wait({task}, timeout=self._deadline if deadline == -1 else deadline)
        if task.done():
            return task.result()
        reason = f"no answer within {self._deadline:g} s"
        self._failed(reason)
        raise CacheUnavailable(reason)

    async def _watch(
        self, operation: Coroutine[Any, Any, T], on_success: Callable[[], None] | None
    ) -> T:
        try:
            result = await operation
        except UnreadableCell:
            self._failures = 0  # the store answers; it is the cell that is bad
            raise
        except CacheUnavailable as error:
            self._failed(str(error))
            raise
        self._failures = 0
        if on_success is not None:
            on_success()
        return result

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen: its caller may have gone on without it

    def _failed(self, reason: str) -> None:
        self._failures += 1
        if self._failures >= self._failures_allowed:
            self._open(reason)

    def _open(self, reason: str) -> None:
        if self._state == "closed":
            self._state, self._since, self._reason = "open", self._clock(), reason
            logger.warning(
                "the %s cache is away (%s): polls are answered from the source until it is back",
                self.name,
                reason,
            )
            self._recover()

    def _close(self) -> None:
        self._failures = 0
        if self._state == "open":
            away = self._clock() - self._since
            self._state, self._since, self._reason = "closed", self._clock(), ""
            logger.warning("the %s cache is back after %.1f s", self.name, away)

    # --- what the store has missed ---

    def _is_unsettled(self, key: str) -> bool:
        return self._purge_everything or key in self._missed

    def _refuse_unsettled(self, key: str) -> None:
        if self._is_unsettled(key):
            raise CacheUnavailable(f"the store has yet to be told of {key}")

    def _note(self, key: str, ticket: str, missed: _Missed) -> None:
        if self._purge_everything:
            return
        self._missed.setdefault(key, {})[ticket] = missed
        if len(self._missed) > self._most_missed:
            self._purge_everything = True
            self._missed.clear()
        self._recover()

    def _forget(self, key: str, ticket: str) -> None:
        tickets = self._missed.get(key, {})
        tickets.pop(ticket, None)
        if not tickets:
            self._missed.pop(key, None)

    def _recover(self) -> None:
        if self._recovery is None or self._recovery.done():
            self._recovery = asyncio.create_task(self._probe())

    async def _probe(self) -> None:
        pause = self._probe_after
        while self._state == "open" or self._missed or self._purge_everything:
            await self._sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - spreads the probes
            pause = min(2 * pause, self._probe_limit)
            try:
                async with asyncio.timeout(self._probe_limit):
                    await self._backend.ping()
                    await self._catch_up()
            except (CacheUnavailable, TimeoutError):
                continue
            except Exception:
                # Without a recovery the cache would stay away for ever.
                logger.exception("probing the %s cache failed", self.name)
                continue
            self._close()

    async def _catch_up(self) -> None:
        """Repeat what was missed, until nothing is: no await between the last look and the close.

        Missed steps of a store that is away for long are many, and one probe may not get through
        all of them; those it got through stay done.
        """
        while self._missed or self._purge_everything:
            if self._purge_everything:
                self._missed.clear()
                if isinstance(self._backend, PurgeAll):
                    await self._backend.purge_all()
                self._purge_everything = False
            for key, tickets in list(self._missed.items()):
                for ticket, missed in list(tickets.items()):
                    await self._repeat(key, ticket, missed)
                    if self._missed.get(key, {}).get(ticket) is missed:
                        self._forget(key, ticket)

    async def _repeat(self, key: str, ticket: str, missed: _Missed) -> None:
        if missed.step == "fence":
            await self._backend.fence(key, ticket)
        elif missed.step == "purge":
            await self._backend.purge([key])
        elif missed.version is None:
            await self._backend.offer(key, ticket, None)
        else:
            # Only the version: it removes what is older, and the next read stores a fresh body.
            outdated = Entry(missed.version, "", "", None, b"", "identity", 0, 0, 0)
            await self._backend.offer(key, ticket, outdated)
