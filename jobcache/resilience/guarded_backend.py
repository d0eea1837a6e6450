"""A guard around any backend whose store can be away.

Nobody waits for the store, and nobody trusts it before it has been told what it missed.

Each operation has a soft deadline. The breaker (`breaker`) decides when the store is set aside; its
operations then fail at once. After any failure one background task probes the store, with jittered
backoff, until it answers and takes writes. A store that does not is set aside, whatever it still
answers.

Reads are the first to go on without a store. Writes try it for as long as it answers at all: one
that is full will not keep a fence, but empties the cell, and other processes may read from a store
that this one has set aside. If it is silent, fences are the last to give it up, and so the other
processes have time to notice before something is committed that they are not told of.

A publish that did not get through leaves its key *pending*: the store may hold what is older than
the source. Such a key is not read here; the publish is repeated, with its own token but without its
body, until it gets through, and before the breaker closes:

    W's publish is lost; the source has v2, and the store comes back with v1
    repeating the publish removes v1, or raises the floor of a fence that another writer left

Rejected: to purge the pending keys instead. A purge leaves standing fences, and then

    W1 fences, commits v2; W2 cannot fence, commits v3, cannot publish; the key is purged
    W1 publishes v2 as the last out of a fence that never heard of v3, and v2 is served

Other processes may have missed something as well, and come back later than this one. So what was
stored before an outage ended is not served again before the source has confirmed it:

    Redis hangs; W in process A commits v2, which Redis does not hear of
    Redis goes on; process B is the first to notice, reads v1; A repeats its publish

A fence that did not get through is a fence that was lost: the protocol allows that, as long as its
writer publishes. But it may still get through late, when its writer has long gone, and hold up the
key for as long as a fence lives; it is then withdrawn. What its writer publishes must not be
stored:

    W1's fence and publish are both late; W1 goes on; W2 fences, commits v3, publishes; v3 is
    evicted W1's fence lands, then its publish of v2, as the last one out of a fence that never
    heard of v3

`JobCache` sees to that: behind a fence it is not sure of, it publishes the version and not the
body.

An operation that runs out of its deadline is not cancelled. It goes on by itself, up to the limits
of its socket: cancelling it would drop the connection, and a burst of deadlines would become a
burst of reconnects. Neither its success nor its failure counts any more.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from jobcache._concurrency.batching import TickBuffer
from jobcache.errors import (
    CacheContended,
    CacheError,
    CacheUnavailable,
    NamespaceConflict,
    UnreadableCell,
)
from jobcache.observability.log_limit import LogLimit
from jobcache.protocol.backend import (
    CLOCK_SKEW_MS,
    CacheBackend,
    Entry,
    Health,
    SupportsBodyCheck,
    SupportsCallbackGetMany,
    SupportsChangeFeed,
    SupportsLeaseTime,
    SupportsNamespaceOwner,
    SupportsPing,
    SupportsPurgeAll,
)
from jobcache.resilience.circuit_breaker import Breaker
from jobcache.resilience.deadline import Deadline, ends_within
from jobcache.resilience.replay_log import PendingOperation, ReplayLog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence

    from jobcache.protocol.backend import ChangeFeed, LeaseResult, PublishResult

T = TypeVar("T")
logger = logging.getLogger("jobcache")

# Is called with what a get returns, or raises.
Then: TypeAlias = "Callable[[Entry | CacheError | None], object]"


class RemoteBackend(CacheBackend, SupportsPing, Protocol):
    """What can be guarded."""


_CLOSED = "it is being closed"
_MOST_REFUSALS = 5
_MOST_PUBLISHED = 10_000
_BATCH = 50  # gets that are one operation; larger ones have the store and us wait for each other
_AT_ONCE = 32  # missed steps that are repeated side by side


class GuardedBackend:
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
        clock_ms: wall-clock time in milliseconds since the epoch.
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
        probe_limit: float = 0.5,
        most_missed: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._backend = backend
        self._deadline = deadline
        self._fence_deadline = fence_deadline
        self._probe_after = probe_after
        self._probe_limit = probe_limit
        self._clock = clock
        self._clock_ms = clock_ms
        self._sleep = sleep
        self._breaker = Breaker(backend.name, failures=failures, clock=clock)
        self._missed = ReplayLog(most_missed)
        # What was loaded or committed before this moment is to be confirmed by the source.
        self._confirmed_from_ms = 0
        # Once the wall clock was set back, that moment may lie far ahead, and what is confirmed
        # bears an earlier time. So the publishes of this process are noted: their times, by key.
        self._published_since: dict[str, int] | None = None
        self._doubted = False
        self._overdue = False  # an operation has run out of its deadline since the last probe
        # Fences past their deadline, and whether their writer has published meanwhile.
        self._given_up_lines = LogLimit(1, clock)
        self._late_fences: dict[tuple[str, str], bool] = {}
        self._strange: set[type[BaseException]] = set()
        self._closed = False
        self._recovery: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[Any]] = set()
        self._gets: TickBuffer[tuple[str, Then]] = TickBuffer(self._get_together, _BATCH)
        self._ask_many = backend.ask_many if isinstance(backend, SupportsCallbackGetMany) else None

    @property
    def name(self) -> str:
        """The guarded backend's."""
        return self._backend.name

    # --- the operations, guarded ---

    async def get(self, key: str) -> Entry | None:
        """See `CacheBackend`. An pending key is not read.

        What is asked for in one turn of the loop is one operation, or a few where it is much. What
        cannot be read is None: `lease` will tell.
        """
        refusal = self._refusal_of(key)
        if refusal:
            raise CacheUnavailable(refusal)
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Entry | CacheError | None] = loop.create_future()
        self._gets.add((key, reply.set_result))
        told = await reply
        if isinstance(told, CacheError):
            raise told
        return told

    def ask(self, key: str, then: Then) -> bool:
        """See `SupportsCallbackGet`; otherwise as `get`."""
        if self._refusal_of(key):
            return False
        self._gets.add((key, then))
        return True

    def _refusal_of(self, key: str) -> str:
        """Why a key is not even asked for; empty if it is."""
        breaker, missed = self._breaker, self._missed
        if not (missed or breaker.open or breaker.unresponsive):
            return ""
        if key in missed:
            return f"the store has yet to be told of {key}"
        return self._refusal(reads=True, persists=0.0)

    def _get_together(self, asked: Sequence[tuple[str, Then]]) -> None:
        def tell(found: Mapping[str, Entry] | CacheError) -> None:
            if isinstance(found, CacheError):
                self._replay_each(asked, lambda _: found)
            else:
                self._replay_each(asked, self._trusted(found).get)

        keys = self._settled(dict.fromkeys([key for key, _ in asked]))
        if keys:
            self._read(keys, tell)
        else:
            tell({})

    def _replay_each(
        self, asked: Sequence[tuple[str, Then]], of: Callable[[str], Entry | CacheError | None]
    ) -> None:
        for key, then in asked:
            try:
                then(of(key))
            except asyncio.InvalidStateError:
                pass  # who waited for it has gone
            except Exception as error:
                if type(error) not in self._strange:
                    self._strange.add(type(error))
                    logger.exception("who asked for %r could not be told", key)

    def _read(
        self, keys: Sequence[str], tell: Callable[[Mapping[str, Entry] | CacheError], None]
    ) -> None:
        """One operation for all of them; without a task, where the backend can: it is each poll."""
        if not self._read_soon(keys, tell):
            reading = self._start(self._backend.get_many(keys))
            watched = self._watched(reading, self._deadline, lambda _: None)
            watched.add_done_callback(lambda _: tell(_outcome(watched)))

    def _read_soon(
        self, keys: Sequence[str], tell: Callable[[Mapping[str, Entry] | CacheError], None]
    ) -> bool:
        if self._ask_many is None:
            return False
        number, limit = self._breaker.begin(), self._deadline
        deadline = Deadline(limit, lambda: tell(self._given_up(number, limit)))

        def answered(found: Mapping[str, Entry] | Exception) -> None:
            if not deadline.met():
                return
            if isinstance(found, Exception):
                tell(self._failure(number, found))
            else:
                self._breaker.succeeded()
                tell(found)

        asked = False
        with suppress(Exception):  # which `get_many` will raise where it can be told
            asked = self._ask_many(keys, answered)
        return asked or not deadline.met()

    async def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """See `CacheBackend`. Unsettled keys are left out."""
        reading = self._backend.get_many(self._settled(keys))
        return self._trusted(await self._run(reading, reads=True))

    def _settled(self, keys: Iterable[str]) -> list[str]:
        return [key for key in keys if key not in self._missed] if self._missed else [*keys]

    def _trusted(self, found: Mapping[str, Entry]) -> Mapping[str, Entry]:
        if not self._confirmed_from_ms:
            return found
        return {key: self._confirmed(key, entry) for key, entry in found.items()}

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:
        """See `CacheBackend`. An pending key is not read."""
        refusal = self._refusal_of(key)
        if refusal:
            raise CacheUnavailable(refusal)
        found = await self._run(self._backend.lease(key, token), reads=True)
        return self._confirmed(key, found) if isinstance(found, Entry) else found

    def set_body_check(self, check: Callable[[str, bytes], object]) -> None:
        """See `SupportsBodyCheck`: the guarded backend's, if it supports that."""
        if isinstance(self._backend, SupportsBodyCheck):
            self._backend.set_body_check(check)

    def set_lease_time(self, seconds: float) -> None:
        """See `SupportsLeaseTime`: the guarded backend's, if it supports that."""
        if isinstance(self._backend, SupportsLeaseTime):
            self._backend.set_lease_time(seconds)

    async def fence(self, key: str, token: str) -> None:
        """See `CacheBackend`."""
        late = (key, token)

        def went_late(task: asyncio.Task[None]) -> None:
            # Its caller may be cancelled in the very turn in which it is overdue.
            if late not in self._late_fences:
                self._late_fences[late] = False
                task.add_done_callback(landed)

        def landed(task: asyncio.Task[None]) -> None:
            if self._late_fences.pop(late) and self._ended_well(task):
                self._start(self._backend.publish(key, token, None))

        limit = self._fence_deadline
        fencing = self._backend.fence(key, token)
        await self._run(fencing, went_late, deadline=limit, persists=limit)

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:
        """See `CacheBackend`. If it does not get through, it is repeated until it does."""
        late = (key, token)
        if late in self._late_fences:
            self._late_fences[late] = True
        step = PendingOperation("publish", None if entry is None else entry.version)

        def went_late(task: asyncio.Task[PublishResult]) -> None:
            task.add_done_callback(landed)

        def landed(task: asyncio.Task[PublishResult]) -> None:
            if self._ended_well(task):
                self._missed.made(key, token, step)

        try:
            published = await self._run(self._backend.publish(key, token, entry), went_late)
        except CacheUnavailable:
            self._missed.note(key, token, step)
            self._recover()
            raise
        since = self._published_since
        if since is not None and entry is not None and entry.stored_at_ms < self._confirmed_from_ms:
            if len(since) >= _MOST_PUBLISHED:
                since.clear()  # costs one more load of each key
            since[key] = entry.stored_at_ms
        return published

    def remember(self, key: str, version: int) -> None:
        """See `SupportsVersionHint`."""
        self._missed.note_seen(key, version)
        self._recover()

    async def purge(self, keys: Sequence[str]) -> int:
        """See `CacheBackend`. What cannot be purged now is purged before it is read again."""
        try:
            return await self._run(self._backend.purge(keys))
        except CacheUnavailable:
            for key in keys:
                self._missed.note(key, "", PendingOperation("purge"))
            self._recover()
            raise

    async def purge_all(self) -> int:
        """See `SupportsPurgeAll`. It has no deadline: a large namespace takes its time."""
        if not isinstance(self._backend, SupportsPurgeAll):
            raise CacheUnavailable(f"the {self.name} backend cannot list its keys")
        try:
            return await self._run(self._backend.purge_all(), deadline=math.inf)
        except CacheUnavailable:
            self._missed.note_everything()
            self._recover()
            raise

    def feed(self) -> ChangeFeed | None:
        """Return the wrapped backend's feed. It needs no guarding, for nobody waits for it."""
        return self._backend.feed() if isinstance(self._backend, SupportsChangeFeed) else None

    def condition(self) -> Health:
        """See `SupportsHealth`."""
        return self._breaker.condition(self._missed.keys)

    def identify(self, source_id: str) -> None:
        """See `SupportsNamespaceOwner`."""
        if isinstance(self._backend, SupportsNamespaceOwner):
            self._backend.identify(source_id)

    async def start(self) -> None:
        """Start and probe once, so that a store that is away from the beginning is noticed."""
        try:
            await self._ping(self._probe_limit)
        except TimeoutError:
            self._breaker.unresponsive = True
            self._breaker.trip("no answer")
            self._recover()
        except NamespaceConflict:
            raise
        except CacheUnavailable as error:
            self._breaker.trip(str(error))
            self._recover()

    async def aclose(self) -> None:
        """End the recovery and what is still under way, then close the backend."""
        self._closed = True
        self._replay_each(self._gets.take(), lambda _: CacheUnavailable(_CLOSED))
        tasks = [*self._running]
        if self._recovery is not None:
            tasks.append(self._recovery)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._backend.aclose()

    # --- one operation ---

    async def _run(
        self,
        operation: Coroutine[Any, Any, T],
        went_late: Callable[[asyncio.Task[T]], None] = lambda _: None,
        *,
        deadline: float | None = None,
        reads: bool = False,
        persists: float = 0.0,
    ) -> T:
        """Run one operation of the backend.

        Args:
            operation: what to run.
            went_late: called with its task if it is no longer waited for: it has run out of its
                deadline, or its caller has gone.
            deadline: in seconds; the guard's own if None.
            reads: True if the caller can do without.
            persists: for so many seconds after a silent store was set aside it is tried, too.
        """
        refusal = self._refusal(reads=reads, persists=persists)
        if refusal:
            operation.close()
            raise CacheUnavailable(refusal)
        limit = self._deadline if deadline is None else deadline
        task = self._start(operation)
        watched = self._watched(task, limit, went_late)
        try:
            return await watched
        except asyncio.CancelledError:
            went_late(task)
            if not watched.cancelled():
                watched.exception()  # seen
            raise

    def _watched(
        self, task: asyncio.Task[T], limit: float, went_late: Callable[[asyncio.Task[T]], None]
    ) -> asyncio.Future[T]:
        """What `task` comes to, or an error once it is overdue; it is then left to itself."""
        watched: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        number = self._breaker.begin()

        def tell() -> None:
            if watched.done():
                return  # its caller has gone
            if task.cancelled():
                watched.cancel()
            elif (error := task.exception()) is not None:
                watched.set_exception(self._failure(number, error))
            else:
                self._breaker.succeeded()
                watched.set_result(task.result())

        def ended(_: object) -> None:
            if deadline.met():
                tell()

        def late() -> None:
            if task.done() or watched.done():
                tell()
            else:
                went_late(task)
                watched.set_exception(self._given_up(number, limit))

        deadline = Deadline(limit, late)
        task.add_done_callback(ended)
        return watched

    def _refusal(self, *, reads: bool, persists: float) -> str:
        """Why an operation is not even tried; empty if it is."""
        breaker = self._breaker
        if breaker.open and (reads or (breaker.unresponsive and breaker.open_for() >= persists)):
            return breaker.reason or "set aside"
        if breaker.unresponsive and reads:
            return "an answer is overdue"
        return ""

    def _failure(self, number: int, error: BaseException) -> CacheError:
        """Tell the breaker that an operation has failed. Returns the error to raise."""
        if isinstance(error, UnreadableCell | CacheContended):
            self._breaker.succeeded()  # the store answers; it is the one cell that is bad or busy
            return error
        if self._closed and isinstance(error, CacheError):
            return error
        self._breaker.failed(number, str(error))
        self._mark_suspect()
        if isinstance(error, CacheError):
            return error
        if type(error) not in self._strange:
            self._strange.add(type(error))
            logger.error("the %s cache failed in a way it should not", self.name, exc_info=error)
        ours = CacheUnavailable(f"{type(error).__name__}: {error}")
        ours.__cause__ = error
        return ours

    def _given_up(self, number: int, limit: float) -> CacheUnavailable:
        """An operation is overdue. Returns the error to raise."""
        self._breaker.went_unanswered(number)
        self._overdue = True
        self._mark_suspect()
        return CacheUnavailable(f"no answer within {limit:g} s")

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

    def _confirmed(self, key: str, entry: Entry) -> Entry:
        stored_at_ms, published = entry.stored_at_ms, self._published_since
        if stored_at_ms >= self._confirmed_from_ms:
            return entry
        if published is not None and published.get(key) == stored_at_ms:
            return entry
        return entry.past_its_freshness()

    def clock_set_back(self, latest_ms: int) -> None:
        """See `SupportsClockSteps`."""
        self._confirmed_from_ms = max(self._confirmed_from_ms, latest_ms + CLOCK_SKEW_MS)
        self._published_since = {}

    # --- recovery ---

    def _mark_suspect(self) -> None:
        # Failures in a row are not the only sign: a full server answers gets, and nothing else.
        self._doubted = True
        self._missed.reset()
        self._recover()

    def _recover(self) -> None:
        if not self._closed and (self._recovery is None or self._recovery.done()):
            self._recovery = asyncio.create_task(self._probe())

    async def _probe(self) -> None:
        pause = self._probe_after
        # Closed: its cancellation may have been swallowed on the way, as `tracking` tells.
        while not self._closed and (self._doubted or self._breaker.open or self._missed):
            if not self._flushing():
                await self._sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - spreads the probes
                pause = min(2 * pause, self._probe_limit)
            limit = 1.5 * self._deadline if self._flushing() else self._probe_limit
            try:
                self._doubted = self._overdue = False  # before: a failure meanwhile is a new doubt
                await self._ping(limit)
                told = await self._replay()
            except TimeoutError:
                self._missed.reset()
                self._breaker.unresponsive = True
                self._breaker.trip("no answer")
            except CacheUnavailable as error:
                self._missed.reset()
                # A store that answers reads, but takes no writes, is found out here.
                self._breaker.unresponsive = False
                self._breaker.trip(str(error))
            except Exception:
                # Without a recovery the cache would stay away for ever.
                logger.exception("probing the %s cache failed", self.name)
            else:
                if told:
                    self._close_circuit()
                    pause = self._probe_after

    async def _ping(self, limit: float) -> None:
        pinging = self._start(self._backend.ping())
        if not await ends_within(limit, pinging):
            pinging.cancel()  # the connection is its own
            raise TimeoutError
        pinging.result()

    def _flushing(self) -> bool:
        """Whether callers wait for a store that may be away, or have stopped to wait for it.

        Not only if it is silent. Where much is under way, the first to be overdue began before the
        store's last answer, and does not prove silence; but the one probe there is begins then:

            A and B are asked; A is answered; the store hangs; B is overdue, and soon all others are
        """
        return (self._overdue or self._breaker.unresponsive) and not self._breaker.open

    def _close_circuit(self) -> None:
        if self._breaker.open:
            moment_ms = self._clock_ms() + CLOCK_SKEW_MS
            if moment_ms < self._confirmed_from_ms:
                self._published_since = {}
            else:
                self._confirmed_from_ms, self._published_since = moment_ms, None
        self._breaker.close()

    async def _replay(self) -> bool:
        """Tell the store what it has missed by now. True if all of that got through.

        What one attempt got through stays done; what is missed meanwhile is the next one's.
        """
        if self._missed.everything:
            mark = self._missed.mark()
            if isinstance(self._backend, SupportsPurgeAll):
                await self._backend.purge_all()
            self._missed.emptied(mark)
        steps = self._missed.all()
        for start in range(0, len(steps), _AT_ONCE):
            some = steps[start : start + _AT_ONCE]
            if not all(await asyncio.gather(*(self._repeat(*step) for step in some))):
                return False
        return not self._missed.everything

    async def _repeat(self, key: str, token: str, step: PendingOperation) -> bool:
        """Repeat one step, or give it up if the store, which answers, will not have it."""
        try:
            async with asyncio.timeout(self._probe_limit):
                if step.kind == "purge":
                    await self._backend.purge([key])
                elif step.version is None:
                    await self._backend.publish(key, token, None)
                else:
                    await self._backend.publish(key, token, _outdated(step.version))
        except TimeoutError:
            return False
        except Exception as error:  # noqa: BLE001 - whatever it is, the other keys wait for it
            step.refusals += 1
            if step.refusals < _MOST_REFUSALS:
                return False
            self._report_given_up(key, error)
            self._missed.discard(key, token, step)
        else:
            self._missed.made(key, token, step)
        return True

    def _report_given_up(self, key: str, error: Exception) -> None:
        omitted = self._given_up_lines.admit()
        if omitted is not None:
            logger.warning(
                "the %s cache cannot be told of %r (%s): it may serve an old version until it"
                " expires%s",
                *(self.name, key, error, omitted),
            )


def _outcome(watched: asyncio.Future[Mapping[str, Entry]]) -> Mapping[str, Entry] | CacheError:
    try:
        return watched.result()
    except asyncio.CancelledError:
        return CacheUnavailable(_CLOSED)
    except CacheError as error:
        return error


def _outdated(version: int) -> Entry:
    """Only a version: it removes what is older, and the next read stores a fresh body."""
    return Entry(version, "", "", None, b"", "identity", 0, 0, 0)
