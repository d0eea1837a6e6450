"""Entries that the source has to confirm before they are served again.

An entry that was stored before an outage ended may be old: another process may have missed an
operation too, and may notice the outage later than this process.

    Redis hangs; W in process A commits v2, which Redis does not receive
    Redis goes on; process B is the first to notice, reads v1; A replays its publish

So entries from before the end of the outage count as past their freshness: the source is asked, and
they are served only while the source is away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobcache.protocol.entry import CLOCK_SKEW_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jobcache.protocol.entry import Entry

_MOST_PUBLISHED = 10_000


class Confirmation:
    """Decide which entries of a store are to be confirmed by the source.

    Args:
        clock_ms: wall-clock time in milliseconds since the epoch.

    Attributes:
        active: whether there may be entries to confirm.
    """

    def __init__(self, clock_ms: Callable[[], int]) -> None:
        self._clock_ms = clock_ms
        self.active = False
        # Entries that were loaded or committed before this time have to be confirmed.
        self._from_ms = 0
        # After the wall clock was set back, that time may lie far ahead, and new entries have an
        # earlier time. So this process notes the entries that it publishes: their times, by key.
        self._published: dict[str, int] | None = None

    def apply(self, found: Mapping[str, Entry]) -> Mapping[str, Entry]:
        """Return the entries; entries that have to be confirmed are past their freshness."""
        if not self.active:
            return found
        return {key: self.apply_one(key, entry) for key, entry in found.items()}

    def apply_one(self, key: str, entry: Entry) -> Entry:
        """Return the entry, past its freshness if it has to be confirmed."""
        stored_at_ms, published = entry.stored_at_ms, self._published
        if stored_at_ms >= self._from_ms:
            return entry
        if published is not None and published.get(key) == stored_at_ms:
            return entry
        return entry.past_its_freshness()

    def note_published(self, key: str, entry: Entry) -> None:
        """Note that this process has published an entry, which the source has just confirmed."""
        published = self._published
        if published is not None and entry.stored_at_ms < self._from_ms:
            if len(published) >= _MOST_PUBLISHED:
                published.clear()  # costs one more load of each key
            published[key] = entry.stored_at_ms

    def outage_ended(self) -> None:
        """Require that all entries which were stored before now are confirmed."""
        self.active = True
        moment_ms = self._clock_ms() + CLOCK_SKEW_MS
        if moment_ms < self._from_ms:
            self._published = {}
        else:
            self._from_ms, self._published = moment_ms, None

    def clock_set_back(self, latest_ms: int) -> None:
        """Require that all entries which were stored before now are confirmed.

        Args:
            latest_ms: the latest time that the wall clock has shown.
        """
        self.active = True
        self._from_ms = max(self._from_ms, latest_ms + CLOCK_SKEW_MS)
        self._published = {}
