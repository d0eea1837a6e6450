"""Write-through: fence, the caller's transaction commits, offer, and only then acknowledge."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

from jobcache.errors import CacheError, WriteMisuse
from jobcache.offers import unkept
from jobcache.protocol import VERSION_LIMIT, Document, Entry

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from jobcache.offers import Offers
    from jobcache.protocol import CacheBackend
    from jobcache.stats import Statistics
    from jobcache.ttl import Lifetimes

    # What a write made of a key: a document, or only its version where the body is not at hand.
    _Result = Document | int

T = TypeVar("T")


class Write(Generic[T]):
    """The inside of `JobCache.write`: fence what will change, then say what it became.

    Attributes:
        transaction: what entering the caller's transaction returned.
    """

    def __init__(
        self,
        transaction: T,
        results: dict[str, _Result | None],
        fence: Callable[[str], Awaitable[None]],
    ) -> None:
        self.transaction = transaction
        self._results = results
        self._fence = fence

    async def fence(self, *keys: str) -> None:
        """Fence more keys, such as those known only once a row has been inserted.

        Must come before the commit, so within the block.
        """
        await asyncio.gather(*map(self._fence, keys))

    def offer(self, key: str, document: Document) -> None:
        """Say what `key` is, once the transaction has committed.

        Raises:
            WriteMisuse: `key` is not fenced, or the version is not a committed one.
        """
        self._record(key, document, document.version)

    def outdate(self, key: str, version: int) -> None:
        """Say that `key` has changed to `version`, whose body is not at hand: it is left empty.

        Raises:
            WriteMisuse: as for `offer`.
        """
        self._record(key, version, version)

    def _record(self, key: str, result: _Result, version: int) -> None:
        if key not in self._results:
            raise WriteMisuse(f"{key} is offered but was never fenced")
        if not 0 < version < VERSION_LIMIT:
            raise WriteMisuse(f"{key} is offered as version {version}")
        self._results[key] = result


class Writes:
    """The writes of one `JobCache`; see there.

    Args:
        backend: what is fenced.
        offers: how committed versions are handed over.
        lifetimes: how long they live.
        statistics: counted into.
        clock_ms: wall-clock time in milliseconds since the epoch.
        ticket: makes unique tickets.
    """

    def __init__(
        self,
        backend: CacheBackend,
        *,
        offers: Offers,
        lifetimes: Lifetimes,
        statistics: Statistics,
        clock_ms: Callable[[], int],
        ticket: Callable[[], str],
    ) -> None:
        self._backend = backend
        self._offers = offers
        self._lifetimes = lifetimes
        self._statistics = statistics
        self._clock_ms = clock_ms
        self._ticket = ticket

    @asynccontextmanager
    async def through(
        self, transaction: AbstractAsyncContextManager[T], keys: Sequence[str]
    ) -> AsyncGenerator[Write[T], None]:
        """See `JobCache.write`."""
        ticket = self._ticket()
        results: dict[str, _Result | None] = {}
        unsure: set[str] = set()
        reached_commit = False

        async def fence(key: str) -> None:
            # Noted first: an attempt that fails or is cancelled may have put the fence up.
            results.setdefault(key, None)
            self._statistics.fences += 1
            try:
                await self._backend.fence(key, ticket)
            except CacheError:
                self._statistics.errors += 1
                unsure.add(key)

        try:
            async with transaction as entered:
                await asyncio.gather(*map(fence, keys))
                yield Write(entered, results, fence)
                forgotten = [key for key, result in results.items() if result is None]
                if forgotten:
                    raise WriteMisuse(f"fenced, but never offered: {', '.join(forgotten)}")
                reached_commit = True
        finally:
            if not reached_commit:
                await self._offers.make_surely(ticket, dict.fromkeys(results))
        if reached_commit:
            # A client that goes away between commit and offer does not leave the fences up.
            await self._offers.make_surely(ticket, self._committed(results, unsure))

    def _committed(
        self, results: Mapping[str, _Result | None], unsure: set[str]
    ) -> dict[str, Entry]:
        now_ms = self._clock_ms()
        entries: dict[str, Entry] = {}
        for key, result in results.items():
            if isinstance(result, Document):
                entry = self._lifetimes.entry(result, now_ms)
                # A fence that may arrive late, followed by its offer, would store what others
                # have overtaken; see `guard`.
                entries[key] = unkept(entry) if key in unsure else entry
            elif result is not None:
                entries[key] = Entry(result, "", "", None, b"", "identity", now_ms, 0, 0)
        return entries
