"""The wall clock of a cache, and whether an entry is fresh by it.

An entry keeps the wall-clock time at which it was stored. If the clock is set back, entries look
younger than they are:

    v1 is stored at 12:00:00, fresh for 30 s; at 12:00:20 the clock is set to 12:00:00
    at 12:00:29, by that clock, v1 is served, although it is 49 s old
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from jobcache.protocol.entry import CLOCK_SKEW_MS

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobcache.protocol.entry import Entry

YOUNGEST_MS = -CLOCK_SKEW_MS
"""The lowest age of an entry that is served. An entry from the future shows that the clocks of two
hosts differ, and does not show its age."""


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


def _monotonic_ms() -> int | None:
    return time.monotonic_ns() // 1_000_000


def _no_clock() -> int | None:
    return None


class WallClock:
    """A wall clock that detects when it was set back.

    Args:
        now_ms: wall-clock time in milliseconds since the epoch; None: the system's.

    Attributes:
        now_ms: as given.
        latest_ms: the latest time that the clock has shown.
    """

    def __init__(self, now_ms: Callable[[], int] | None) -> None:
        self.now_ms = _wall_clock_ms if now_ms is None else now_ms
        # A clock of the caller's own may stand still, or jump, while real time passes.
        self._monotonic_ms = _monotonic_ms if now_ms is None else _no_clock
        self.latest_ms = 0
        self._offset_ms = 0

    def detect_step_back(self) -> int | None:
        """Return the time that the clock should show at least if it was set back, else None."""
        now_ms, monotonic_ms = self.now_ms(), self._monotonic_ms()
        expected_ms = self.latest_ms
        if monotonic_ms is not None:
            expected_ms = max(expected_ms, self._offset_ms + monotonic_ms)
            self._offset_ms = now_ms - monotonic_ms
        self.latest_ms = now_ms
        return expected_ms if now_ms < expected_ms - CLOCK_SKEW_MS else None

    def is_fresh(self, entry: Entry) -> bool:
        """Return whether `entry` is served without asking the source."""
        # `Reads.peek`, `Reads._hit` and `Values.peek` repeat this rule, because a call more would
        # slow down every hit. A clock that was set back they leave to `detect_step_back`.
        now_ms = self.now_ms()
        if now_ms < self.latest_ms - CLOCK_SKEW_MS:
            return False  # the clock was set back: `detect_step_back` tells the backend
        self.latest_ms = max(self.latest_ms, now_ms)
        return YOUNGEST_MS <= now_ms - entry.stored_at_ms < entry.fresh_ms
