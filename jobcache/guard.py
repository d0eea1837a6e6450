"""A guard around any backend whose store can be away.

Nobody waits for the store, and nobody trusts it before it has been told what it missed.

    closed   operations go through, each with a soft deadline. A few failures in a row open it.
    open     operations fail at once.

After any failure one background task probes the store, with jittered backoff, until it answers and
takes writes. A store that does not is set aside, whatever it still answers.

An offer that did not get through leaves its key *unsettled*: the store may hold what is older than
the source. Such a key is not read here; the offer is repeated, with its own ticket but without its
body, until it gets through, and before the breaker closes:

    W's offer is lost; the source has v2, and the store comes back with v1
    repeating the offer removes v1, or raises the floor of a fence that another writer left

Rejected: to purge the unsettled keys instead. A purge leaves standing fences, and then

    W1 fences, commits v2; W2 cannot fence, commits v3, cannot offer; the key is purged
    W1 offers v2 as the last out of a fence that never heard of v3, and v2 is served

A fence that did not get through is a fence that was lost: the protocol allows that, as long as its
writer offers. But it may still get through late, when its writer has long gone, and hold up the key
for as long as a fence lives; it is then withdrawn. What its writer offers must not be stored:

    W1's fence and offer are both late; W1 goes on; W2 fences, commits v3, offers; v3 is evicted
    W1's fence lands, then its offer of v2, as the last one out of a fence that never heard of v3

`JobCache` sees to that: behind a fence it is not sure of, it offers the version and not the body.

An operation that runs out of its deadline is not cancelled. It goes on in a task of its own, up to
the limits of its socket: cancelling it would drop the connection, and a burst of deadlines would
become a burst of reconnects. Neither its success nor its failure counts any more.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from jobcache.errors import CacheError, CacheUnavailable, UnreadableCell
from jobcache.protocol import CacheBackend, Condition, Entry, Ping, PurgeAll

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

    from jobcache.protocol import Offered, Standing

T = TypeVar("T")
logger = logging.getLogger("jobcache")


class RemoteBackend(CacheBackend, Ping, Protocol):
    """What can be guarded."""


@dataclass(slots=True, eq=False)
class _Missed:
    """A step the store was not told of. Compared by identity: each attempt is its own."""

    step: Literal["offer", "purge"]
    version: int | None = None  # of an offer; None for a withdrawal
    refusals: int = 0  # of a store that otherwise answers


_MOST_REFUSALS = 5
_SWEEP = 30.0  # seconds an operator waits while a whole namespace is emptied


class Guard:
    """A backend with a deadline, a circuit breaker and recovery.

    Args:
        backend: the one to guard.
        deadline: seconds an operation may take before its caller goes on without it.
        fence_deadline: the same for fences: without one, other processes may serve what is old,
            and to be right comes before to be fast.
        failures: how many in a row open the breaker.
        probe_after: seconds until the first probe; doubled for each that fails, with jitter.
        probe_limit: the most seconds between probes, and for one probe to take.
        most_missed: with more missed steps than these, the whole namespace is emptied instead.
        clock: monotonic time in seconds.
        sleep: waits for the given seconds.
    """

    def __init__(
        self,
        backend: RemoteBackend,
        *,
        deadline: float = 0.1,
        fence_deadline: float = 0.5,
        failures: int = 3,
        probe_after: float = 0.1,
        probe_limit: float = 1.0,
        most_missed: int = 2_000,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._backend = backend
        self._deadline = deadline
        self._fence_deadline = fence_deadline
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
        # Operations are numbered as they begin. Those begun before the last word of the store, be
        # it a success or a counted failure, say nothing new when they fail: a burst that waits
        # for our own pool is no outage.
        self._begun = 0
        self._last_word = 0
        self._missed: dict[str, dict[str, _Missed]] = {}  # by key, by ticket
        self._missed_steps = 0
        self._overflows = 0
        self._purge_everything = False
        self._doubted = False
        # Fences past their deadline, and whether their writer has offered meanwhile.
        self._late_fences: dict[tuple[str, str], bool] = {}
        self._strange: set[type[Exception]] = set()
        self._closed = False
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
        late = (key, ticket)

        def went_late(task: asyncio.Task[None]) -> None:
            self._late_fences[late] = False
            task.add_done_callback(landed)

        def landed(task: asyncio.Task[None]) -> None:
            if self._late_fences.pop(late) and self._ended_well(task):
                self._start(self._backend.offer(key, ticket, None))

        await self._run(self._backend.fence(key, ticket), went_late, deadline=self._fence_deadline)

    async def offer(self, key: str, ticket: str, entry: Entry | None) -> Offered:
        """See `CacheBackend`. If it does not get through, it is repeated until it does."""
        late = (key, ticket)
        if late in self._late_fences:
            self._late_fences[late] = True
        missed = _Missed("offer", None if entry is None else entry.version)

        def went_late(task: asyncio.Task[Offered]) -> None:
            task.add_done_callback(landed)

        def landed(task: asyncio.Task[Offered]) -> None:
            if self._ended_well(task):
                self._forget(key, ticket, missed)

        try:
            return await self._run(self._backend.offer(key, ticket, entry), went_late)
        except CacheUnavailable:
            self._note(key, ticket, missed)
            raise

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
            return await self._run(self._backend.purge_all(), deadline=_SWEEP)
        except CacheUnavailable:
            self._forget_everything()
            raise

    def condition(self) -> Condition:
        """See `Watched`."""
        return Condition(
            available=self._state == "closed",
            state=self._state,
            age=self._clock() - self._since,
            reason=self._reason,
            unsettled=None if self._purge_everything else len(self._missed),
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
        self._closed = True
        tasks = [*self._running]
        if self._recovery is not None:
            tasks.append(self._recovery)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._backend.aclose()

    # --- the breaker ---

    async def _run(
        self,
        operation: Coroutine[Any, Any, T],
        went_late: Callable[[asyncio.Task[T]], None] | None = None,
        *,
        deadline: float | None = None,
    ) -> T:
        """Run one operation of the backend.

        Args:
            operation: what to run.
            went_late: called with its task if it runs out of its deadline.
            deadline: in seconds; the guard's own if None.
        """
        if self._state == "open":
            operation.close()
            raise CacheUnavailable(self._reason)
        limit = self._deadline if deadline is None else deadline
        self._begun += 1
        number, began = self._begun, self._clock()
        task = self._start(operation)
        # wait(), unlike wait_for(), leaves the task alone when time is up or the caller has gone
        await asyncio.wait({task}, timeout=limit)
        if not task.done() and self._clock() - began > 1.5 * limit:
            # It is this loop that is late, not the store: the answer may be here, yet unread.
            await asyncio.wait({task}, timeout=limit)
        if not task.done():
            if went_late is not None:
                went_late(task)
            reason = f"no answer within {limit:g} s"
            self._failed(number, reason)
            raise CacheUnavailable(reason)
        try:
            result = task.result()
        except UnreadableCell:
            self._succeeded()  # the store answers; it is the cell that is bad
            raise
        except CacheError as error:
            self._failed(number, str(error))
            raise
        except Exception as error:
            if type(error) not in self._strange:
                self._strange.add(type(error))
                logger.exception("the %s cache failed in a way it should not", self.name)
            self._failed(number, str(error))
            raise CacheUnavailable(f"{type(error).__name__}: {error}") from error
        self._succeeded()
        return result

    def _start(self, operation: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(operation)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen: its caller may have gone on without it

    def _ended_well(self, task: asyncio.Task[Any]) -> bool:
        return not self._closed and not task.cancelled() and task.exception() is None

    def _succeeded(self) -> None:
        self._failures = 0
        self._last_word = self._begun

    def _failed(self, number: int, reason: str) -> None:
        if number > self._last_word:
            self._last_word = self._begun
            self._failures += 1
            if self._failures >= self._failures_allowed:
                self._open(reason)
        # Failures in a row are not the only sign: a full server answers gets, and nothing else.
        self._doubted = True
        self._recover()

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
        steps = self._missed.setdefault(key, {})
        self._missed_steps += ticket not in steps
        steps[ticket] = missed
        if self._missed_steps > self._most_missed:
            self._forget_everything()
        self._recover()

    def _forget(self, key: str, ticket: str, missed: _Missed) -> None:
        steps = self._missed.get(key, {})
        if steps.get(ticket) is missed:
            del steps[ticket]
            self._missed_steps -= 1
            if not steps:
                del self._missed[key]

    def _forget_everything(self) -> None:
        """Too much to remember: nothing is read until the namespace has been emptied."""
        self._missed.clear()
        self._missed_steps = 0
        self._overflows += 1
        self._purge_everything = True
        self._recover()

    def _recover(self) -> None:
        if not self._closed and (self._recovery is None or self._recovery.done()):
            self._recovery = asyncio.create_task(self._probe())

    async def _probe(self) -> None:
        pause = self._probe_after
        while self._doubted or self._state == "open" or self._missed or self._purge_everything:
            await self._sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - spreads the probes
            pause = min(2 * pause, self._probe_limit)
            try:
                async with asyncio.timeout(self._probe_limit):
                    self._doubted = False  # before: a failure meanwhile is a new doubt
                    await self._backend.ping()
                caught_up = await self._catch_up()
            except (CacheUnavailable, TimeoutError) as error:
                # A store that answers reads, but takes no writes, is found out here.
                self._open(str(error) or "no answer")
                continue
            except Exception:
                # Without a recovery the cache would stay away for ever.
                logger.exception("probing the %s cache failed", self.name)
                continue
            if caught_up:
                self._close()

    async def _catch_up(self) -> bool:
        """Tell the store what it missed. True once nothing is left, with no await after that look.

        What one attempt got through stays done.
        """
        while self._missed or self._purge_everything:
            if self._purge_everything:
                # What is missed while this runs is noted, and repeated after it.
                overflows = self._overflows
                if isinstance(self._backend, PurgeAll):
                    await self._backend.purge_all()
                self._purge_everything = overflows != self._overflows
            for key, steps in list(self._missed.items()):
                for ticket, missed in list(steps.items()):
                    if not await self._repeat(key, ticket, missed):
                        return False
        return True

    async def _repeat(self, key: str, ticket: str, missed: _Missed) -> bool:
        """Repeat one step, or give it up if the store, which answers, will not have it."""
        try:
            async with asyncio.timeout(self._probe_limit):
                if missed.step == "purge":
                    await self._backend.purge([key])
                elif missed.version is None:
                    await self._backend.offer(key, ticket, None)
                else:
                    await self._backend.offer(key, ticket, _outdated(missed.version))
        except TimeoutError:
            return False
        except Exception as error:  # noqa: BLE001 - whatever it is, the other keys wait for it
            missed.refusals += 1
            if missed.refusals < _MOST_REFUSALS:
                return False
            logger.warning(
                "the %s cache cannot be told of %r (%s): it may serve an old version until it"
                " expires",
                *(self.name, key, error),
            )
        self._forget(key, ticket, missed)
        return True


def _outdated(version: int) -> Entry:
    """Only a version: it removes what is older, and the next read stores a fresh body."""
    return Entry(version, "", "", None, b"", "identity", 0, 0, 0)
