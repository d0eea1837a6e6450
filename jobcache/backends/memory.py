"""Cells in this process, kept by cachetools and bounded by entries and by bytes.

For one event loop of one process. No operation awaits anything, so each is atomic there.

No operation takes longer the more cells there are:

- The cells are spread over many `LRUCache`s by the hash of their key. A dictionary stops the loop
  while it grows, by as much as it holds; each of these holds a few thousand cells.
- A deadline stands beside its cell and is compared when the cell is looked up. An expired cell is
  dropped then, or evicted as the least recently used one. Nothing sweeps.
- A use is noted at most once a second for each cell, as in memcached. A hit in between only reads.
- Emptying the backend only replaces the caches. Each later operation frees a few of the old cells.

Rejected: `TTLCache` and `TLRUCache`. They drop all expired cells at once, which takes seconds where
a million have expired.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cachetools import Cache, LRUCache

from jobcache.protocol import cell as table
from jobcache.protocol.backend import LeaseResult, PublishResult
from jobcache.protocol.capabilities import Health
from jobcache.protocol.cell import Effect, Lease
from jobcache.protocol.entry import CLOCK_SKEW_MS, Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jobcache.protocol.cell import Cell, CellStep
    from jobcache.settings import CacheSettings

_SLOT_BYTES = 1000
"""About what a cell takes beside its body and key: objects, dictionary slots, links."""
_CELLS_OF_A_PART = 8192
_EVICTED_AT_ONCE = 1000
"""Cells that one operation evicts one by one, at most: it must not stop the loop."""
_FREED_AT_ONCE = 20
"""After the backend was emptied, each new cell frees so many old ones: all at once takes long."""
_USE_NOTED_FOR = 1.0
"""Seconds for which a cell that was used counts as just used. Pollers come less often."""
_look_up = Cache.__getitem__
"""Reads from an `LRUCache`, which does not note the use."""


@dataclass(slots=True)
class _Slot:
    """A cell and its times, by the backend's clock.

    Attributes:
        cell: what the cell holds.
        check_at: when more has to be done than to read the cell: at its deadline, when its entry is
            past its freshness, or when a use has to be noted.
        stale_at: when an entry is past its freshness, even if the wall clock was set back; at its
            deadline at the latest.
        deadline: when the cell is lost.
        trust: the backend's `_trust` when the cell was stored.
        used: whether the cell was read after it was stored.
    """

    cell: Cell
    check_at: float
    stale_at: float
    deadline: float
    trust: int
    used: bool = False


class _Part:
    """Some of the cells.

    Attributes:
        cells: by key, in order of use.
        bytes: about how many bytes they take.
    """

    __slots__ = ("bytes", "cells")

    def __init__(self, max_entries: int) -> None:
        self.cells: LRUCache[str, _Slot] = LRUCache(max_entries)
        self.bytes = 0


class MemoryBackend:
    """A backend that keeps its cells in this process.

    Args:
        max_entries: the largest number of cells.
        max_bytes: about the most memory that the cells take. A larger single entry is not kept.
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
        self._lease_seconds = lease
        self._fence_seconds = fence
        self._clock = clock
        self._part_count = -(-max_entries // _CELLS_OF_A_PART)
        self._parts = self._empty_parts()
        self._entries = self._bytes = 0
        self._set_aside: list[LRUCache[str, _Slot]] = []
        self._evictions = {"capacity": 0, "expired": 0, "invalidated": 0, "cleared": 0}
        self._trust = 0
        self._suspended = ""
        self._since = clock()

    # --- the operations ---

    def peek(self, key: str) -> Entry | None:
        """Return the entry at `key`, or None, without waiting."""
        # This is `_cell` without the call: every hit comes through here.
        try:
            slot: _Slot = _look_up(self._parts[hash(key) % self._part_count].cells, key)
        except KeyError:
            return None
        if slot.check_at <= self._clock() or slot.trust != self._trust:
            return self._get(key)
        found = slot.cell
        return found if isinstance(found, Entry) else None

    async def get(self, key: str) -> Entry | None:
        """Return the entry at `key`, or None."""
        return self._get(key)

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Return the entries that there are at `keys`."""
        return {key: entry for key in keys if (entry := self._get(key)) is not None}

    def _get(self, key: str) -> Entry | None:
        found = self._cell(key, read=True)
        return found if isinstance(found, Entry) else None

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:
        """Take the lease of an empty cell; leave any other cell and return its content."""
        return self.lease_now(key, token)

    def lease_now(self, key: str, token: str) -> Entry | LeaseResult:
        """Do as `lease`, without waiting."""
        step = table.lease(self._cell(key, read=True), token)
        self._carry_out(key, step)
        return step.result

    async def fence(self, key: str, token: str) -> None:
        """Fence the cell."""
        self._carry_out(key, table.fence(self._cell(key), token))

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:
        """Publish a committed version, or withdraw; an entry that is too large is not kept."""
        step = table.publish(self._cell(key), token, entry)
        return step.result if self._carry_out(key, step) else PublishResult.REMOVED

    async def purge(self, keys: Sequence[str]) -> int:
        """Empty these cells, but for fences."""
        return self.drop(keys)

    async def purge_all(self) -> int:
        """Empty every cell, fences too."""
        return self.drop_all()

    def drop(self, keys: Sequence[str]) -> int:
        """Empty these cells, but for fences, without waiting."""
        dropped = 0
        for key in dict.fromkeys(keys):
            if key not in self._part(key).cells:
                continue  # so it is for most keys that a change feed reports
            step = table.purge(self._cell(key))
            self._carry_out(key, step)
            dropped += step.result
        self._evictions["invalidated"] += dropped
        return dropped

    def set_lease_time(self, seconds: float) -> None:
        """Have leases that are taken from now on last for `seconds` at least."""
        self._lease_seconds = max(self._lease_seconds, seconds)

    def drop_all(self) -> int:
        """Empty every cell, fences too, without waiting."""
        dropped = self._entries
        self._evictions["cleared"] += dropped
        self._set_aside += [part.cells for part in self._parts if part.cells]
        self._parts = self._empty_parts()
        self._entries = self._bytes = 0
        return dropped

    def was_used(self, key: str) -> bool:
        """Return whether there is an entry that was read after it was stored."""
        cells = self._part(key).cells
        if key not in cells:
            return False
        slot: _Slot = _look_up(cells, key)
        return slot.used and isinstance(slot.cell, Entry)

    def size(self) -> tuple[int, int]:
        """Return how many cells there are and about how many bytes they take.

        Expired cells count until they are dropped.
        """
        return self._entries, self._bytes

    def evictions(self) -> dict[str, int]:
        """Return how many cells were dropped, by the reason."""
        return dict(self._evictions)

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

        Until then it is served only while the source is away. Leases and fences are lost, as if
        they had been evicted.
        """
        self._trust += 1

    def condition(self) -> Health:
        """Return whether the backend is suspended, and why."""
        return Health(
            available=not self._suspended,
            state="open" if self._suspended else "closed",
            age=self._clock() - self._since,
            reason=self._suspended,
            pending=0,
        )

    async def aclose(self) -> None:
        """Drop everything."""
        self.drop_all()

    # --- cells ---

    def _cell(self, key: str, *, read: bool = False) -> Cell:
        """Return what the cell holds now, and note the use.

        Args:
            key: the key.
            read: whether this is a read of the entry.
        """
        try:
            slot = self._parts[hash(key) % self._part_count].cells[key]
        except KeyError:
            return None
        now, found = self._clock(), slot.cell
        trusted = slot.trust == self._trust
        if slot.deadline <= now or not (trusted or isinstance(found, Entry)):
            self._evictions["expired"] += 1
            self._remove(key)
            return None
        if isinstance(found, Entry) and (slot.stale_at <= now or not trusted):
            found = slot.cell = found.past_its_freshness()
            slot.stale_at, slot.trust = slot.deadline, self._trust
        if read or slot.used:
            slot.used = True
            slot.check_at = min(now + _USE_NOTED_FOR, slot.stale_at)
        return found

    def _carry_out(self, key: str, step: CellStep[Any]) -> bool:
        """Return False if the cell had to be stored and was not."""
        effect = step.effect
        if effect is Effect.NEW_DEADLINE:
            return self._store(key, step.cell)
        if effect is Effect.KEEP_DEADLINE:
            self._part(key).cells[key].cell = step.cell  # a fence: it takes no more bytes
        elif effect is Effect.DELETE:
            self._remove(key)
        return True

    def _store(self, key: str, new: Cell) -> bool:
        """Store a cell with a new deadline; return False if nothing is kept or it is too large."""
        if self._set_aside:
            self._free_some()
        part = self._parts[hash(key) % self._part_count]
        needed = _bytes_of(key, new)
        if key in part.cells:
            held: _Slot = _look_up(part.cells, key)
            grown = needed - _bytes_of(key, held.cell)
            if self._bytes + grown <= self._max_bytes:
                part.bytes += grown
                self._bytes += grown
                held.cell, held.used = new, False
                held.check_at, held.stale_at, held.deadline = self._times(new)
                return True
            self._remove(key)
        if self._suspended or needed > self._max_bytes:
            return False
        if self._entries >= self._max_entries or self._bytes + needed > self._max_bytes:
            self._make_room(part, needed)
        part.cells[key] = _Slot(new, *self._times(new), self._trust)
        part.bytes += needed
        self._bytes += needed
        self._entries += 1
        return True

    def _times(self, new: Cell) -> tuple[float, float, float]:
        """Return the times of a cell that is stored now, as in `_Slot`."""
        now = self._clock()
        if isinstance(new, Entry):
            deadline = now + new.keep_ms / 1000
            stale_at = min(deadline, now + (new.fresh_ms + CLOCK_SKEW_MS) / 1000)
            return now, stale_at, deadline  # so that the first read is noted
        seconds = self._lease_seconds if isinstance(new, Lease) else self._fence_seconds
        return now, now, now + seconds

    def _remove(self, key: str) -> None:
        part = self._part(key)
        self._uncount(part, key, part.cells.pop(key))

    def _uncount(self, part: _Part, key: str, slot: _Slot) -> None:
        freed = _bytes_of(key, slot.cell)
        part.bytes -= freed
        self._bytes -= freed
        self._entries -= 1

    # --- room ---

    def _make_room(self, part: _Part, needed: int) -> None:
        """Evict cells of this part, if it has any, until one of `needed` bytes can be added."""
        for _ in range(_EVICTED_AT_ONCE):
            if self._has_room(needed):
                return
            fullest = part if part.cells else max(self._parts, key=_count)
            self._uncount(fullest, *fullest.cells.popitem())
            self._evictions["capacity"] += 1
        while not self._has_room(needed):
            # A large body. To evict the cells one by one would stop the loop.
            largest = max(self._parts, key=_bytes)
            self._set_aside.append(largest.cells)
            self._evictions["capacity"] += len(largest.cells)
            self._entries -= len(largest.cells)
            self._bytes -= largest.bytes
            largest.cells, largest.bytes = LRUCache(self._max_entries), 0

    def _has_room(self, needed: int) -> bool:
        return self._entries < self._max_entries and self._bytes + needed <= self._max_bytes

    def _free_some(self) -> None:
        cells = self._set_aside[-1]
        for _ in range(min(_FREED_AT_ONCE, len(cells))):
            cells.popitem()
        if not cells:
            self._set_aside.pop()

    def _part(self, key: str) -> _Part:
        return self._parts[hash(key) % self._part_count]

    def _empty_parts(self) -> list[_Part]:
        return [_Part(self._max_entries) for _ in range(self._part_count)]


def _bytes_of(key: str, held: Cell) -> int:
    return _SLOT_BYTES + len(key) + (len(held.encoded_body) if isinstance(held, Entry) else 0)


def _count(part: _Part) -> int:
    return len(part.cells)


def _bytes(part: _Part) -> int:
    return part.bytes


def from_settings(settings: CacheSettings) -> MemoryBackend:
    """Return the backend that is registered as "memory"."""
    return MemoryBackend(max_entries=settings.max_entries, max_bytes=settings.max_bytes)
