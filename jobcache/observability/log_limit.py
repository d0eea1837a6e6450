"""A limit on log lines of one kind, so that no failure writes a line for each key or request."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class LogLimit:
    """Admits a few lines a minute, and counts the rest.

    Args:
        lines: how many a minute.
        clock: monotonic time in seconds.
    """

    def __init__(self, lines: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._lines = lines
        self._clock = clock
        self._left = lines
        self._renewed_at = clock()
        self._omitted = 0

    def admit(self) -> str | None:
        """Return None if the line is to be omitted, else what to append to it.

        That is empty, or says how many lines were omitted before this one.
        """
        now = self._clock()
        if now - self._renewed_at >= _MINUTE:
            self._renewed_at, self._left = now, self._lines
        if self._left == 0:
            self._omitted += 1
            return None
        self._left -= 1
        omitted, self._omitted = self._omitted, 0
        return f" ({omitted} more lines of this kind were omitted)" if omitted else ""


_MINUTE = 60.0  # seconds
