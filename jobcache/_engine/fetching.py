"""Fetch a document when the cache has no entry to serve: lease, load, publish.

    nothing                       take the lease, load, publish
    a fence, or another's lease   wait for the entry, but not for long; then load and publish
    the cache is away             load

`docs/coherence.md` explains each step, and shows the stale read that happens without it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from jobcache.errors import CacheError, InvalidDocument, SourceUnavailable, UnreadableCell
from jobcache.models import CacheOutcome
from jobcache.protocol.backend import CacheBackend, LeaseResult
from jobcache.protocol.document import GONE, Document, UnversionedDocument
from jobcache.protocol.entry import UNVERSIONED, Entry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from jobcache._engine.cell_changes import CellChanges
    from jobcache._engine.clock import WallClock
    from jobcache._engine.loading import Loads
    from jobcache._engine.publishing import Publisher
    from jobcache.lifetimes import Lifetimes
    from jobcache.models import LoadMany
    from jobcache.observability.statistics import Statistics
    from jobcache.resilience.batched_gets import BatchedGets

    Fetched = tuple[Entry, CacheOutcome]
    Accepts = Callable[[Entry], bool]
    Loaded = Document | UnversionedDocument

PAUSES = tuple(0.002 * 2**n for n in range(7))
"""Seconds after which a reader looks again at a cell that others are working on.

A change of the cell that is reported wakes it earlier. It shortens no pause, so a reader waits as
long as others publish something else.
"""

ATTEMPTS = {LeaseResult.ACQUIRED: 0, LeaseResult.FENCED: 5, LeaseResult.HELD: len(PAUSES)}
"""How many of these pauses a reader makes before it asks the source itself. The entry that it waits
for is probably on its way, but its writer may be dead."""


def at_least(min_version: int) -> Accepts:
    """Return what a read of a document with versions accepts: this version, and newer ones."""
    return lambda entry: entry.version >= min_version


def count_fetched(
    statistics: Statistics, outcome: CacheOutcome, took: int, *, coalesced: bool
) -> None:
    """Count a read that was not a hit and took so many nanoseconds."""
    if outcome is CacheOutcome.BYPASS:
        statistics.bypasses += 1
    elif outcome is CacheOutcome.STALE:
        statistics.stale_served += 1
    else:
        statistics.misses += 1
    statistics.miss.record(took)
    statistics.coalesced += coalesced


@dataclass(frozen=True, slots=True)
class Lookup:
    """What the cache held before a load.

    Attributes:
        entry: the entry, if there is one.
        outcome: how a read is counted that is answered from here, or by a load.
        failed: True if the backend failed, so nobody knows what the cell holds.
        leased: True if the reader has the lease.
    """

    entry: Entry | None
    outcome: CacheOutcome
    failed: bool = False
    leased: bool = False


class Fetcher:
    """Loads documents that the cache lacks, and publishes them.

    Args:
        backend: the store of the entries.
        statistics: the counters of the cache.
        clock: decides whether an entry is fresh.
        lifetimes: the lifetimes of loaded entries.
        loads: runs loaders.
        publisher: publishes loaded documents.
        changes: wakes reads behind a fence or a lease.
        token: makes unique tokens.
        sleep: waits for the given seconds.
        gets: batches gets; None if the entries are in this process.
    """

    def __init__(
        self,
        backend: CacheBackend,
        *,
        statistics: Statistics,
        clock: WallClock,
        lifetimes: Lifetimes,
        loads: Loads,
        publisher: Publisher,
        changes: CellChanges,
        token: Callable[[], str],
        sleep: Callable[[float], Awaitable[object]],
        gets: BatchedGets | None,
    ) -> None:
        self._backend = backend
        self._get: Callable[[str], Awaitable[Entry | None]] = (
            backend.get if gets is None else gets.get
        )
        self._statistics = statistics
        self._clock = clock
        self._lifetimes = lifetimes
        self._loads = loads
        self._publisher = publisher
        self._changes = changes
        self._token = token
        self._sleep = sleep

    async def find(self, key: str) -> Lookup | None:
        """Return what the cache holds at `key`; None if it holds no entry."""
        try:
            entry = await self._get(key)
        except CacheError as error:
            return await self._failed(error, key)
        return None if entry is None else Lookup(entry, CacheOutcome.EXPIRED)

    async def fetch(
        self,
        key: str,
        load: Callable[[], Awaitable[Loaded | None]],
        accepts: Accepts,
        failed: Lookup | None,
    ) -> Fetched:
        """Return the entry at `key`, from the cache if another caller has stored it meanwhile.

        Args:
            key: the key.
            load: loads the document.
            accepts: returns whether an entry may be served while it is fresh. It may be served past
                its freshness while the source is away, too.
            failed: the result of `find` if it failed: the backend is not asked again.
        """

        async def load_one() -> dict[str, Loaded]:
            document = await load()
            return {} if document is None else {key: document}

        token = self._token()
        found = failed
        if found is None:
            found = await self.take_lease(key, token, accepts)
        if found.entry is not None and found.outcome is CacheOutcome.HIT:
            return found.entry, CacheOutcome.HIT
        # An unversioned entry that was found is the lease of its successor.
        publish_as = "" if found.entry is None else found.entry.token
        fetched = (await self._fill(token, {key: found}, load_one, accepts, publish_as))[key]
        if isinstance(fetched, InvalidDocument):
            raise fetched
        return fetched

    async def fetch_many(
        self, keys: Sequence[str], load_many: LoadMany
    ) -> dict[str, Fetched | InvalidDocument]:
        """Return the entries at `keys`, with one batched get and at most one load."""
        token, accepts = self._token(), at_least(0)
        try:
            entries = await self._backend.get_many(keys)
        except CacheError as error:
            unknown = await self._failed(error)
            findings = dict.fromkeys(keys, unknown)
        else:
            findings = {key: self._judge(entry, accepts) for key, entry in entries.items()}
            absent = [key for key in keys if key not in findings]
            leased = await asyncio.gather(*(self.take_lease(key, token, accepts) for key in absent))
            findings.update(zip(absent, leased, strict=True))
        fetched: dict[str, Fetched | InvalidDocument] = {}
        lacking: dict[str, Lookup] = {}
        for key, found in findings.items():
            if found.entry is not None and found.outcome is CacheOutcome.HIT:
                fetched[key] = found.entry, CacheOutcome.HIT
            else:
                lacking[key] = found
        if lacking:
            load = partial(load_many, tuple(lacking))
            fetched.update(await self._fill(token, lacking, load, accepts))
        return fetched

    async def take_lease(self, key: str, token: str, accepts: Accepts) -> Lookup:
        """Take the lease of an empty cell; behind others, wait a moment for their entry."""
        try:
            with self._changes.noticed(key) as change:
                found = await self._backend.lease(key, token)
                for number, pause in enumerate(PAUSES):
                    if isinstance(found, Entry) or number >= ATTEMPTS[found]:
                        break
                    found = await self._lease_again(key, token, change, pause)
        except CacheError as error:
            return await self._failed(error, key)
        return self._judge(found, accepts)

    async def _lease_again(
        self, key: str, token: str, change: asyncio.Event, pause: float
    ) -> Entry | LeaseResult:
        """Lease a cell at each change, until others have left it or `pause` seconds are over."""
        pausing = asyncio.ensure_future(self._sleep(pause))
        pausing.add_done_callback(lambda _: change.set())
        try:
            while True:
                await change.wait()
                change.clear()
                over = pausing.done()
                found = await self._backend.lease(key, token)
                if over or found is LeaseResult.ACQUIRED or isinstance(found, Entry):
                    return found
        finally:
            pausing.cancel()

    async def _failed(self, error: CacheError, *keys: str) -> Lookup:
        self._statistics.errors += 1
        emptied = False
        if isinstance(error, UnreadableCell):
            with suppress(CacheError):
                await self._backend.purge(keys)  # or every read would fail there
                emptied = True
        return Lookup(None, CacheOutcome.BYPASS, failed=not emptied)

    def _judge(self, found: Entry | LeaseResult, accepts: Accepts) -> Lookup:
        if isinstance(found, Entry):
            served = accepts(found) and self._clock.is_fresh(found)
            return Lookup(found, CacheOutcome.HIT if served else CacheOutcome.EXPIRED)
        outcome = CacheOutcome.BYPASS if found is LeaseResult.FENCED else CacheOutcome.MISS
        return Lookup(None, outcome, leased=found is LeaseResult.ACQUIRED)

    async def _fill(
        self,
        token: str,
        lacking: Mapping[str, Lookup],
        load: Callable[[], Awaitable[Mapping[str, Loaded]]],
        accepts: Accepts,
        publish_as: str = "",
    ) -> dict[str, Fetched | InvalidDocument]:
        """Load what the cache lacks, and publish it under `publish_as`, or else under `token`."""
        try:
            loaded, invalid = await self._load(token, load, lacking)
        except BaseException as error:
            leased = [
                key for key, found in lacking.items() if not found.failed and found.entry is None
            ]
            await self._publisher.publish_shielded(token, dict.fromkeys(leased))
            kept: dict[str, Fetched | InvalidDocument] = {
                key: (entry, CacheOutcome.STALE)
                for key, found in lacking.items()
                if (entry := found.entry) is not None and not entry.gone and accepts(entry)
            }
            if isinstance(error, SourceUnavailable) and len(kept) == len(lacking):
                return kept
            raise
        stored = await self._stored_meanwhile(loaded, lacking, accepts)
        # Publish before a caller sees the loaded documents:
        #   R loads v2 and returns it, unpublished; the cell still holds v1; the next read gets v1
        publishable = {
            key: loaded.get(key)
            for key, found in lacking.items()
            if not found.failed and key not in stored
        }
        loaded |= stored
        hints = {key: entry for key, entry in loaded.items() if lacking[key].failed}
        await asyncio.gather(
            self._publisher.publish(publish_as or token, publishable), self._publisher.hint(hints)
        )
        return {
            key: invalid[key] if key in invalid else (loaded[key], found.outcome)
            for key, found in lacking.items()
        }

    async def _stored_meanwhile(
        self, loaded: Mapping[str, Entry], lacking: Mapping[str, Lookup], accepts: Accepts
    ) -> dict[str, Entry]:
        """Return the entries to answer with instead of what a reader without the lease has loaded.

        Of two values without a version nobody knows which is newer, so a publish would remove the
        entry that is there, and the next reader would load again:

            R0 leases, R1 waits in vain and loads; R0 publishes; R1 publishes: the cell is empty

        A read that begins now would be given this entry. So a read that ends now can be, too.
        """
        stored: dict[str, Entry] = {}
        for key, found in lacking.items():
            entry = loaded.get(key)
            if found.leased or found.failed or entry is None or entry.version != UNVERSIONED:
                continue
            with suppress(CacheError):
                there = await self._get(key)
                if (
                    there is not None
                    and there.version == UNVERSIONED
                    and self._judge(there, accepts).outcome is CacheOutcome.HIT
                ):
                    stored[key] = there
        return stored

    async def _load(
        self,
        token: str,
        load: Callable[[], Awaitable[Mapping[str, Loaded]]],
        keys: Collection[str],
    ) -> tuple[dict[str, Entry], dict[str, InvalidDocument]]:
        """Return the entries that `load` has loaded, and an error for each invalid document."""
        self._statistics.database_loads += 1
        now_ms = self._clock.now_ms()  # before the snapshot: an age is never understated
        began = time.perf_counter_ns()
        documents = await self._loads.run(keys, load)
        self._statistics.database_load.record(time.perf_counter_ns() - began)
        if not isinstance(documents, Mapping):
            raise InvalidDocument(f"a loader of many returned a {type(documents).__name__}")
        loaded: dict[str, Entry] = {}
        invalid: dict[str, InvalidDocument] = {}
        for key in keys:
            document = documents.get(key)
            if document is None:
                document = GONE
            if isinstance(document, UnversionedDocument):
                loaded[key] = self._lifetimes.unversioned_entry(document, token, now_ms)
            elif not isinstance(document, Document):
                kind = f"a {type(document).__name__}; it must be a Document, or None"
                invalid[key] = InvalidDocument(f"the loader of {key!r} returned {kind}")
            elif document.version == 0 and document.body:
                what = "a body with version 0, which means that there is no document"
                invalid[key] = InvalidDocument(f"the loader of {key!r} returned {what}")
            else:
                loaded[key] = self._lifetimes.entry(document, now_ms)
        return loaded, invalid
