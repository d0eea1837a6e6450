"""Coalesce the writes of one turn of the event loop: two packets instead of many.

The first is written at once, so a caller who is alone does not wait for the end of the turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


class CoalescedWrites:
    """Write to a transport at once, and what follows in the same turn of the loop at its end.

    Args:
        transport: the transport.
        loop: its event loop.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._others: list[bytes] | None = None  # None before the first write of a turn

    def write(self, data: bytes) -> None:
        """Write bytes, in the order of the calls."""
        if self._others is None:
            self._others = []
            self._loop.call_soon(self._flush)
            self._transport.write(data)
        else:
            self._others.append(data)

    def _flush(self) -> None:
        others, self._others = self._others, None
        if others and not self._transport.is_closing():
            self._transport.write(b"".join(others))
