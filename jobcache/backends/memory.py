"""Cells in this process: a dictionary in order of use, bounded by entries and by bytes.

For one event loop of one process. Every operation runs without an await, so it is atomic there.

Nothing here takes longer the more cells there are. A cell that has expired is dropped when it is
met, or when it has become the least recently used; the bounds make a sweep needless. What is
emptied as a whole is set aside, and its memory given back a few cells at a time.

Rejected: cachetools' caches, which this once was. Those with a time to live drop all that has
expired in one go, and the loop stands still meanwhile; `clear` does the same. `LRUCache` is right,
but every hit goes through it, and an `OrderedDict` is all that it needs of it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobcache.protocol.backend import CLOCK_SKEW_MS, Entry, Health, LeaseResult, PublishResult
from jobcache.protocol.cell import Fence, Lease

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jobcache.settings import CacheSettings

    Cell = Entry | Lease | Fence

_SLOT_BYTES = 1000
"""About what a cell takes beside its body and key: objects, dictionary slots, links."""
_FREED_AT_ONCE = 100
"""Cells set aside that each new one gives back: soon all, and no step takes long."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """A cell.

    Attributes:
        cell: what it holds.
        due: when it is to be looked at: an entry is past its freshness then, whatever the wall
            clock says, which may have been set back.
        deadline: when it is lost.
        bytes: about how many it takes.
    """

    cell: Cell
    due: float
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
        self._max_bytes = max_bytes
        self._lease_for = lease
        self._fence_for = fence
        self._clock = clock
        # The least recently used first.
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._bytes = 0
        self._set_aside: list[OrderedDict[str, _Slot]] = []
        self._unconfirmed: OrderedDict[str, _Slot] = OrderedDict()
        self._suspended = ""
        self._since = clock()

    # --- the operations ---

    def peek(self, key: str) -> Entry | None:
        """As `get`, synchronously."""
        slots = self._slots
        slot = slots.get(key)
        # As `_cell`, without the call: every hit comes through here.
        if slot is None:
            return None
        if slot.due <= self._clock():
            cell = self._cell(key)
            return cell if isinstance(cell, Entry) else None
        slots.move_to_end(key)
        cell = slot.cell
        return cell if isinstance(cell, Entry) else None

    async def get(self, key: str) -> Entry | None:
        """See `CacheBackend`."""
        return self._get(key)

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """See `CacheBackend`."""
        return {key: entry for key in keys if (entry := self._get(key)) is not None}

    def _get(self, key: str) -> Entry | None:
        cell = self._cell(key)
        return cell if isinstance(cell, Entry) else None

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:
        """See `CacheBackend`."""
        cell = self._cell(key)
        if isinstance(cell, Entry):
            return cell
        if isinstance(cell, Fence):
            return LeaseResult.FENCED
        if cell is None:
            self._put(key, Lease(token), self._lease_for)
        elif cell.token != token:
            return LeaseResult.HELD
        return LeaseResult.ACQUIRED

    async def fence(self, key: str, token: str) -> None:
        """See `CacheBackend`."""
        cell = self._cell(key)
        if isinstance(cell, Fence):
            self._put_until(
                key, Fence(cell.fence_version, cell.tokens | {token}), self._deadline(key)
            )
        else:
            fence_version = cell.version if isinstance(cell, Entry) else 0
            self._put(key, Fence(fence_version, frozenset({token})), self._fence_for)

    async def publish(  # noqa: PLR0911 - a return for each line of the contract
        self, key: str, token: str, entry: Entry | None
    ) -> PublishResult:
        """See `CacheBackend`."""
        cell = self._cell(key)
        if cell is None:
            return PublishResult.NOTHING
        if isinstance(cell, Fence):
            return self._leave(key, cell, token, entry)
        if isinstance(cell, Lease):
            if cell.token == token:
                return self._store(key, entry, PublishResult.STORED)
            return PublishResult.KEPT if entry is None else self._remove(key)
        if entry is None or cell.version > entry.version:
            return PublishResult.KEPT
        if cell.version == entry.version:
            return self._store(key, entry, PublishResult.PROLONGED)
        return self._remove(key)

    async def purge(self, keys: Sequence[str]) -> int:
        """See `CacheBackend`."""
        return self.drop(keys)

    async def purge_all(self) -> int:
        """See `SupportsPurgeAll`."""
        return self.drop_all()

    def drop(self, keys: Sequence[str]) -> int:
        """See `SupportsDiscard`."""
        dropped = 0
        for key in dict.fromkeys(keys):
            cell = self._cell(key)
            if cell is not None and not isinstance(cell, Fence):
                self._remove(key)
                dropped += 1
        return dropped

    def set_lease_time(self, seconds: float) -> None:
        """See `SupportsLeaseTime`."""
        self._lease_for = max(self._lease_for, seconds)

    def drop_all(self) -> int:
        """See `SupportsDiscard`."""
        dropped = len(self._slots) + len(self._unconfirmed)
        self._set_aside += [self._slots, self._unconfirmed]
        self._slots, self._unconfirmed, self._bytes = OrderedDict(), OrderedDict(), 0
        return dropped

    def size(self) -> tuple[int, int]:
        """See `SupportsSize`. Expired cells count until they are dropped."""
        return len(self._slots), self._bytes

    # --- while entries cannot be trusted ---

    @property
    def suspended(self) -> bool:
        """Whether it keeps nothing for now."""
        return self._suspended != ""

    def suspend(self, reason: str) -> bool:
        """Drop everything and keep nothing until `resume`; return False if it does so already.

        Args:
            reason: for people; not empty.
        """
        if self._suspended:
            self._suspended = reason
            return False
        self._suspended, self._since = reason, self._clock()
        self.drop_all()
        return True

    def resume(self) -> bool:
        """Keep entries again; return False if that was not suspended."""
        if not self._suspended:
            return False
        self._suspended, self._since = "", self._clock()
        return True

    def reset(self) -> None:
        """Have the source confirm each entry before it is served as fresh again.

        Until then it is served only while the source is away. Leases and fences are lost, as with
        an eviction.
        """
        self._set_aside.append(self._unconfirmed)
        self._unconfirmed, self._slots, self._bytes = self._slots, OrderedDict(), 0

    def condition(self) -> Health:
        """See `SupportsHealth`."""
        return Health(
            available=not self._suspended,
            state="open" if self._suspended else "closed",
            age=self._clock() - self._since,
            reason=self._suspended,
            pending=0,
        )

    async def aclose(self) -> None:
        """Let go of everything."""
        self.drop_all()

    # --- cells ---

    def _leave(self, key: str, fence: Fence, token: str, entry: Entry | None) -> PublishResult:
        fence_version = (
            fence.fence_version if entry is None else max(fence.fence_version, entry.version)
        )
        others = fence.tokens - {token}
        if others:
            self._put_until(key, Fence(fence_version, others), self._deadline(key))
            return PublishResult.FENCED
        if entry is None or entry.version < fence_version:
            return self._remove(key)
        return self._store(key, entry, PublishResult.STORED)

    def _store(self, key: str, entry: Entry | None, done: PublishResult) -> PublishResult:
        if entry is None or entry.keep_ms == 0:
            return self._remove(key)
        return done if self._put(key, entry, entry.keep_ms / 1000) else PublishResult.REMOVED

    def _remove(self, key: str) -> PublishResult:
        self._bytes -= self._slots.pop(key).bytes
        return PublishResult.REMOVED

    def _cell(self, key: str) -> Cell | None:
        slot = self._slots.get(key)
        if slot is None:
            return self._unconfirmed_cell(key) if self._unconfirmed else None
        now = self._clock()
        if slot.deadline <= now:
            self._remove(key)
            return None
        self._slots.move_to_end(key)
        if slot.due <= now and isinstance(slot.cell, Entry):
            aged = slot.cell.past_its_freshness()
            slot = self._slots[key] = _Slot(aged, slot.deadline, slot.deadline, slot.bytes)
        return slot.cell

    def _unconfirmed_cell(self, key: str) -> Cell | None:
        slot = self._unconfirmed.pop(key, None)
        if slot is None or not isinstance(slot.cell, Entry) or slot.deadline <= self._clock():
            return None
        entry = slot.cell.past_its_freshness()
        return entry if self._put_until(key, entry, slot.deadline) else None

    def _deadline(self, key: str) -> float:
        return self._slots[key].deadline

    def _put(self, key: str, cell: Cell, seconds: float) -> bool:
        return self._put_until(key, cell, self._clock() + seconds)

    def _put_until(self, key: str, cell: Cell, deadline: float) -> bool:
        """Put a cell in, and others out; False if it is larger than all of the memory there is."""
        if self._suspended:
            return False
        if self._unconfirmed:
            self._unconfirmed.popitem(last=False)  # new entries take the place of old ones
        if self._set_aside:
            self._free_some()
        slots = self._slots
        body = len(cell.encoded_body) if isinstance(cell, Entry) else 0
        needed = _SLOT_BYTES + len(key) + body
        if key in slots:
            self._remove(key)
        if needed > self._max_bytes:
            return False
        while slots and (len(slots) >= self._max_entries or self._bytes + needed > self._max_bytes):
            self._bytes -= slots.popitem(last=False)[1].bytes
        due = deadline
        if isinstance(cell, Entry):
            due = min(deadline, self._clock() + (cell.fresh_ms + CLOCK_SKEW_MS) / 1000)
        slots[key] = _Slot(cell, due, deadline, needed)
        self._bytes += needed
        return True

    def _free_some(self) -> None:
        aside = self._set_aside[-1]
        for _ in range(min(_FREED_AT_ONCE, len(aside))):
            aside.popitem()
        if not aside:
            self._set_aside.pop()


def from_settings(settings: CacheSettings) -> MemoryBackend:
    """The factory behind the name "memory"."""
    return MemoryBackend(max_entries=settings.max_entries, max_bytes=settings.max_bytes)
