"""A renderer that only waits, for load tests: they measure polls, not an encoder."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING

from app.rendering.renderer import Progress

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from app.rendering.renderer import RenderTask


class SimulatedRenderer:
    """Reports progress on a schedule and makes no video.

    `seconds` is how long a task takes, `updates` how many steps it reports, evenly spread; the last
    is 100 percent and falls on the end. Steps are due at times counted from the start of the task,
    so delays do not add up. `sleep` and `clock`, in seconds, are there for tests.

    Raises `ValueError` if `seconds` is negative or not finite, or `updates` is less than one.
    """

    makes_video = False

    def __init__(
        self,
        seconds: float,
        updates: int,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"seconds must be a finite number, 0 or more, not {seconds!r}")
        if updates < 1:
            raise ValueError(f"updates must be 1 or more, not {updates!r}")
        self._seconds = seconds
        self._updates = updates
        self._sleep = sleep
        self._clock = clock

    async def render(self, task: RenderTask) -> AsyncGenerator[Progress, None]:
        """Yield the steps when they are due; a late step follows at once."""
        scenes = len(task.storyboard.scenes)
        start = self._clock()
        for step in range(1, self._updates + 1):
            due = start + self._seconds * step / self._updates
            await self._sleep(max(0.0, due - self._clock()))
            scene = math.ceil(scenes * step / self._updates)
            yield Progress(
                percent=100.0 * step / self._updates,
                stage=f"drawing scene {scene} of {scenes}",
                message=f"step {step} of {self._updates}",
            )
