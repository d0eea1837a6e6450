"""How large a request may be, and how long a connection may take: the numbers.

They are enforced where bytes are read (`app.http.exchange`, `app.http.h11_protocol`) and, for
bodies under any server, by `app.http.body_limit`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

URL_BYTES = 8 * 1024
HEAD_BYTES = 16 * 1024
"""The limit on URL and headers together."""
HEADERS = 100
"""The limit on the number of headers."""
BODY_BYTES = 64 * 1024
BACKLOG_BYTES = 16 * 1024
"""The limit on bytes that are not parsed yet. Beyond it, reading from the connection pauses."""


class Wait(Enum):
    """What a connection waits for, and so which of its time limits applies."""

    NOTHING = auto()
    """The application answers: no limit."""
    KEEP_ALIVE = auto()
    """The next request."""
    HEAD = auto()
    """The rest of a URL and its headers."""
    BODY = auto()
    """The next piece of a body."""
    DISCARD = auto()
    """The rest of a body that is read only to be dropped."""
    SEND = auto()
    """The client, to accept what was written."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The limits of each connection. Times are in seconds.

    Attributes:
        connections: the most connections of a process.
        head_seconds: to send URL and headers, from their first byte on.
        body_seconds: between two reads of a body.
        send_seconds: to accept what is written to the client.
        discard_bytes: how much of a refused request is read before the connection is closed.
        discard_seconds: for how long it is read.
    """

    connections: int = 11_000
    head_seconds: float = 20.0
    body_seconds: float = 30.0
    send_seconds: float = 30.0
    discard_bytes: int = 16 * 1024 * 1024
    discard_seconds: float = 10.0

    def seconds(self, wait: Wait) -> float | None:
        """Return the time limit of a wait; None for `NOTHING` and `KEEP_ALIVE`."""
        if wait is Wait.HEAD:
            return self.head_seconds
        if wait is Wait.BODY:
            return self.body_seconds
        if wait is Wait.DISCARD:
            return self.discard_seconds
        return self.send_seconds if wait is Wait.SEND else None
