"""Guard a backend whose store can be away: deadlines, a circuit breaker, and recovery.

No caller waits long for the store. And no caller reads from it before the store has received the
operations that it missed.

- Each operation has a deadline (`operation`).
- The breaker (`circuit_breaker`) decides when the store is no longer read; reads then fail
  at once.
- A background task probes the store and replays operations until it can be used (`recovery`).
- Entries that were stored before an outage ended are confirmed by the source before they are served
  (`confirmation`).

Reads are the first to stop using a store. Writes are always sent. A full store cannot keep a fence,
but it empties the cell. And other processes may already read from a store that this process takes
to be away:

    the store hangs, and answers again; process B notices that, process A has not probed it yet
    W in A commits v2, tells the store nothing, and acknowledges v2; R in B is given v1

A fence is given more time than other operations, so that other processes notice an outage before a
writer commits a change without a fence. When they have had that time, fences are still sent, but
not waited for: a writer may keep a transaction open meanwhile. A publish is always waited for, for
one deadline.

A fence that failed counts as lost. The protocol allows that, as long as its writer publishes. But
the fence may still arrive, long after its writer has ended, and block the key until it expires. So
a late fence is withdrawn. The document of its writer must not be stored:

    W1's fence and publish are both late; W1 goes on; W2 fences, commits v3, publishes; v3 is
    evicted; W1's fence arrives, then its publish of v2: its token is the last one of a fence whose
    fence version does not include v3

`JobCache` prevents that: if a fence may be lost, it publishes the version and not the body.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from jobcache.errors import (
    CacheContended,
    CacheError,
    CacheUnavailable,
    NamespaceConflict,
    UnreadableCell,
)
from jobcache.protocol.capabilities import (
    Health,
    SupportsBodyCheck,
    SupportsChangeFeed,
    SupportsFutureGet,
    SupportsFutureWrite,
    SupportsLeaseTime,
    SupportsNamespaceOwner,
    SupportsPurgeAll,
)
from jobcache.protocol.entry import Entry
from jobcache.resilience.batched_gets import BatchedGets
from jobcache.resilience.circuit_breaker import Breaker
from jobcache.resilience.confirmation import Confirmation
from jobcache.resilience.operation import GuardedOperation
from jobcache.resilience.recovery import Recovery
from jobcache.resilience.replay_log import PendingOperation, ReplayLog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

    from jobcache.protocol.backend import LeaseResult, PublishResult
    from jobcache.protocol.change_feed import ChangeFeed
    from jobcache.resilience.recovery import RemoteBackend

T = TypeVar("T")
logger = logging.getLogger("jobcache")

_CLOSED = "it is being closed"
_LONG_SILENCE = 0.8  # of the time after which a writer commits without its fence


class GuardedBackend:
    """Guard a backend.

    The guard has an optional ability if the backend has it.

    Args:
        backend: the one to guard.
        deadline: seconds an operation may take before its caller goes on without it.
        fence_deadline: the same for fences. It is longer, because without the fence other
            processes may serve an old version.
        failures: how many failures in a row open the circuit.
        probe_after: seconds until the first probe; doubled for each that fails, with jitter.
        probe_limit: the most seconds between probes, and for one probe to take.
        most_missed: with more pending operations than these, the whole namespace is emptied
            instead, if the backend can do that.
        clock: monotonic time in seconds.
        clock_ms: wall-clock time in milliseconds since the epoch.
        sleep: waits for the given seconds.

    Attributes:
        long_silence: seconds without an answer after which other writers may commit without a
            fence; a little less, as their silence may have begun earlier.
    """

    purge_all: Callable[[], Coroutine[Any, Any, int]]
    feed: Callable[[], ChangeFeed | None]
    set_body_check: Callable[[Callable[[str, bytes], object]], None]
    set_lease_time: Callable[[float], None]
    identify: Callable[[str], None]

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
        self.long_silence = _LONG_SILENCE * fence_deadline
        self._clock = clock
        self._breaker = Breaker(backend.name, failures=failures, clock=clock)
        self._confirmation = Confirmation(clock_ms)
        self._log = ReplayLog(most_missed, can_empty=isinstance(backend, SupportsPurgeAll))
        self._recovery = Recovery(
            backend,
            self._breaker,
            self._log,
            self._confirmation.outage_ended,
            deadline=deadline,
            probe_after=probe_after,
            probe_limit=probe_limit,
            clock=clock,
            sleep=sleep,
        )
        # Fences past their deadline, and whether their writer has published meanwhile.
        self._late_fences: dict[tuple[str, str], bool] = {}
        self._unexpected: set[type[BaseException]] = set()
        self._closed = False
        self._running: set[asyncio.Future[Any]] = set()
        self._future_get = backend if isinstance(backend, SupportsFutureGet) else None
        self._future_write = backend if isinstance(backend, SupportsFutureWrite) else None
        self._gets = BatchedGets(self)
        self._pass_on(backend)

    def _pass_on(self, backend: RemoteBackend) -> None:
        """Take over the optional abilities of the backend. Only `purge_all` needs the guard."""
        if isinstance(backend, SupportsPurgeAll):
            self.purge_all = partial(self._purge_all, backend)
        if isinstance(backend, SupportsChangeFeed):
            self.feed = backend.feed
        if isinstance(backend, SupportsBodyCheck):
            self.set_body_check = backend.set_body_check
        if isinstance(backend, SupportsLeaseTime):
            self.set_lease_time = backend.set_lease_time
        if isinstance(backend, SupportsNamespaceOwner):
            self.identify = backend.identify

    @property
    def name(self) -> str:
        """The guarded backend's name."""
        return self._backend.name

    # --- reading ---

    async def get(self, key: str) -> Entry | None:
        """Return the entry at `key`; None if there is none, or it cannot be read.

        Raises:
            CacheUnavailable: the key is pending, or the store is not in use or did not answer.
        """
        self._require_readable(key)
        return await self._gets.get(key)

    async def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """Return the entries at `keys`. Pending keys are left out."""
        return await self.get_many_future(keys)

    def get_many_future(self, keys: Sequence[str]) -> asyncio.Future[Mapping[str, Entry]]:
        """Return a future of the entries at `keys`. Pending keys are left out."""
        breaker, log = self._breaker, self._log
        if breaker.open or breaker.unresponsive:
            return _failed(CacheUnavailable(self._refusal()))
        if not log.empty:
            keys = [key for key in keys if key not in log]
            if not keys:
                return _resolved({})
        reading: asyncio.Future[Mapping[str, Entry]] | None = None
        if self._future_get is not None:
            with suppress(Exception):  # `get_many` raises it again, where it is reported
                reading = self._future_get.get_many_future(keys)
        if reading is None:
            reading = self._start(self._backend.get_many(keys))
        return GuardedOperation(
            reading,
            self._deadline,
            self._breaker,
            self,
            self._clock,
            confirmation=self._confirmation,
        ).result

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:
        """Take a lease.

        Raises:
            CacheUnavailable: the key is pending, or the store is not in use or did not answer.
        """
        self._require_readable(key)
        found = await self._run(partial(self._backend.lease, key, token))
        return self._confirmation.apply_one(key, found) if isinstance(found, Entry) else found

    def _require_readable(self, key: str) -> None:
        if key in self._log:
            raise CacheUnavailable(f"an operation on {key} is still to be replayed")
        refusal = self._refusal()
        if refusal:
            raise CacheUnavailable(refusal)

    # --- writing ---

    async def fence(self, key: str, token: str) -> None:
        """Fence `key`. A fence that arrives after its deadline is withdrawn."""
        limit = self._fence_deadline
        breaker = self._breaker
        if breaker.unresponsive and breaker.open_for() >= limit:
            limit = 0.0  # others have had their time; no transaction is kept open
        if self._future_write is None:
            fencing = self._start(self._backend.fence(key, token))
        else:
            fencing = self._future_write.fence_future(key, token)
        await self._outcome(fencing, limit, partial(self._fence_is_late, (key, token)))

    def _fence_is_late(self, late: tuple[str, str], fencing: asyncio.Future[None]) -> None:
        # Called twice if its caller is cancelled in the turn in which the fence is overdue.
        if late not in self._late_fences:
            self._late_fences[late] = False
            fencing.add_done_callback(partial(self._late_fence_ended, late))

    def _late_fence_ended(self, late: tuple[str, str], fencing: asyncio.Future[None]) -> None:
        if self._late_fences.pop(late) and self._has_succeeded(fencing):
            self._start(self._backend.publish(*late, None))

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:
        """Publish. A publish that fails is replayed until it succeeds."""
        late = (key, token)
        if late in self._late_fences:
            self._late_fences[late] = True
        operation = PendingOperation("publish", None if entry is None else entry.version)
        try:
            if self._future_write is None:
                publishing = self._start(self._backend.publish(key, token, entry))
            else:
                publishing = self._future_write.publish_future(key, token, entry)
            on_late = partial(self._publish_is_late, key, token, operation)
            published = await self._outcome(publishing, self._deadline, on_late)
        except CacheUnavailable:
            self._note(key, token, operation)
            raise
        if entry is not None:
            self._confirmation.note_published(key, entry)
        return published

    def _publish_is_late(
        self,
        key: str,
        token: str,
        operation: PendingOperation,
        publishing: asyncio.Future[PublishResult],
    ) -> None:
        publishing.add_done_callback(partial(self._late_publish_ended, key, token, operation))

    def _late_publish_ended(
        self,
        key: str,
        token: str,
        operation: PendingOperation,
        publishing: asyncio.Future[PublishResult],
    ) -> None:
        if self._has_succeeded(publishing):
            self._log.made(key, token, operation)

    def remember(self, key: str, version: int) -> None:
        """Note that the source has `version`, and publish it once the store answers."""
        self._log.note_seen(key, version)
        self._recovery.begin()

    async def purge(self, keys: Sequence[str]) -> int:
        """Purge. Keys that cannot be purged now are purged before they are read again."""
        try:
            return await self._run(partial(self._backend.purge, keys))
        except CacheUnavailable:
            for key in keys:
                self._note(key, "", PendingOperation("purge"))
            raise

    async def _purge_all(self, backend: SupportsPurgeAll) -> int:
        """Empty the namespace. There is no deadline, because a large namespace takes time."""
        try:
            return await self._run(backend.purge_all, deadline=math.inf)
        except CacheUnavailable:
            self._log.note_everything()
            self._recovery.begin()
            raise

    def _note(self, key: str, token: str, operation: PendingOperation) -> None:
        self._log.note(key, token, operation)
        self._recovery.begin()

    # --- the rest ---

    def condition(self) -> Health:
        """Return the health of the store, with the number of pending keys."""
        return self._breaker.condition(self._log.keys)

    def clock_set_back(self, latest_ms: int) -> None:
        """Require that entries from before the wall clock was set back are confirmed."""
        self._confirmation.clock_set_back(latest_ms)

    async def start(self) -> None:
        """Probe once, so that a store that is away from the beginning is noticed.

        Raises:
            NamespaceConflict: the store belongs to another source.
        """
        try:
            await self._recovery.ping()
        except TimeoutError:
            self._breaker.unresponsive = True
            self._breaker.trip("no answer")
            self._recovery.begin()
        except NamespaceConflict:
            raise
        except CacheUnavailable as error:
            self._breaker.trip(str(error))
            self._recovery.begin()

    async def aclose(self) -> None:
        """End the recovery and the running operations, then close the backend."""
        self._closed = True
        self._gets.close()
        await self._recovery.aclose()
        tasks = [*self._running]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._backend.aclose()

    # --- one operation ---

    async def _run(
        self,
        operate: Callable[[], Awaitable[T]],
        *,
        deadline: float | None = None,
    ) -> T:
        """Run one operation of the backend under a deadline.

        Args:
            operate: begins the operation.
            deadline: in seconds; the guard's own if None.
        """
        limit = self._deadline if deadline is None else deadline
        return await self._outcome(self._start(operate()), limit)

    async def _outcome(
        self,
        running: asyncio.Future[T],
        limit: float,
        on_late: Callable[[asyncio.Future[T]], None] | None = None,
    ) -> T:
        """Return the result of an operation that runs.

        Args:
            running: the operation.
            limit: its deadline in seconds.
            on_late: called with the operation if no caller waits for it any more: it is overdue, or
                its caller was cancelled.
        """
        result = GuardedOperation(
            running, limit, self._breaker, self, self._clock, on_late=on_late
        ).result
        try:
            return await result
        except asyncio.CancelledError:
            if on_late is not None:
                on_late(running)
            if not result.cancelled():
                result.exception()  # retrieved
            raise

    def _refusal(self) -> str:
        """Return why the store is not read; empty if it is."""
        breaker = self._breaker
        if breaker.open:
            return breaker.reason or "the circuit is open"
        return "an answer is overdue" if breaker.unresponsive else ""

    def _start(self, operation: Awaitable[T]) -> asyncio.Future[T]:
        """Begin an operation that runs by itself until it ends, or until `aclose`."""
        running = asyncio.ensure_future(operation)
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return running

    def _has_succeeded(self, ended: asyncio.Future[Any]) -> bool:
        return not self._closed and not ended.cancelled() and ended.exception() is None

    # --- how operations end: see `operation.Observer` ---

    def failed(self, number: int, error: BaseException) -> CacheError:
        """Note an operation that has failed in time. Returns the error to raise."""
        if isinstance(error, asyncio.CancelledError):
            error = CacheUnavailable(_CLOSED)
        if isinstance(error, UnreadableCell | CacheContended):
            self._breaker.succeeded()  # the store answers; only this cell is bad or busy
            return error
        if self._closed and isinstance(error, CacheError):
            return error
        self._breaker.failed(number, str(error))
        self._recovery.mark_suspect()
        if isinstance(error, CacheError):
            return error
        if type(error) not in self._unexpected:
            self._unexpected.add(type(error))
            logger.error("the %s cache raised an unexpected error", self.name, exc_info=error)
        ours = CacheUnavailable(f"{type(error).__name__}: {error}")
        ours.__cause__ = error
        return ours

    def silence_ended(self) -> None:
        """Have entries confirmed, because other writers may have given up their fences.

        The deadlines of a busy process may not show that, as their timers are late, too:

            the store hangs; R asks it; W in another process commits v2 without its fence
            the store goes on and answers R, whose timer is not over yet; the next read gets v1
        """
        self._confirmation.outage_ended()

    def overdue(self, number: int, limit: float) -> CacheError:
        """Note an operation that is overdue. Returns the error to raise."""
        self._breaker.went_unanswered(number)
        self._recovery.overdue = True
        self._recovery.mark_suspect()
        return CacheUnavailable(f"no answer within {limit:g} s")


def _failed(error: CacheError) -> asyncio.Future[Any]:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future


def _resolved(result: T) -> asyncio.Future[T]:
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    future.set_result(result)
    return future
