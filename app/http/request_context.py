"""The id of a request and of its trace: what log lines name, and `X-Request-Id` returns.

A client or a proxy may choose the id of a request; otherwise it is made here. The id of a trace
comes from `traceparent` (W3C Trace Context).
"""

from __future__ import annotations

import random
import re
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

REQUEST_ID = b"x-request-id"
_TRACEPARENT = b"traceparent"

is_request_id = re.compile(rb"[A-Za-z0-9._~:/+=@-]{1,128}", re.ASCII).fullmatch
"""Tells whether a value of `X-Request-Id` is used. No value can look like more of a log line."""

_TRACE = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)


class RequestContext(NamedTuple):
    """The ids of a request.

    Attributes:
        request_id: its own.
        trace_id: of the trace that it belongs to, in 32 hexadecimal digits; empty without one.
    """

    request_id: str
    trace_id: str


current: ContextVar[RequestContext | None] = ContextVar("app_request", default=None)
"""The request that the running code works for; None outside of requests."""


def read_context(headers: Iterable[tuple[bytes, bytes]]) -> RequestContext:
    """Return the ids that headers give, and a new id if they give none that can be used."""
    request_id, trace_id = b"", ""
    for name, value in headers:
        if name == REQUEST_ID:
            # Of two lines, neither can be trusted to be the one that others log.
            request_id = value if not request_id and is_request_id(value) else b" "
        elif name == _TRACEPARENT:
            trace_id = _trace_id(value)
    usable = request_id not in {b"", b" "}
    return RequestContext(request_id.decode() if usable else new_request_id(), trace_id)


def new_request_id() -> str:
    """Return an id that no other request has: `random` has another seed in each process."""
    return f"{random.getrandbits(128):032x}"


def _trace_id(traceparent: bytes) -> str:
    found = _TRACE.fullmatch(traceparent.strip())
    # Later versions may append fields; the first version has none.
    if found is None or (found[1] == b"00" and found[3] is not None):
        return ""
    return found[2].decode()
