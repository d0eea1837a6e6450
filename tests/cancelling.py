"""Cancels a task at a wait of one's choice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any


class CancelledAt:
    """Runs a coroutine, and cancels the task that does at its n-th wait.

    Args:
        work: what to run.
        number: at which wait; counted from 1.
        late: cancel when the awaited result has arrived, and not at once.

    Attributes:
        waits: how often it has waited.
    """

    def __init__(self, work: Coroutine[Any, Any, Any], number: int, *, late: bool) -> None:
        self._work = work
        self._number = number
        self._late = late
        self.waits = 0

    def __await__(self) -> Generator[Any, None, Any]:
        send: Callable[[Any], Any] = self._work.send
        value: Any = None
        while True:
            try:
                awaited = send(value)
            except StopIteration as end:
                return end.value
            self.waits += 1
            if self.waits == self._number:
                self._cancel(awaited)
            try:
                value = yield awaited
                send = self._work.send
            except BaseException as error:  # noqa: BLE001 - it goes on to where it belongs
                send, value = self._work.throw, error

    def _cancel(self, awaited: asyncio.Future[Any] | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._late and awaited is not None:
            # Before the task's own callback: it learns of both in one.
            awaited.add_done_callback(lambda _: task.cancel())
        else:
            task.cancel()
