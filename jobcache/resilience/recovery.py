"""Probe a store until it answers and accepts writes, then replay the operations that it missed.

After any failure one background task probes the store, with jittered backoff. If the store does not
answer the probe, or refuses writes, the circuit opens, even if the store answers reads. The circuit
closes when every pending operation has been replayed.

A publish that failed leaves its key *pending*: the store may hold an older version than the source.
Such a key is not read. The publish is replayed, with its own token but without its body, until it
succeeds:

    W's publish is lost; the source has v2, and the store comes back with v1
    replaying the publish removes v1, or raises the fence version of another writer's fence

Rejected: to purge pending keys instead. A purge leaves fences where they are, and then

    W1 fences, commits v2; W2 cannot fence, commits v3, cannot publish; the key is purged
    W1, the last writer of a fence whose version does not include v3, publishes v2; it is served
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from jobcache.errors import CacheContended, CacheUnavailable
from jobcache.observability.log_limit import LogLimit
from jobcache.protocol.capabilities import SupportsPing, SupportsPurgeAll
from jobcache.protocol.entry import Entry
from jobcache.resilience.deadline import ends_within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Protocol

    from jobcache.protocol.backend import CacheBackend
    from jobcache.resilience.circuit_breaker import Breaker
    from jobcache.resilience.replay_log import PendingOperation, ReplayLog

    class RemoteBackend(CacheBackend, SupportsPing, Protocol):
        """A backend whose store can be away."""


logger = logging.getLogger("jobcache")

_MOST_REFUSALS = 5
_AT_ONCE = 32  # operations that are replayed concurrently


class Recovery:
    """Probes a store after failures, and replays the operations that it missed.

    Args:
        backend: the backend of the store.
        breaker: decides whether the store is in use.
        log: the pending operations.
        on_recovered: called when the store is about to be used again after an outage.
        deadline: seconds that the callers of an operation wait.
        probe_after: seconds until the first probe; doubled for each that fails, with jitter.
        probe_limit: the most seconds between probes, and for one probe to take.
        clock: monotonic time in seconds.
        sleep: waits for the given seconds.

    Attributes:
        task: the task that probes, if one has begun.
        overdue: whether an operation has missed its deadline since the last probe.
    """

    def __init__(
        self,
        backend: RemoteBackend,
        breaker: Breaker,
        log: ReplayLog,
        on_recovered: Callable[[], object],
        *,
        deadline: float,
        probe_after: float,
        probe_limit: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        self.task: asyncio.Task[None] | None = None
        self.overdue = False
        self._backend = backend
        self._breaker = breaker
        self._log = log
        self._on_recovered = on_recovered
        self._deadline = deadline
        self._probe_after = probe_after
        self._probe_limit = probe_limit
        self._sleep = sleep
        self._suspect = False
        self._closed = False
        self._pings: set[asyncio.Task[None]] = set()
        self._given_up_lines = LogLimit(1, clock)

    def mark_suspect(self) -> None:
        """Probe the store, because an operation has failed.

        The breaker alone would not notice a full server: it answers gets, and refuses the rest.
        """
        self._suspect = True
        self._log.reset()
        self.begin()

    def begin(self) -> None:
        """Start to probe, unless a probe is running."""
        if not self._closed and (self.task is None or self.task.done()):
            self.task = asyncio.create_task(self._recover())

    async def ping(self) -> None:
        """Ping the store.

        Raises:
            TimeoutError: it does not answer in time.
            CacheUnavailable: it does not do everything that the cache needs.
        """
        await self._ping(self._probe_limit)

    async def aclose(self) -> None:
        """Cancel the running probe."""
        self._closed = True
        tasks = [*self._pings, *([] if self.task is None else [self.task])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _recover(self) -> None:
        pause = self._probe_after
        # `_closed` is checked, because its cancellation may have been lost, as `tracking` explains.
        while not self._closed and (self._suspect or self._breaker.open or self._log):
            if not self._is_urgent():
                await self._sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - spreads the probes
                pause = min(2 * pause, self._probe_limit)
            limit = 1.5 * self._deadline if self._is_urgent() else self._probe_limit
            try:
                self._suspect = self.overdue = False  # before: a failure meanwhile counts anew
                await self._ping(limit)
                complete = await self._replay()
            except TimeoutError:
                self._log.reset()
                self._breaker.unresponsive = True
                self._breaker.trip("no answer")
            except CacheUnavailable as error:
                self._log.reset()
                # A store that answers reads and refuses writes is noticed here.
                self._breaker.unresponsive = False
                self._breaker.trip(str(error))
            except Exception:
                # Without a recovery the cache would stay away for ever.
                logger.exception("probing the %s cache failed", self._backend.name)
            else:
                if complete:
                    self._close_circuit()
                    pause = self._probe_after

    async def _ping(self, limit: float) -> None:
        pinging = asyncio.create_task(self._backend.ping())
        self._pings.add(pinging)
        pinging.add_done_callback(self._ping_ended)
        if not await ends_within(limit, pinging):
            pinging.cancel()  # no other operation uses its connection
            raise TimeoutError
        pinging.result()

    def _ping_ended(self, pinging: asyncio.Task[None]) -> None:
        self._pings.discard(pinging)
        if not pinging.cancelled():
            pinging.exception()  # retrieved: the probe may have stopped waiting

    def _is_urgent(self) -> bool:
        """Return whether callers wait, or have just stopped waiting, for a store that may be away.

        An overdue operation is enough. If many operations are running, the first overdue one began
        before the last answer of the store, so it proves nothing. But it has to start the probe:

            A and B are sent; A is answered; the store hangs; B is overdue, and soon all others are
        """
        return (self.overdue or self._breaker.unresponsive) and not self._breaker.open

    def _close_circuit(self) -> None:
        if self._breaker.open:
            self._on_recovered()
        self._breaker.close()

    async def _replay(self) -> bool:
        """Replay the operations that are pending now. Return True if all of them succeeded.

        Replayed operations stay done. Operations that are missed meanwhile are replayed next time.
        """
        if self._log.everything and isinstance(self._backend, SupportsPurgeAll):
            mark = self._log.mark()
            await self._backend.purge_all()
            self._log.emptied(mark)
        pending = self._log.all()
        for start in range(0, len(pending), _AT_ONCE):
            some = pending[start : start + _AT_ONCE]
            if not all(await asyncio.gather(*(self._repeat(*each) for each in some))):
                return False
        return not self._log.everything

    async def _repeat(self, key: str, token: str, operation: PendingOperation) -> bool:
        """Replay one operation. Give it up if the store keeps refusing it."""
        try:
            async with asyncio.timeout(self._probe_limit):
                if operation.kind == "purge":
                    await self._backend.purge([key])
                elif operation.version is None:
                    await self._backend.publish(key, token, None)
                else:
                    await self._backend.publish(key, token, _version_only(operation.version))
        except (TimeoutError, CacheContended):
            return False  # not refused: the operation may succeed later
        except Exception as error:  # noqa: BLE001 - the other keys must not wait for this one
            operation.refusals += 1
            if operation.refusals < _MOST_REFUSALS:
                return False
            self._report_given_up(key, error)
            self._log.discard(key, token, operation)
        else:
            self._log.made(key, token, operation)
        return True

    def _report_given_up(self, key: str, error: Exception) -> None:
        omitted = self._given_up_lines.admit()
        if omitted is not None:
            logger.warning(
                "the %s cache refuses an operation on %r (%s): it may serve an old version until"
                " that expires%s",
                *(self._backend.name, key, error, omitted),
            )


def _version_only(version: int) -> Entry:
    """Return an entry without a body: it removes older ones, and the next read stores a body."""
    return Entry(version, "", "", None, b"", "identity", 0, 0, 0)
