"""Deadlines of operations that are not cancelled when their time is up.

A deadline consists of several timers, and the loop reads its sockets between them. So a reply that
has arrived but is not read yet, because the loop is busy with other work, does not count as late.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_PARTS = 10


class Deadline:
    """Call a function when the time is up, unless the timer is cancelled before.

    It is a plain timer, because every operation needs one: `asyncio.wait` costs several times as
    much.

    Args:
        limit: in seconds.
        on_missed: called once when the deadline is missed.

    Attributes:
        timer: to be cancelled when the operation has ended.
    """

    __slots__ = ("_left", "_loop", "_on_missed", "_part", "timer")

    def __init__(self, limit: float, on_missed: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_missed = on_missed
        self._left = _PARTS
        self._part = limit / _PARTS
        self.timer = self._loop.call_later(self._part, self._end_part)

    def _end_part(self) -> None:
        self._left -= 1
        if self._left:
            self.timer = self._loop.call_later(self._part, self._end_part)
        else:
            self._on_missed()


async def ends_within(limit: float, task: asyncio.Task[Any]) -> bool:
    """Return whether `task` has ended within `limit` seconds. If not, it is left alone."""
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(_: object = None) -> None:
        if not over.done():
            over.set_result(None)

    deadline = Deadline(limit, end)
    task.add_done_callback(end)
    try:
        await over
    finally:
        deadline.timer.cancel()
    return task.done()
