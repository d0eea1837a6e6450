"""A limit on how long a server may take."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from app.db.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Cancel the block when the time is over, and raise `DatabaseUnavailable`."""
    try:
        async with asyncio.timeout(seconds) as limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise  # a limit of the driver's
        raise DatabaseUnavailable(f"no answer within {seconds:g} s") from error
