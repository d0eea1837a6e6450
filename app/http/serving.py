"""The choice of the protocol class that uvicorn uses for each connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


def protocol(*, fast: bool = True) -> type[asyncio.Protocol]:
    """Return the protocol class: on httptools if it is installed, else on h11.

    Args:
        fast: whether the class is to answer polls itself; without httptools it never does.
    """
    try:
        from app.http.exchange import Exchange  # noqa: PLC0415 - may be missing
    except ImportError:
        from app.http.h11_protocol import LimitedH11Protocol  # noqa: PLC0415 - rarely needed

        return LimitedH11Protocol
    if not fast:
        return Exchange
    from app.http.fast_path_protocol import FastPathProtocol  # noqa: PLC0415 - not needed by all

    return FastPathProtocol
