"""Cells in this process: an LRU of cachetools, bounded by entries and by bytes.

For one event loop of one process. Every operation runs without an await, so it is atomic there.

A cell that has expired is dropped when it is met, or when it has become the least recently used.
cachetools' own timed caches drop everything that has expired in one go, which stops the loop for
as long as that takes; the bounds make such a sweep needless.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cachetools import LRUCache

from jobcache.codec import Fence, Lease
from jobcache.protocol import Entry, Offered, Standing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jobcache.settings import CacheSettings

    Cell = Entry | Lease | Fence

_SLOT_BYTES = 1000
"""About what a cell takes beside its body and key: objects, dictionary slots, links."""


@dataclass(frozen=True, slots=True)
class _Slot:
    cell: Cell
    deadline: float
    bytes: int


class MemoryBackend:
    """Cells in a dictionary.

    Args:
        max_entries: the most cells it holds.
        max_bytes: about the most memory they take. A larger single entry is never kept.
        lease: seconds until a lease is lost.
        fence: seconds until a fence is lost; longer than any transaction takes.
        clock: monotonic time in seconds.

    Raises:
        ValueError: a bound is not positive.
    """

    name = "memory"

    def __init__(
        self,
        *,
        max_entries: int = 100_000,
        max_bytes: int = 256 * 1024 * 1024,
        lease: float = 5.0,
        fence: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_entries < 1 or max_bytes < 1:
            raise ValueError("max_entries and max_bytes are at least 1")
        self._max_entries = max_entries
        self._lease_for = lease
        self._fence_for = fence
        self._clock = clock
        self._slots: LRUCache[str, _Slot] = LRUCache(max_bytes, getsizeof=lambda slot: slot.bytes)

    # --- the operations ---

    def peek(self, key: str) -> Entry | None:
        """As `get`, synchronously."""
        cell = self._cell(key)
        return cell if isinstance(cell, Entry) else None

    async def get(self, key: str) -> Entry | None:
        """See `CacheBackend`."""
        return self.peek(key)

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """See `CacheBackend`."""
        return {key: entry for key in keys if (entry := self.peek(key)) is not None}

    async def lease(self, key: str, ticket: str) -> Entry | Standing:
        """See `CacheBackend`."""
        cell = self._cell(key)
        if isinstance(cell, Entry):
            return cell
        if isinstance(cell, Fence):
            return Standing.FENCE
        if cell is None:
            self._put(key, Lease(ticket), self._lease_for)
        elif cell.ticket != ticket:
            return Standing.LEASE
        return Standing.NOTHING

    async def fence(self, key: str, ticket: str) -> None:
        """See `CacheBackend`."""
        cell = self._cell(key)
        if isinstance(cell, Fence):
            self._put_until(key, Fence(cell.floor, cell.tickets | {ticket}), self._deadline(key))
        else:
            floor = cell.version if isinstance(cell, Entry) else 0
            self._put(key, Fence(floor, frozenset({ticket})), self._fence_for)

    async def offer(  # noqa: PLR0911 - a return for each line of the contract
        self, key: str, ticket: str, entry: Entry | None
    ) -> Offered:
        """See `CacheBackend`."""
        cell = self._cell(key)
        if cell is None:
            return Offered.NOTHING
        if isinstance(cell, Fence):
            return self._leave(key, cell, ticket, entry)
        if isinstance(cell, Lease):
            if cell.ticket == ticket:
                return self._store(key, entry, Offered.STORED)
            return Offered.KEPT if entry is None else self._remove(key)
        if entry is None or cell.version > entry.version:
            return Offered.KEPT
        if cell.version == entry.version:
            return self._store(key, entry, Offered.PROLONGED)
        return self._remove(key)

    async def purge(self, keys: Sequence[str]) -> int:
        """See `CacheBackend`."""
        dropped = 0
        for key in dict.fromkeys(keys):
            cell = self._cell(key)
            if cell is not None and not isinstance(cell, Fence):
                self._remove(key)
                dropped += 1
        return dropped

    async def purge_all(self) -> int:
        """See `PurgeAll`."""
        dropped = len(self._slots)
        self._slots.clear()
        return dropped

    def holdings(self) -> tuple[int, int]:
        """See `Holdings`. Expired cells count until they are dropped."""
        return len(self._slots), int(self._slots.currsize)

    async def aclose(self) -> None:
        """Let go of everything."""
        self._slots.clear()

    # --- cells ---

    def _leave(self, key: str, fence: Fence, ticket: str, entry: Entry | None) -> Offered:
        floor = fence.floor if entry is None else max(fence.floor, entry.version)
        others = fence.tickets - {ticket}
        if others:
            self._put_until(key, Fence(floor, others), self._deadline(key))
            return Offered.FENCED
        if entry is None or entry.version < floor:
            return self._remove(key)
        return self._store(key, entry, Offered.STORED)

    def _store(self, key: str, entry: Entry | None, done: Offered) -> Offered:
        if entry is None or entry.keep_ms == 0:
            return self._remove(key)
        return done if self._put(key, entry, entry.keep_ms / 1000) else Offered.REMOVED

    def _remove(self, key: str) -> Offered:
        del self._slots[key]
        return Offered.REMOVED

    def _cell(self, key: str) -> Cell | None:
        slot = self._slots.get(key)
        if slot is None:
            return None
        if slot.deadline <= self._clock():
            del self._slots[key]
            return None
        return slot.cell

    def _deadline(self, key: str) -> float:
        return self._slots[key].deadline

    def _put(self, key: str, cell: Cell, seconds: float) -> bool:
        return self._put_until(key, cell, self._clock() + seconds)

    def _put_until(self, key: str, cell: Cell, deadline: float) -> bool:
        body = len(cell.body) if isinstance(cell, Entry) else 0
        slots = self._slots
        if key not in slots:
            while len(slots) >= self._max_entries:
                slots.popitem()
        try:
            slots[key] = _Slot(cell, deadline, _SLOT_BYTES + len(key) + body)
        except ValueError:  # larger than all of the memory there is
            slots.pop(key, None)
            return False
        return True


def from_settings(settings: CacheSettings) -> MemoryBackend:
    """The factory behind the name "memory"."""
    return MemoryBackend(max_entries=settings.max_entries, max_bytes=settings.max_bytes)
