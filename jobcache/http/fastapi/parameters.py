"""The request headers of polls and event streams, as parameters of FastAPI."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header
from pydantic import WithJsonSchema

# Lists, because either may come in several lines, which are read as one (RFC 9110, 5.3).
Lines = Annotated[list[str] | None, WithJsonSchema({"type": "string"})]
IfNoneMatch = Annotated[Lines, Header()]
AcceptEncoding = Annotated[Lines, Header()]
Prefer = Annotated[
    Lines,
    Header(
        description="`wait=20`: seconds to be held until there is a newer version; the service has"
        " an upper limit, which Preference-Applied shows"
    ),
]
LastEventId = Annotated[
    str | None,
    Header(description="The id of the last event that was seen; any other text counts as none"),
]


def joined(lines: list[str] | None) -> str | None:
    """Return the lines of a header as the one line that they stand for."""
    return None if lines is None else ", ".join(lines)
