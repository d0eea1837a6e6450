"""`JobCache`: what is done with cells. Read-through, write-through, invalidation; no storage.

A read          get -> an entry: serve it
                    -> nothing: lease, load, publish
                    -> a fence, or somebody's lease: wait briefly for the entry, then load, publish
                    -> the cache is away: load
A write         fence -> the caller's transaction commits -> publish -> acknowledge

Why each step is there, and which schedule goes stale without it, is in `docs/coherence.md`.

Rejected: to delete the key after the commit and let readers refill it. A reader that loaded before
the commit stores the old row after the delete, and a writer that dies between commit and delete
leaves the old entry behind.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from jobcache._engine.loading import Loads
from jobcache._engine.publishing import Publisher
from jobcache._engine.shadow_reads import Shadow
from jobcache._engine.single_flight import SingleFlight
from jobcache._engine.watchers import PollIntervals, Readers, Watchers
from jobcache._engine.writing import WriteCoordinator
from jobcache.errors import (
    CacheClosed,
    CacheError,
    InvalidDocument,
    InvalidKey,
    SourceUnavailable,
    UnreadableCell,
    WrongLoop,
)
from jobcache.lifetimes import Lifetimes
from jobcache.loaders import LoaderLeft, attended
from jobcache.models import CacheOutcome, ReadResult, ReadResults
from jobcache.observability.statistics import Statistics
from jobcache.protocol.backend import (
    CLOCK_SKEW_MS,
    GONE,
    CacheBackend,
    Document,
    Entry,
    FeedStatus,
    Health,
    LeaseResult,
    SupportsBodyCheck,
    SupportsCallbackGet,
    SupportsChangeFeed,
    SupportsClockSteps,
    SupportsHealth,
    SupportsLeaseTime,
    SupportsNamespaceOwner,
    SupportsPeek,
    SupportsPurgeAll,
    SupportsSize,
    SupportsStart,
    SupportsTiers,
    check_key,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager

    from jobcache._engine.watchers import Later
    from jobcache._engine.writing import Write
    from jobcache.models import Load

    LoadMany = Callable[[Sequence[str]], Awaitable[Mapping[str, Document]]]
    _Fetched = tuple[Entry, CacheOutcome]

T = TypeVar("T")

PAUSES = tuple(0.002 * 2**n for n in range(7))
"""How long a reader waits, in seconds, between its looks at a cell that others are at work on."""

PATIENCE = {LeaseResult.ACQUIRED: 0, LeaseResult.FENCED: 5, LeaseResult.HELD: len(PAUSES)}
"""How many of those pauses it makes before it asks the source itself: 62 ms behind a fence, 254 ms
behind a lease. What it waits for is on its way, and costs nothing; but its writer may be dead."""

_LEASE_MARGIN = 5.0
"""Seconds that a lease outlives the longest load, for the steps before and after it."""

# On the path of every poll: to look one of these up takes as long as to look for the entry, and so
# does the function that `ReadResult(...)` is.
_HIT = CacheOutcome.HIT
_YOUNGEST_MS = -CLOCK_SKEW_MS
_new = tuple.__new__


def _any_body(key: str, body: bytes) -> None:
    """Accept any body that could be read."""


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


def _monotonic_ms() -> int | None:
    return time.monotonic_ns() // 1_000_000


def _no_clock() -> int | None:
    return None


@dataclass(frozen=True, slots=True)
class _Finding:
    """What the cache had to say before a load; `sure`: whether it could say anything at all."""

    entry: Entry | None
    outcome: CacheOutcome
    sure: bool


class JobCache:
    """Serves documents from a backend and keeps it coherent with their source.

    One instance belongs to one event loop, the one that uses it first. Whatever fails in the cache
    costs a load, never an answer.

    Args:
        backend: where entries live.
        lifetimes: how long, by status.
        statistics: counted into; a new one if None.
        load_timeout: seconds that a load may take. Then it is cancelled, and fails with
            `LoadTimeout`, a `SourceUnavailable`. Leases last a little longer, so whatever is loaded
            in time can be stored. None: no limit, and what a slow load brings may not be stored.
        check_body: called with the key and the body, without its encoding, of each entry that comes
            from a store outside this process, when it is first seen there and up to 1 MiB. If it
            raises an exception, the entry is removed and loaded again.
        shadow_rate: the part of the hits of `read` that is compared with the source afterwards, at
            the cost of a load each; see `shadow`.
        clock_ms: wall-clock time in milliseconds since the epoch; None: the system's.
        token: makes unique tokens of ASCII letters and digits.
        sleep: waits for the given seconds.
        poll_intervals: how often keys are read that somebody waits for.
        later: calls a function after so many seconds; None: by the running loop's clock.

    Attributes:
        writes: the steps of a write, for who has to take them one by one, as `sync` has.
    """

    def __init__(
        self,
        backend: CacheBackend,
        *,
        lifetimes: Lifetimes | None = None,
        statistics: Statistics | None = None,
        load_timeout: float | None = 30.0,
        check_body: Callable[[str, bytes], object] | None = None,
        shadow_rate: float = 0.0,
        clock_ms: Callable[[], int] | None = None,
        token: Callable[[], str] = lambda: secrets.token_hex(8),
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        poll_intervals: PollIntervals | None = None,
        later: Later | None = None,
    ) -> None:
        self.backend = backend
        self.lifetimes = Lifetimes() if lifetimes is None else lifetimes
        self.statistics = Statistics() if statistics is None else statistics
        self._peek = backend.peek if isinstance(backend, SupportsPeek) else None
        self._ask = backend.ask if isinstance(backend, SupportsCallbackGet) else None
        # What a peek reads, and what stands behind it: without tiers, the same.
        both = backend.name, backend.name
        self._local, self._remote = backend.tiers if isinstance(backend, SupportsTiers) else both
        self._clock_ms = _wall_clock_ms if clock_ms is None else clock_ms
        # A clock of the caller's own may stand still, or jump, while real time passes.
        self._monotonic_ms = _monotonic_ms if clock_ms is None else _no_clock
        self._latest_ms = self._offset_ms = 0
        self._token = token
        self._sleep = sleep
        self._flights: SingleFlight[_Fetched] = SingleFlight()
        self._batches: SingleFlight[dict[str, _Fetched | InvalidDocument]] = SingleFlight()
        self._loads = Loads(load_timeout)
        if load_timeout is not None and isinstance(backend, SupportsLeaseTime):
            backend.set_lease_time(load_timeout + _LEASE_MARGIN)
        if isinstance(backend, SupportsBodyCheck):
            backend.set_body_check(_any_body if check_body is None else check_body)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._shadow = Shadow(
            backend,
            self.statistics,
            shadow_rate,
            partial(self._serves, min_version=0),
            load=partial(self._loads.run, ()),
            sleep=sleep,
        )
        self._publisher = Publisher(backend, self.statistics, token)
        self._waiting = Watchers(
            backend,
            Readers(self.peek, self._glance, self._read_at_least),
            PollIntervals() if poll_intervals is None else poll_intervals,
            later,
        )
        self.writes = WriteCoordinator(
            backend=backend,
            publisher=self._publisher,
            lifetimes=self.lifetimes,
            statistics=self.statistics,
            clock_ms=self._clock_ms,
            token=token,
            written=self._waiting.written,
            bind=self._bind,
        )

    def _bind(self) -> None:
        """Check that this is the loop that the cache belongs to.

        Raises:
            WrongLoop: it is another one.
            CacheClosed: the cache is closed.
        """
        loop = asyncio.get_running_loop()
        if self._closed:
            raise CacheClosed("the cache is closed; make a new one")
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise WrongLoop(
                "this JobCache belongs to another event loop, which used it first: make one for"
                " each loop, or use jobcache.sync.JobCache where there is no lasting loop"
            )

    # --- reading ---

    async def read(self, key: str, load: Load, *, min_version: int = 0) -> ReadResult:
        """The document at `key`, from the cache or else from its source.

        Never older than any version that was acknowledged, or returned by another read, before
        this one began (what that means for each backend is in `docs/promises.md`).

        Args:
            key: callers who use the same key must bring equivalent loaders.
            load: reads the document from the source of truth (a primary, in a snapshot that
                begins when it is called); None if it does not exist.
            min_version: the caller has seen this version, and is to be given nothing older from the
                cache. If the source itself has nothing as new, its answer stands.

        Raises:
            SourceUnavailable: a load was needed, and the source is away, or `LoadTimeout`.
            InvalidDocument: the key cannot be used, or `load` returned no document.
            RecursiveLoad: this is a part of a load that would wait for itself.
            WrongLoop: this is another event loop than the one that used the cache first.
            Exception: whatever else `load` raised.
        """
        if self._loop is not asyncio.get_running_loop() or type(key) is not str:
            self._bind()
            check_key(key)
        at_hand = self.peek(key, load, min_version)
        if at_hand is not None:
            return at_hand
        began = time.perf_counter_ns()
        self._watch_clock()
        try:
            check_key(key)
            found = await self._look(key)
            if (
                found is not None
                and found.entry is not None
                and self._serves(found.entry, min_version)
            ):
                self._shadow.hit(key, found.entry, load)
                return self._answer(began, found.entry, CacheOutcome.HIT)
            # A look that failed is not repeated by the load, which would wait for the store again.
            blind = found if found is not None and found.entry is None else None
            with self._loads.waiting_for((key,)):
                async with attended(load) as attended_load:
                    fetch = partial(self._fetch, key, attended_load, min_version, blind)
                    (entry, outcome), joined = await self._share(
                        key, attended_load, min_version, fetch
                    )
        except Exception:
            self.statistics.read_errors += 1
            raise
        return self._answer(began, entry, outcome, coalesced=joined)

    async def _share(
        self,
        key: str,
        load: Load,
        min_version: int,
        fetch: Callable[[], Awaitable[tuple[Entry, CacheOutcome]]],
    ) -> tuple[tuple[Entry, CacheOutcome], bool]:
        """Fetch an entry together with equal callers; return it, and whether it was shared."""
        while True:
            try:
                (entry, outcome), joined = await self._flights.share((key, 0), fetch)
                if entry.version < min_version and outcome in {
                    CacheOutcome.HIT,
                    CacheOutcome.STALE,
                }:
                    # The one who asked first had seen less than this caller has.
                    return await self._flights.share((key, min_version), fetch)
            except LoaderLeft as left:
                if left.load is load:
                    raise
                continue  # it was the load of a caller who has gone; now it is this caller's turn
            return (entry, outcome), joined

    async def read_many(self, keys: Iterable[str], load_many: LoadMany) -> ReadResults:
        """As `read`, for several keys: one look at the cache, one load for all that it lacks.

        Args:
            keys: duplicates count once.
            load_many: given the keys that are lacking, returns their documents; one that it
                leaves out does not exist.

        Returns:
            An answer for every key, in the order of `keys`. One key that cannot be used, or for
            which `load_many` returned no document, spares the others: it is left out, and to look
            it up raises `InvalidDocument`.

        Raises:
            Exception: as `read`, for all keys together.
        """
        self._bind()
        began = time.perf_counter_ns()
        self._watch_clock()
        answers = ReadResults()
        wanted = []
        for key in dict.fromkeys(keys):
            try:
                check_key(key)
            except InvalidKey as error:
                answers.errors[key] = error
            else:
                wanted.append(key)
        try:
            with self._loads.waiting_for(wanted):
                async with attended(load_many) as attended_load:
                    # Nobody else's, but for the same reason: a caller that goes leaves no lease.
                    fetched, _ = await self._batches.share(
                        object(), partial(self._fetch_many, tuple(wanted), attended_load)
                    )
        except Exception:
            self.statistics.read_errors += len(wanted)
            raise
        for key in wanted:
            found = fetched[key]
            if isinstance(found, InvalidDocument):
                answers.errors[key] = found
            else:
                answers[key] = self._answer(began, *found)
        self.statistics.read_errors += len(answers.errors)
        return answers

    def peek(self, key: str, load: Load, min_version: int = 0) -> ReadResult | None:
        """As `read`, where no waiting is needed: an entry of this process, without a task switch.

        None, and not counted, where there is none to be served; `read` then finds out more.
        """
        began = time.perf_counter_ns()
        entry = None if self._peek is None else self._peek(key)
        if entry is None or entry.version < min_version:
            return None
        now_ms = self._clock_ms()
        if now_ms < self._latest_ms:
            return None  # the clock was set back: `read` finds out more
        self._latest_ms = now_ms
        age_ms = now_ms - entry.stored_at_ms
        if not _YOUNGEST_MS <= age_ms < entry.fresh_ms:  # see `_serves`
            return None
        if self._shadow.rate:
            self._shadow.hit(key, entry, load)
        statistics = self.statistics
        statistics.hits += 1
        statistics.local_hits += 1
        statistics.hit.record(time.perf_counter_ns() - began)
        age_ms = age_ms if age_ms > 0 else 0  # noqa: FURB136 - which would be a call
        return _new(ReadResult, (entry, _HIT, False, self._local, age_ms))

    def ask(
        self, key: str, load: Load, min_version: int, then: Callable[[ReadResult | None], object]
    ) -> bool:
        """As `peek`, where one look at a store elsewhere is needed, and no task for it.

        Args:
            key: as for `read`.
            load: as for `read`.
            min_version: as for `read`.
            then: called in a later turn of the loop with a hit; with None where there is none to be
                served, and `read` is to find out more. It must not raise.

        Returns:
            False, and `then` is not called, where there is no such store, or it is set aside.
        """
        if self._ask is None or self._loop is not asyncio.get_running_loop() or not key.isascii():
            return False  # `read` finds out more, or binds the cache to this loop
        began = time.perf_counter_ns()

        def answered(found: Entry | CacheError | None) -> None:
            if not isinstance(found, Entry) or not self._serves(found, min_version):
                then(None)
                return
            self._shadow.hit(key, found, load)
            then(self._answer(began, found, _HIT))

        return self._ask(key, answered)

    def _watch_clock(self) -> None:
        """Notice when the wall clock was set back, for entries look younger than they are then.

        v1 is stored at 12:00:00, fresh for 30 s; at 12:00:20 the clock is set to 12:00:00
        at 12:00:29, by then, v1 is served, which is 49 s old
        """
        now_ms, monotonic_ms = self._clock_ms(), self._monotonic_ms()
        expected_ms = self._latest_ms
        if monotonic_ms is not None:
            expected_ms = max(expected_ms, self._offset_ms + monotonic_ms)
            self._offset_ms = now_ms - monotonic_ms
        self._latest_ms = now_ms
        if now_ms < expected_ms - CLOCK_SKEW_MS and isinstance(self.backend, SupportsClockSteps):
            self.backend.clock_set_back(expected_ms)

    def _serves(self, entry: Entry, min_version: int) -> bool:
        now_ms = self._clock_ms()
        if now_ms < self._latest_ms - CLOCK_SKEW_MS:
            return False  # see `_watch_clock`
        self._latest_ms = max(self._latest_ms, now_ms)
        age_ms = now_ms - entry.stored_at_ms
        # An entry from the future says that clocks differ, and nothing of its age.
        return entry.version >= min_version and _YOUNGEST_MS <= age_ms < entry.fresh_ms

    def _answer(
        self,
        began: int,
        entry: Entry,
        outcome: CacheOutcome,
        *,
        coalesced: bool = False,
    ) -> ReadResult:
        took = time.perf_counter_ns() - began
        age_ms = max(0, self._clock_ms() - entry.stored_at_ms)
        statistics = self.statistics
        if outcome is CacheOutcome.HIT:
            statistics.hits += 1
            statistics.hit.record(took)
            coalesced = False  # a hit shared on its way is a hit to each
        else:
            if outcome is CacheOutcome.BYPASS:
                statistics.bypasses += 1
            elif outcome is CacheOutcome.STALE:
                statistics.stale_served += 1
            else:
                statistics.misses += 1
            statistics.miss.record(took)
            statistics.coalesced += coalesced
        return ReadResult(entry, outcome, coalesced, self._remote, age_ms)

    async def _fetch(
        self, key: str, load: Load, min_version: int, blind: _Finding | None
    ) -> _Fetched:
        async def load_one() -> dict[str, Document]:
            document = await load()
            return {} if document is None else {key: document}

        token = self._token()
        found = blind
        if found is None:
            found = await self._take_lease(key, token, min_version)
        if found.entry is not None and found.outcome is CacheOutcome.HIT:
            return found.entry, CacheOutcome.HIT
        fetched = (await self._fill(token, {key: found}, load_one, min_version))[key]
        if isinstance(fetched, InvalidDocument):
            raise fetched
        return fetched

    async def _look(self, key: str) -> _Finding | None:
        """What the cache holds; None if it holds no entry."""
        try:
            entry = await self.backend.get(key)
        except CacheError as error:
            return await self._cannot_tell(error, key)
        return None if entry is None else self._judge(entry, 0)

    async def _take_lease(self, key: str, token: str, min_version: int) -> _Finding:
        """Take the lease if there is nothing; behind others, wait a moment for their entry."""
        try:
            found = await self.backend.lease(key, token)
            for number, pause in enumerate(PAUSES):
                if isinstance(found, Entry) or number >= PATIENCE[found]:
                    break
                await self._sleep(pause)
                found = await self.backend.lease(key, token)
        except CacheError as error:
            return await self._cannot_tell(error, key)
        return self._judge(found, min_version)

    async def _cannot_tell(self, error: CacheError, *keys: str) -> _Finding:
        self.statistics.errors += 1
        told = False
        if isinstance(error, UnreadableCell):
            with suppress(CacheError):
                await self.backend.purge(keys)  # or every read would stumble over it
                told = True
        return _Finding(None, CacheOutcome.BYPASS, sure=told)

    def _judge(self, found: Entry | LeaseResult, min_version: int) -> _Finding:
        if isinstance(found, Entry):
            outcome = CacheOutcome.HIT if self._serves(found, min_version) else CacheOutcome.EXPIRED
            return _Finding(found, outcome, sure=True)
        outcome = CacheOutcome.BYPASS if found is LeaseResult.FENCED else CacheOutcome.MISS
        return _Finding(None, outcome, sure=True)

    async def _fetch_many(
        self, keys: Sequence[str], load_many: LoadMany
    ) -> dict[str, _Fetched | InvalidDocument]:
        token = self._token()
        try:
            entries = await self.backend.get_many(keys)
        except CacheError as error:
            unknown = await self._cannot_tell(error)
            findings = dict.fromkeys(keys, unknown)
        else:
            findings = {key: self._judge(entry, 0) for key, entry in entries.items()}
            absent = [key for key in keys if key not in findings]
            leased = await asyncio.gather(*(self._take_lease(key, token, 0) for key in absent))
            findings.update(zip(absent, leased, strict=True))
        fetched: dict[str, _Fetched | InvalidDocument] = {}
        lacking: dict[str, _Finding] = {}
        for key, found in findings.items():
            if found.entry is not None and found.outcome is CacheOutcome.HIT:
                fetched[key] = found.entry, CacheOutcome.HIT
            else:
                lacking[key] = found
        if lacking:
            load = partial(load_many, tuple(lacking))
            fetched.update(await self._fill(token, lacking, load, 0))
        return fetched

    async def _fill(
        self,
        token: str,
        lacking: Mapping[str, _Finding],
        load: Callable[[], Awaitable[Mapping[str, Document]]],
        min_version: int,
    ) -> dict[str, _Fetched | InvalidDocument]:
        """Load what the cache lacks, and publish it."""
        try:
            loaded, invalid = await self._load(load, lacking)
        except BaseException as error:
            leased = [key for key, found in lacking.items() if found.sure and found.entry is None]
            await self._publisher.publish_shielded(token, dict.fromkeys(leased))
            kept: dict[str, _Fetched | InvalidDocument] = {
                key: (entry, CacheOutcome.STALE)
                for key, found in lacking.items()
                if (entry := found.entry) is not None
                and not entry.gone
                and entry.version >= min_version
            }
            if isinstance(error, SourceUnavailable) and len(kept) == len(lacking):
                return kept
            raise
        # Before anybody sees what was loaded:
        #   R loads v2 and returns it, unoffered; the cell still holds v1; the next read is given v1
        sure = {key: loaded.get(key) for key, found in lacking.items() if found.sure}
        unsure = {key: loaded[key] for key in loaded if key not in sure}
        await asyncio.gather(self._publisher.publish(token, sure), self._publisher.tell(unsure))
        return {
            key: invalid[key] if key in invalid else (loaded[key], found.outcome)
            for key, found in lacking.items()
        }

    async def _load(
        self, load: Callable[[], Awaitable[Mapping[str, Document]]], keys: Collection[str]
    ) -> tuple[dict[str, Entry], dict[str, InvalidDocument]]:
        """The entries of what `load` has loaded, and an error for each that is no document."""
        self.statistics.database_loads += 1
        now_ms = self._clock_ms()  # before the snapshot: an age is never understated
        began = time.perf_counter_ns()
        documents = await self._loads.run(keys, load)
        self.statistics.database_load.record(time.perf_counter_ns() - began)
        if not isinstance(documents, Mapping):
            raise InvalidDocument(f"a loader of many returned a {type(documents).__name__}")
        loaded: dict[str, Entry] = {}
        invalid: dict[str, InvalidDocument] = {}
        for key in keys:
            document = documents.get(key)
            if document is None:
                document = GONE
            if not isinstance(document, Document):
                kind = f"a {type(document).__name__}; it must be a Document, or None"
                invalid[key] = InvalidDocument(f"the loader of {key!r} returned {kind}")
            elif document.version == 0 and document.body:
                what = "a body with version 0, which means that there is no document"
                invalid[key] = InvalidDocument(f"the loader of {key!r} returned {what}")
            else:
                loaded[key] = self.lifetimes.entry(document, now_ms)
        return loaded, invalid

    # --- waiting ---

    async def wait_for_newer(
        self,
        key: str,
        load: Load,
        version: int,
        timeout: float,  # noqa: ASYNC109 - one that ends with a value, and none of whose cost is a task
    ) -> ReadResult | None:
        """The document at `key`, as soon as there is a newer one than `version`.

        Woken by the process itself and by the backend's feed, and sure of neither: a newer version
        is found within seconds even if nothing tells of it (`PollIntervals`), unless the source is
        away. Costs a future and a timer; what it takes to look is shared by all who wait for `key`.

        Args:
            key: as for `read`.
            load: as for `read`.
            version: what the caller has; 0 if it has nothing.
            timeout: seconds until it is told that there is none; with 0 it only looks.

        Returns:
            As from `read`, newer than `version`, and as new as a read that began with this call;
            None when the time is up, or when `cancel_waiters` has been called.

        Raises:
            SourceUnavailable: the first look needed a load, and the source is away. If it goes
                away later, the caller waits for it to come back, as long as its time is not up.
            Exception: whatever else `load` raised, then or later.
        """
        self._bind()
        until, left = time.monotonic() + timeout, timeout
        async with attended(load) as attended_load:
            while True:
                with self._waiting.registered(key, attended_load, version, left) as waiter:
                    answer = await self.read(key, attended_load, min_version=version)
                    if answer.entry.version > version:
                        return answer
                    try:
                        return await waiter.answered
                    except LoaderLeft:  # a check used the load of a caller who has gone
                        left = until - time.monotonic()

    def cancel_waiters(self) -> None:
        """Tell all who wait that there is nothing newer, and have nobody wait from now on."""
        self._waiting.stop()

    def waiting(self) -> tuple[int, int]:
        """How many callers of `wait_for_newer` wait, and for how many keys."""
        return self._waiting.waiters, len(self._waiting)

    async def _glance(self, key: str, load: Load, min_version: int) -> ReadResult | None:
        """A hit, without asking the source; None if there is none."""
        answer = self.peek(key, load, min_version)
        if answer is not None:
            return answer
        began = time.perf_counter_ns()
        found = await self._look(key)
        if found is None or found.entry is None or not self._serves(found.entry, min_version):
            return None
        return self._answer(began, found.entry, CacheOutcome.HIT)

    async def _read_at_least(self, key: str, load: Load, min_version: int) -> ReadResult:
        return await self.read(key, load, min_version=min_version)

    # --- writing ---

    def write(
        self, transaction: AbstractAsyncContextManager[T], *keys: str
    ) -> AbstractAsyncContextManager[Write[T]]:
        """Wrap the caller's own transaction, so that the cache never hides what it commits.

            async with cache.write(engine.begin(), key) as write:
                row = (await write.transaction.execute(UPDATE_RETURNING)).one()
                write.publish(key, document_of(row))
            # committed, and published: now acknowledge

        The transaction begins, the keys are fenced, the block runs, the transaction commits, and
        what the block published is handed over; readers get it from the cache at once. If the
        block raises, the transaction is rolled back and the fences are withdrawn, which leaves
        the keys empty. So it is best to fence late, with `Write.fence` once the row is changed:
        what is refused, or meets a database that is away, then costs the cache nothing. If the
        commit itself fails nobody knows whether it happened: the fences stay until they expire,
        and until then readers ask the source. A backend that is away holds nobody up.

        The transaction must raise a version by the row's lock (`UPDATE … SET version = version +
        1 … RETURNING version`), so that versions grow in commit order.

        Args:
            transaction: commits when left normally, rolls back when left by an exception.
            keys: what it will change, where that is known beforehand; else `Write.fence`.

        Raises:
            WriteMisuse: a key was fenced, but never published. Nothing is committed then.
            Exception: whatever the block or the commit raised.
        """
        return self.writes.through(transaction, keys)

    # --- the rest ---

    async def start(self, source_id: str = "") -> None:
        """Find out how the backend's store is, so that the first reads need not. Not required.

        Args:
            source_id: the identity of the source, such as a random id kept in the database; see
                `CacheSettings.source_id`, which it replaces.

        Raises:
            NamespaceConflict: the store belongs to another source.
        """
        self._bind()
        if source_id and isinstance(self.backend, SupportsNamespaceOwner):
            self.backend.identify(source_id)
        if isinstance(self.backend, SupportsStart):
            await self.backend.start()

    async def invalidate(self, *keys: str) -> int:
        """Drop these keys' entries and leases; the next read of each asks the source.

        Not needed for coherence, where writes go through `write`: it is for operators, and for
        changes made behind the cache's back.

        Returns:
            How many keys held something that was dropped.

        Raises:
            CacheUnavailable: the backend is away. Behind a guard, the keys are remembered and
                dropped before it is used again.
        """
        self._bind()
        for key in keys:
            check_key(key)
        try:
            return await self.backend.purge(keys)
        finally:
            self._waiting.written(keys)

    async def invalidate_all(self) -> int:
        """As `invalidate`, for every key of the backend's namespace.

        Raises:
            CacheUnavailable: as for `invalidate`.
            CacheError: the backend cannot list its keys.
        """
        self._bind()
        if not isinstance(self.backend, SupportsPurgeAll):
            raise CacheError(f"the {self.backend.name} backend cannot list its keys")
        try:
            return await self.backend.purge_all()
        finally:
            self._waiting.anything()

    def condition(self) -> Health:
        """How the backend's store is; always in use where nothing watches it."""
        if isinstance(self.backend, SupportsHealth):
            return self.backend.condition()
        return Health(available=True, state="closed", age=0.0, reason="", pending=0)

    def feed(self) -> FeedStatus | None:
        """How the feed of changes is; None where there is none, for all is in this process."""
        feed = self.backend.feed() if isinstance(self.backend, SupportsChangeFeed) else None
        return None if feed is None else feed.condition()

    def tier_hits(self) -> dict[str, int]:
        """Hits by the tier that answered; one tier, if the backend has no others."""
        hits, local = self.statistics.hits, self.statistics.local_hits
        if self._local == self._remote:
            return {self._local: hits}
        return {self._local: local, self._remote: hits - local}

    def size(self) -> tuple[int, int] | None:
        """How many cells this process holds, and about how many bytes; None if it holds none."""
        return self.backend.size() if isinstance(self.backend, SupportsSize) else None

    async def aclose(self) -> None:
        """End waits and loads, let publishes finish, close the backend. Safe to call twice.

        Raises:
            WrongLoop: the cache belongs to another event loop.
        """
        if self._closed:
            return
        self._bind()
        self._closed = True
        self._loop = None
        await self._waiting.aclose()
        for flights in (self._flights, self._batches):
            await flights.aclose()
        await self._shadow.aclose()
        await self._loads.aclose()
        await self._publisher.join()
        await self.backend.aclose()
