"""How long an operation is waited for, which is not cancelled when time is up.

It is waited for in parts, between which the loop looks at its sockets: however long the loop is
busy with other things, an answer that is there, yet unread, is not taken for silence.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_PARTS = 10


class Deadline:
    """Of one operation: it is met, or missed, and then not met any more.

    A timer and no more, for every operation pays it: `asyncio.wait` costs several times as much.

    Args:
        limit: in seconds.
        missed: called once it is.
    """

    __slots__ = ("_left", "_loop", "_missed", "_over", "_part", "_timer")

    def __init__(self, limit: float, missed: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._missed = missed
        self._over = False
        self._left = _PARTS
        self._part = limit / _PARTS
        self._timer = self._loop.call_later(self._part, self._look)

    def met(self) -> bool:
        """The operation has ended. Returns whether anybody still waits for it."""
        if self._over:
            return False
        self._over = True
        self._timer.cancel()
        return True

    def _look(self) -> None:
        self._left -= 1
        if self._left:
            self._timer = self._loop.call_later(self._part, self._look)
        else:
            self._over = True
            self._missed()


async def ends_within(limit: float, task: asyncio.Task[Any]) -> bool:
    """Whether `task` has ended within `limit` seconds. If not, it is left alone."""
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(_: object = None) -> None:
        if not over.done():
            over.set_result(None)

    deadline = Deadline(limit, end)
    task.add_done_callback(end)
    try:
        await over
    finally:
        deadline.met()
    return task.done()
