"""The choice of the protocol class that uvicorn uses for each connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


def protocol() -> type[asyncio.Protocol]:
    """Return the protocol class: on httptools if it is installed, else on h11."""
    try:
        from app.http.fast_path_protocol import FastPathProtocol  # noqa: PLC0415 - may be missing
    except ImportError:
        from app.http.h11_protocol import LimitedH11Protocol  # noqa: PLC0415 - rarely needed

        return LimitedH11Protocol
    return FastPathProtocol
