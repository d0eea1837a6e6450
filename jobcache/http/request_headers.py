"""The headers of a request, as ASGI has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    RequestHeaders = Iterable[tuple[bytes, bytes]]


def header(headers: RequestHeaders, name: bytes) -> str | None:
    """Return the value of a header, or None.

    The values of several lines are joined by a comma, which they stand for (RFC 9110, 5.3).
    """
    found = [value for each, value in headers if each == name]
    return b", ".join(found).decode("latin-1") if found else None
