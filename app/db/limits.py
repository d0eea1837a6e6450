"""A limit on how long a server may take."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from app.db.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from types import TracebackType


class within:  # noqa: N801 - a function to its callers
    """Cancel the block when the time is over, and raise `DatabaseUnavailable`.

    Args:
        seconds: the limit.
    """

    __slots__ = ("_limit", "_seconds")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._limit = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._limit.__aexit__(kind, error, traceback)
        except TimeoutError as timeout:
            raise DatabaseUnavailable(f"no answer within {self._seconds:g} s") from timeout
