"""Fewer lines in the log for what anybody can cause as often as they like."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_EVERY = 10.0
_OF_REQUESTS = (
    "Invalid HTTP request received.",
    "Refused a request.",
    "Unsupported upgrade request.",
    "No supported WebSocket library detected.",
)


class Seldom(logging.Filter):
    """Lets a message through once in a while, and has it say how often it came in between.

    Args:
        beginnings: of the messages that are counted; others pass.
        every: seconds between two lines of one message.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        beginnings: tuple[str, ...] = _OF_REQUESTS,
        every: float = _EVERY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._beginnings = beginnings
        self._every = every
        self._clock = clock
        self._said: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging`."""
        message = str(record.msg)
        kind = next((each for each in self._beginnings if message.startswith(each)), None)
        if kind is None:
            return True
        now = self._clock()
        if kind in self._said and now - self._said[kind] < self._every:
            self._unsaid[kind] = self._unsaid.get(kind, 0) + 1
            return False
        self._said[kind] = now
        unsaid = self._unsaid.pop(kind, 0)
        if unsaid:
            record.msg = f"{message} ({unsaid} more since the last such line)"
        return True


def quiet_malformed_requests() -> None:
    """Limit the lines that uvicorn logs for requests that it cannot read. Safe to call again."""
    server = logging.getLogger("uvicorn.error")
    if not any(isinstance(each, Seldom) for each in server.filters):
        server.addFilter(Seldom())
