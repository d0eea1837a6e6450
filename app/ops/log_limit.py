"""A limit on log lines that clients can cause as often as they like."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_INTERVAL = 10.0
_REQUEST_MESSAGES = (
    "Invalid HTTP request received.",
    "Refused a request.",
    "Unsupported upgrade request.",
    "No supported WebSocket library detected.",
)


class LogLimitFilter(logging.Filter):
    """Pass a message at most once in an interval, with the number of those left out before.

    Args:
        prefixes: how the limited messages begin; all others pass.
        interval: seconds between two lines of one message.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        prefixes: tuple[str, ...] = _REQUEST_MESSAGES,
        interval: float = _INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._prefixes = prefixes
        self._interval = interval
        self._clock = clock
        self._passed_at: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is logged; add to it how many like it were not."""
        message = str(record.msg)
        prefix = next((each for each in self._prefixes if message.startswith(each)), None)
        if prefix is None:
            return True
        now = self._clock()
        if prefix in self._passed_at and now - self._passed_at[prefix] < self._interval:
            self._left_out[prefix] = self._left_out.get(prefix, 0) + 1
            return False
        self._passed_at[prefix] = now
        left_out = self._left_out.pop(prefix, 0)
        if left_out:
            record.msg = f"{message} ({left_out} more since the last such line)"
        return True


def limit_request_logs() -> None:
    """Limit the lines that uvicorn logs for requests that it cannot read. Safe to call again."""
    server = logging.getLogger("uvicorn.error")
    if not any(isinstance(each, LogLimitFilter) for each in server.filters):
        server.addFilter(LogLimitFilter())
