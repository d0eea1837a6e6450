"""Handing committed versions over to a backend, in a way that costs nobody an answer."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from jobcache._concurrency.batching import side_by_side
from jobcache._concurrency.tasks import Shelter
from jobcache.errors import CacheError
from jobcache.protocol.backend import Entry, Offered, Remember

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jobcache.observability.statistics import Statistics
    from jobcache.protocol.backend import CacheBackend

_NOT_STORED = frozenset({Offered.NOTHING, Offered.REMOVED})


class Offers:
    """Offers of one `JobCache`. What fails is counted, and is the backend's to repeat.

    Args:
        backend: what to offer to.
        statistics: counted into.
        ticket: makes unique tickets.
    """

    def __init__(
        self, backend: CacheBackend, statistics: Statistics, ticket: Callable[[], str]
    ) -> None:
        self._backend = backend
        self._statistics = statistics
        self._ticket = ticket
        self._shelter = Shelter()

    async def make(self, ticket: str, entries: Mapping[str, Entry | None]) -> None:
        """Offer each entry under `ticket`; None withdraws it."""
        await side_by_side([self._offer(key, ticket, entry) for key, entry in entries.items()])

    async def make_surely(self, ticket: str, entries: Mapping[str, Entry | None]) -> None:
        """As `make`, to its end even if the caller is cancelled meanwhile."""
        await self._shelter.run(self.make(ticket, entries))

    async def tell(self, entries: Mapping[str, Entry]) -> None:
        """Tell of versions that were loaded although the store could not be asked.

        They are not to be stored: there may be a lease of the reader's that has gone stale on its
        way. Another ticket, and only the version, cannot be stored by it.
        """
        if isinstance(self._backend, Remember):
            for key, entry in entries.items():
                self._backend.remember(key, entry.version)  # to wait again would help nobody
        else:
            await self.make(self._ticket(), {key: unkept(e) for key, e in entries.items()})

    async def settle(self) -> None:
        """Wait until what has to be made surely has been made."""
        await self._shelter.settle()

    async def _offer(self, key: str, ticket: str, entry: Entry | None) -> None:
        began = time.perf_counter_ns()
        if entry is not None and entry.keep_ms == 0:
            entry = unkept(entry)  # its body, which may be large, need not travel
        try:
            done = await self._backend.offer(key, ticket, entry)
        except CacheError:
            self._statistics.errors += 1
        else:
            self._statistics.offer.record(time.perf_counter_ns() - began)
            if entry is not None and entry.keep_ms and done in _NOT_STORED:
                self._statistics.not_stored += 1


def unkept(entry: Entry) -> Entry:
    """The same version, not to be stored: only what is older than it is removed."""
    return replace(entry, body=b"", encoding="identity", keep_ms=0)
