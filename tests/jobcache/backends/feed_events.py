"""What a change feed has reported, but for the heartbeats of Redis, which are changes too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence


class Events:
    """The events that a feed has reported."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.gaps = 0
        self.resumptions = 0

    def changed(self, keys: Sequence[str]) -> None:
        self.keys += [key for key in keys if not key.startswith("jobcache:beat")]

    def interrupted(self) -> None:
        self.gaps += 1

    def resumed(self) -> None:
        self.resumptions += 1


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)
