"""Values without a version: read through the cache, and invalidated by key or by tag.

The steps are those of `fetching.py`. The difference is what an entry is compared with: nothing. It
is stored over the lease of its load, or over the entry that the load was to replace
(`protocol/cell.py`), so a load that an invalidation has overtaken stores nothing.

A *tag* stands for any number of keys. It is a cell of its own, which holds a *generation*: the
random token of an unversioned entry. A value is stored with the generations that its tags had
before its load, and accepted only while they have them. Invalidating a tag purges its cell:

    R reads generation g1, loads v1; v2 is committed; the tag is purged; R stores v1 with g1
    the next read finds no generation, makes g2, and does not accept v1

So no keys are listed and none are scanned. A tag whose cell was evicted gets a new generation,
which costs loads and nothing else.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from jobcache._engine.clock import YOUNGEST_MS
from jobcache._engine.fetching import Lookup, count_fetched
from jobcache._engine.following import described, follow
from jobcache._engine.publishing import version_only
from jobcache._engine.single_flight import SingleFlight
from jobcache._engine.storing import (
    ABSENT,
    TAG_PREFIX,
    Absent,
    Kept,
    check_value_key,
    tag_keys,
    value_of,
)
from jobcache.errors import CacheError
from jobcache.loaders import LoaderLeft, bound_to_caller
from jobcache.models import CacheOutcome
from jobcache.protocol.capabilities import SupportsClockSteps, SupportsPeek, SupportsTiers
from jobcache.protocol.document import UnversionedDocument
from jobcache.protocol.entry import UNVERSIONED, Entry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from jobcache._engine.clock import WallClock
    from jobcache._engine.fetching import Fetched, Fetcher
    from jobcache._engine.loading import Loads
    from jobcache._engine.publishing import Publisher
    from jobcache._engine.storing import Storing
    from jobcache.lifetimes import Lifetimes
    from jobcache.observability.instrumentation import Attributes, Instrumentation
    from jobcache.observability.statistics import Statistics
    from jobcache.protocol.backend import CacheBackend
    from jobcache.protocol.entry import Tags

T = TypeVar("T")
Answered = tuple[T, CacheOutcome, bool]
"""A value, how its read was answered, and whether it shared the load of another caller."""

_TAG_SECONDS = 30 * 86400.0
"""For so long a tag keeps its generation. Then its values are loaded again."""

_NO_TAGS: Tags = ()

_now_ns = time.perf_counter_ns


class Values:
    """The values of one `JobCache`.

    Args:
        backend: the store of the entries.
        statistics: the counters of the cache.
        clock: decides whether an entry is fresh.
        lifetimes: grace and jitter of the entries.
        loads: runs loaders, and knows which loads wait for which.
        fetcher: loads what the cache lacks.
        publisher: publishes generations, and removes entries.
        token: makes unique tokens.
        instrumentation: follows reads that are no hits in this process.
    """

    def __init__(
        self,
        backend: CacheBackend,
        *,
        statistics: Statistics,
        clock: WallClock,
        lifetimes: Lifetimes,
        loads: Loads,
        fetcher: Fetcher,
        publisher: Publisher,
        token: Callable[[], str],
        instrumentation: Instrumentation | None = None,
    ) -> None:
        self._backend = backend
        self._statistics = statistics
        self._clock = clock
        self._lifetimes = lifetimes
        self._loads = loads
        self._fetcher = fetcher
        self._publisher = publisher
        self._token = token
        self._instrumentation = instrumentation
        both = backend.name, backend.name
        self._local, self._tier = backend.tiers if isinstance(backend, SupportsTiers) else both
        self._peek = backend.peek if isinstance(backend, SupportsPeek) else None
        self._flights: SingleFlight[Fetched] = SingleFlight()

    # --- hits ---

    def peek(self, key: str, storing: Storing[T]) -> T | Absent:
        """Return the value at `key` if it is a hit in this process, without waiting."""
        began = _now_ns()
        peek = self._peek
        entry = None if peek is None else peek(key)
        if entry is None or entry.version != UNVERSIONED:
            return ABSENT
        clock = self._clock
        now_ms = clock.now_ms()
        if now_ms < clock.latest_ms:
            return ABSENT  # the clock was set back: `read` finds out more
        clock.latest_ms = now_ms
        if not YOUNGEST_MS <= now_ms - entry.stored_at_ms < entry.fresh_ms:  # as in `is_fresh`
            return ABSENT
        if (storing.tags or entry.tags) and entry.tags != self._peeked(storing.tags):
            return ABSENT
        kept: Any = entry.kept
        if type(kept) is Kept and kept.shared and kept.serializer is storing.serializer:
            value = kept.value  # as in `value_of`, without the call: every hit comes through here
        else:
            value = value_of(entry, storing.serializer)
            if value is ABSENT:
                return ABSENT
        statistics = self._statistics
        statistics.hits += 1
        statistics.local_hits += 1
        statistics.hit.record(_now_ns() - began)
        return value  # type: ignore[no-any-return]

    def _peeked(self, tags: Iterable[str]) -> Tags:
        """Return the tags that have a generation in this process."""
        peek = self._peek
        found = [(tag, None if peek is None else peek(TAG_PREFIX + tag)) for tag in tags]
        return tuple((tag, it.token) for tag, it in found if it is not None and self._current(it))

    def _current(self, generation: Entry) -> bool:
        return generation.version == UNVERSIONED and self._clock.is_fresh(generation)

    # --- reading ---

    async def get(
        self, key: str, load: Callable[[], Awaitable[T]], storing: Storing[T], *, bypass: bool
    ) -> T:
        """Return the value at `key`, from this process, from the store or from its source."""
        if bypass:
            return await self.bypass(key, load, storing)
        found = self.peek(key, storing)
        if isinstance(found, Absent):
            return await self.read(key, load, storing)
        return found

    async def read(self, key: str, load: Callable[[], Awaitable[T]], storing: Storing[T]) -> T:
        """Return the value at `key` from the store or its source, after `peek` found none."""
        return await self._answer(key, partial(self._read, key, load, storing))

    async def _answer(self, key: str, read: Callable[[], Awaitable[Answered[T]]]) -> T:
        """Return the value that `read` returns, and count it."""
        began = _now_ns()
        if self._instrumentation is None:
            value, outcome, coalesced = await read()
        else:
            value, outcome, coalesced = await follow(
                self._instrumentation, "read", key, read, self._described
            )
        return self._counted(began, value, outcome, coalesced=coalesced)

    def _described(self, answered: Answered[T]) -> Attributes:
        _, outcome, coalesced = answered
        return described(self._tier, outcome.value, coalesced=coalesced)

    async def _read(
        self, key: str, load: Callable[[], Awaitable[T]], storing: Storing[T]
    ) -> Answered[T]:
        try:
            check_value_key(key)
            expected_ms = self._clock.detect_step_back()
            if expected_ms is not None and isinstance(self._backend, SupportsClockSteps):
                self._backend.clock_set_back(expected_ms)
            found = await self._find(key, storing)
            if found is not None and found.entry is not None:
                value = value_of(found.entry, storing.serializer)
                if not isinstance(value, Absent):
                    return value, CacheOutcome.HIT, False
                found = None
            with self._loads.waiting_for((key,)):
                (entry, outcome), joined = await self._share(key, load, storing, found)
            value = value_of(entry, storing.serializer)
            if isinstance(value, Absent):  # of another caller, who has another serializer
                return await self._bypass(key, load, storing)
        except Exception:
            self._statistics.read_errors += 1
            raise
        return value, outcome, joined

    async def _find(self, key: str, storing: Storing[Any]) -> Lookup | None:
        """Return a fresh entry with its present tags, or what failed; None if there is none."""
        if not storing.tags:
            found = await self._fetcher.find(key)
            if found is None or found.entry is None:
                return found
            entry, tags = found.entry, _NO_TAGS
        else:
            try:
                cells = await self._backend.get_many((key, *tag_keys(storing.tags)))
            except CacheError:
                self._statistics.errors += 1
                return Lookup(None, CacheOutcome.BYPASS, failed=True)
            if key not in cells:
                return None
            entry, tags = cells[key], self._generations(storing.tags, cells)
        served = entry.version == UNVERSIONED and entry.tags == tags
        return Lookup(entry, CacheOutcome.HIT) if served and self._clock.is_fresh(entry) else None

    def _generations(self, tags: Iterable[str], cells: Mapping[str, Entry]) -> Tags:
        found = [(tag, cells.get(TAG_PREFIX + tag)) for tag in tags]
        return tuple((tag, it.token) for tag, it in found if it is not None and self._current(it))

    async def _share(
        self,
        key: str,
        load: Callable[[], Awaitable[T]],
        storing: Storing[T],
        failed: Lookup | None,
    ) -> tuple[Fetched, bool]:
        """Fetch an entry together with equal callers; return it, and whether it was shared."""
        async with bound_to_caller(load) as bound_load:
            while True:
                fetch = partial(self._fetch, key, bound_load, storing, failed)
                try:
                    return await self._flights.share(key, fetch)
                except LoaderLeft as left:
                    if left.load is bound_load:
                        raise
                    # It was the load of a caller who has gone; now it is this caller's turn.

    async def _fetch(
        self,
        key: str,
        load: Callable[[], Awaitable[T]],
        storing: Storing[T],
        failed: Lookup | None,
    ) -> Fetched:
        tags = _NO_TAGS
        if storing.tags and failed is None:
            # Before the load, and before the entry is looked at.
            generations = await asyncio.gather(*map(self._generation, storing.tags))
            known = [(t, g) for t, g in zip(storing.tags, generations, strict=True) if g]
            tags = tuple(known)
            if len(known) < len(storing.tags):
                failed = Lookup(None, CacheOutcome.BYPASS, failed=True)

        def accepts(entry: Entry) -> bool:
            return (
                entry.version == UNVERSIONED
                and entry.tags == tags
                and value_of(entry, storing.serializer) is not ABSENT
            )

        async def load_document() -> UnversionedDocument:
            value = await load()
            ttl = storing.ttl if value is not None or storing.none else 0.0
            return UnversionedDocument(storing.serializer.dumps(value), ttl, tags)

        return await self._fetcher.fetch(key, load_document, accepts, failed)

    async def _generation(self, tag: str) -> str:
        """Return the generation of a tag, or give it one; empty if the store cannot be used."""
        key, token = TAG_PREFIX + tag, self._token()
        found = await self._fetcher.take_lease(key, token, self._current)
        if found.failed:
            return ""
        if found.entry is not None and found.outcome is CacheOutcome.HIT:
            return found.entry.token
        document = UnversionedDocument(b"", _TAG_SECONDS)
        entry = self._lifetimes.unversioned_entry(document, token, self._clock.now_ms())
        publish_as = token if found.entry is None else found.entry.token or token
        await self._publisher.publish(publish_as, {key: entry})
        return token  # if it was not stored, nobody else will have it: nothing is accepted for it

    async def bypass(self, key: str, load: Callable[[], Awaitable[T]], storing: Storing[T]) -> T:
        """Load the value at `key` for this caller alone, and remove an entry that may be older."""
        return await self._answer(key, partial(self._bypass, key, load, storing))

    async def _bypass(
        self, key: str, load: Callable[[], Awaitable[T]], storing: Storing[T]
    ) -> Answered[T]:
        check_value_key(key)
        with self._loads.waiting_for((key,)):
            token, now_ms = self._token(), self._clock.now_ms()
            self._statistics.database_loads += 1
            async with bound_to_caller(load) as bound_load:
                loaded = await self._loads.run((key,), bound_load)
            document = UnversionedDocument(storing.serializer.dumps(loaded), 0.0)
            entry = self._lifetimes.unversioned_entry(document, token, now_ms)
            await self._publisher.publish(token, {key: version_only(entry)})
        return storing.serializer.loads(document.body), CacheOutcome.BYPASS, False

    def _counted(
        self, began: int, value: T, outcome: CacheOutcome, *, coalesced: bool = False
    ) -> T:
        took, statistics = _now_ns() - began, self._statistics
        if outcome is CacheOutcome.HIT:
            statistics.hits += 1
            statistics.hit.record(took)
        else:
            count_fetched(statistics, outcome, took, coalesced=coalesced)
        return value

    def in_flight(self) -> int:
        """Return the number of keys that are being loaded."""
        return len(self._flights)

    async def aclose(self) -> None:
        """Cancel all shared loads, and wait for their end."""
        await self._flights.aclose()
