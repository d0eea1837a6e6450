"""Reads: a hit from this process, a hit from the store, or a shared load."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

from jobcache._engine.clock import YOUNGEST_MS
from jobcache._engine.fetching import at_least, count_fetched
from jobcache._engine.single_flight import SingleFlight
from jobcache.errors import InvalidDocument, InvalidKey
from jobcache.loaders import LoaderLeft, bound_to_caller
from jobcache.models import CacheOutcome, ReadResult, ReadResults
from jobcache.protocol.capabilities import SupportsClockSteps, SupportsPeek, SupportsTiers
from jobcache.protocol.key import check_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from jobcache._engine.clock import WallClock
    from jobcache._engine.fetching import Fetched, Fetcher
    from jobcache._engine.loading import Loads
    from jobcache._engine.owner_loop import OwnerLoop
    from jobcache._engine.shadow_reads import Shadow
    from jobcache.models import Load, LoadMany
    from jobcache.observability.statistics import Statistics
    from jobcache.protocol.backend import CacheBackend
    from jobcache.protocol.entry import Entry
    from jobcache.resilience.batched_gets import BatchedGets

# Globals of the module: an attribute lookup, and the call of `ReadResult(...)`, would each take
# about as long as finding the entry; this is the path of every poll.
_HIT = CacheOutcome.HIT
_new = tuple.__new__
_now_ns = time.perf_counter_ns


class Reads:
    """The reads of one `JobCache`.

    Args:
        backend: where entries live.
        statistics: counted into.
        clock: decides whether an entry is fresh.
        shadow: compares a sample of the hits with the source.
        loads: knows which loads wait for which.
        fetcher: loads what the cache lacks.
        owner: the loop that the cache belongs to.
        gets: of a backend whose store is elsewhere.

    Attributes:
        can_peek: whether entries may be in this process.
    """

    def __init__(
        self,
        backend: CacheBackend,
        *,
        statistics: Statistics,
        clock: WallClock,
        shadow: Shadow,
        loads: Loads,
        fetcher: Fetcher,
        owner: OwnerLoop,
        gets: BatchedGets | None,
    ) -> None:
        self._backend = backend
        self._statistics = statistics
        self._clock = clock
        self._shadow = shadow
        self._loads = loads
        self._fetcher = fetcher
        self._owner = owner
        self._peek = backend.peek if isinstance(backend, SupportsPeek) else None
        self.can_peek = self._peek is not None
        self._gets = gets
        # Without tiers, a peek reads what `get` reads.
        both = backend.name, backend.name
        self._local, self._remote = backend.tiers if isinstance(backend, SupportsTiers) else both
        self._flights: SingleFlight[Fetched] = SingleFlight()
        self._batches: SingleFlight[dict[str, Fetched | InvalidDocument]] = SingleFlight()

    def peek(self, key: str, load: Load, min_version: int = 0) -> ReadResult | None:
        """Return a hit from this process, without waiting; None if there is none."""
        began = _now_ns()
        peek = self._peek
        entry = None if peek is None else peek(key)
        if entry is None or entry.version < min_version:
            return None
        clock = self._clock
        now_ms = clock.now_ms()
        if now_ms < clock.latest_ms:
            return None  # the clock was set back: `read` finds out more
        clock.latest_ms = now_ms
        age_ms = now_ms - entry.stored_at_ms
        if not YOUNGEST_MS <= age_ms < entry.fresh_ms:  # as in `WallClock.is_fresh`
            return None
        if self._shadow.rate:
            self._shadow.hit(key, entry, load)
        statistics = self._statistics
        statistics.hits += 1
        statistics.local_hits += 1
        statistics.hit.record(_now_ns() - began)
        age_ms = age_ms if age_ms > 0 else 0  # noqa: FURB136 - which would be a call
        return _new(ReadResult, (entry, _HIT, False, self._local, age_ms))

    def read_future(
        self, key: str, load: Load, min_version: int = 0
    ) -> asyncio.Future[ReadResult | None] | None:
        """Return a future of a hit from a store elsewhere, without a task of the caller's.

        The future can be awaited, or given a callback. All arguments are as for `JobCache.read`.

        Returns:
            A future of the hit; or of None if there is no entry that may be served: call `read`
            then. None in place of the future if the entries are in this process, or the cache does
            not belong to the running loop yet.

        Raises (in the future):
            CacheUnavailable: the store is not in use, or did not answer: `read` asks the source.
        """
        gets = self._gets
        if gets is None or self._owner.loop is not asyncio.get_running_loop() or not key.isascii():
            return None  # `read` finds out more, or binds the cache to this loop
        hit = partial(self._hit, key, load, min_version, time.perf_counter_ns())
        return gets.get(key, hit)

    def _hit(
        self, key: str, load: Load, min_version: int, began: int, entry: Entry | None
    ) -> ReadResult | None:
        """Return the result of reading an entry of the store; None if it is not to be served.

        The same as `peek`, which would be slower with a call more.
        """
        if entry is None or entry.version < min_version:
            return None
        clock = self._clock
        now_ms = clock.now_ms()
        if now_ms < clock.latest_ms:
            return None  # the clock was set back: `read` finds out more
        clock.latest_ms = now_ms
        age_ms = now_ms - entry.stored_at_ms
        if not YOUNGEST_MS <= age_ms < entry.fresh_ms:  # as in `WallClock.is_fresh`
            return None
        if self._shadow.rate:
            self._shadow.hit(key, entry, load)
        statistics = self._statistics
        statistics.hits += 1
        statistics.hit.record(time.perf_counter_ns() - began)
        age_ms = age_ms if age_ms > 0 else 0  # noqa: FURB136 - which would be a call
        return _new(ReadResult, (entry, _HIT, False, self._remote, age_ms))

    async def read(self, key: str, load: Load, min_version: int) -> ReadResult:
        """Return the document at `key` from the store or its source, after `peek` found none."""
        began = time.perf_counter_ns()
        self._watch_clock()
        try:
            check_key(key)
            found = await self._fetcher.find(key)
            if found is not None and found.entry is not None:
                if found.entry.version >= min_version and self._clock.is_fresh(found.entry):
                    self._shadow.hit(key, found.entry, load)
                    return self._result(key, began, found.entry, CacheOutcome.HIT)
                found = None
            # A lookup that failed is not repeated by the load: it would wait for the store again.
            with self._loads.waiting_for((key,)):
                async with bound_to_caller(load) as bound_load:
                    accepts = at_least(min_version)
                    fetch = partial(self._fetcher.fetch, key, bound_load, accepts, found)
                    (entry, outcome), joined = await self._share(
                        key, bound_load, min_version, fetch
                    )
        except Exception:
            self._statistics.read_errors += 1
            raise
        return self._result(key, began, entry, outcome, coalesced=joined)

    async def _share(
        self,
        key: str,
        load: Load,
        min_version: int,
        fetch: Callable[[], Awaitable[Fetched]],
    ) -> tuple[Fetched, bool]:
        """Fetch an entry together with equal callers; return it, and whether it was shared."""
        while True:
            try:
                (entry, outcome), joined = await self._flights.share((key, 0), fetch)
                if entry.version < min_version and outcome in {
                    CacheOutcome.HIT,
                    CacheOutcome.STALE,
                }:
                    # The first caller had seen less than this caller has.
                    return await self._flights.share((key, min_version), fetch)
            except LoaderLeft as left:
                if left.load is load:
                    raise
                continue  # it was the load of a caller who has gone; now it is this caller's turn
            return (entry, outcome), joined

    async def read_many(self, keys: Iterable[str], load_many: LoadMany) -> ReadResults:
        """Return the documents at `keys`, with one batched get and at most one load."""
        began = time.perf_counter_ns()
        if isinstance(keys, str):
            raise TypeError(f"keys={keys!r:.80}: several keys are expected, such as [{keys!r:.80}]")
        self._watch_clock()
        results = ReadResults()
        wanted = []
        for key in dict.fromkeys(keys):
            try:
                check_key(key)
            except InvalidKey as error:
                results.errors[key] = error
            else:
                wanted.append(key)
        try:
            with self._loads.waiting_for(wanted):
                async with bound_to_caller(load_many) as bound_load:
                    # Shared with nobody. But, as for `read`: a caller that goes leaves no lease.
                    fetched, _ = await self._batches.share(
                        object(), partial(self._fetcher.fetch_many, tuple(wanted), bound_load)
                    )
        except Exception:
            self._statistics.read_errors += len(wanted)
            raise
        for key in wanted:
            found = fetched[key]
            if isinstance(found, InvalidDocument):
                results.errors[key] = found
            else:
                results[key] = self._result(key, began, *found)
        self._statistics.read_errors += len(results.errors)
        return results

    async def read_bound(self, key: str, load: Load, min_version: int) -> ReadResult:
        """Return the document at `key`, as `JobCache.read` does."""
        self._owner.bind()
        result = self.peek(key, load, min_version)
        return await self.read(key, load, min_version) if result is None else result

    async def lookup(self, key: str, load: Load, min_version: int) -> ReadResult | None:
        """Return a hit, from this process or the store, without a load; None if there is none."""
        result = self.peek(key, load, min_version)
        if result is not None:
            return result
        began = time.perf_counter_ns()
        found = await self._fetcher.find(key)
        if (
            found is None
            or found.entry is None
            or found.entry.version < min_version
            or not self._clock.is_fresh(found.entry)
        ):
            return None
        return self._result(key, began, found.entry, CacheOutcome.HIT)

    def tier_hits(self) -> dict[str, int]:
        """Return the number of hits by the tier that answered."""
        hits, local = self._statistics.hits, self._statistics.local_hits
        if self._local == self._remote:
            return {self._local: hits}
        return {self._local: local, self._remote: hits - local}

    def _watch_clock(self) -> None:
        """Tell the backend if the wall clock was set back."""
        expected_ms = self._clock.detect_step_back()
        if expected_ms is not None and isinstance(self._backend, SupportsClockSteps):
            self._backend.clock_set_back(expected_ms)

    def _result(
        self,
        key: str,  # noqa: ARG002 - for the log
        began: int,
        entry: Entry,
        outcome: CacheOutcome,
        *,
        coalesced: bool = False,
    ) -> ReadResult:
        took = time.perf_counter_ns() - began
        age_ms = max(0, self._clock.now_ms() - entry.stored_at_ms)
        statistics = self._statistics
        if outcome is CacheOutcome.HIT:
            statistics.hits += 1
            statistics.hit.record(took)
            coalesced = False  # a hit shared on its way is a hit to each
        else:
            count_fetched(statistics, outcome, took, coalesced=coalesced)
        return ReadResult(entry, outcome, coalesced, self._remote, age_ms)

    def in_flight(self) -> int:
        """Return the number of keys and batches that are being loaded."""
        return len(self._flights) + len(self._batches)

    async def aclose(self) -> None:
        """Cancel all shared loads, and wait for their end."""
        for flights in (self._flights, self._batches):
            await flights.aclose()
        if self._gets is not None:
            self._gets.close()
