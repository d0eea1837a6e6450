"""Calls of one turn of the event loop, made together: one round trip instead of many."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

Asked = TypeVar("Asked")
Reply = TypeVar("Reply")


class Together(Generic[Asked, Reply]):
    """Collects what is asked in one turn of the loop, and asks it at the turn's end.

    Args:
        send: asks several things at once. Returns a reply, or an error to raise, for each of them
            in the same order; whatever it raises itself is raised to every caller.
        most: how many it is given at a time, at least 1.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Asked]], Coroutine[Any, Any, Sequence[Reply | Exception]]],
        most: int,
    ) -> None:
        self._send = send
        self._most = most
        self._waiting: list[tuple[Asked, asyncio.Future[Reply]]] = []
        self._sending: set[asyncio.Task[Sequence[Reply | Exception]]] = set()

    def ask(self, asked: Asked) -> asyncio.Future[Reply]:
        """The reply to `asked`, to be awaited. Who is cancelled meanwhile takes nobody else along.

        Raises (in the future):
            Exception: what `send` raised, or gave as this reply.
        """
        loop = asyncio.get_running_loop()
        # A future for each caller, and a task that is nobody's.
        reply: asyncio.Future[Reply] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._depart)
        self._waiting.append((asked, reply))
        return reply

    def _depart(self) -> None:
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), self._most):
            some = waiting[start : start + self._most]
            task = asyncio.create_task(  # noqa: RUF006 - the set keeps it
                self._send([asked for asked, _ in some])
            )
            self._sending.add(task)
            task.add_done_callback(partial(self._arrive, some))

    def _arrive(
        self,
        waiting: Sequence[tuple[Asked, asyncio.Future[Reply]]],
        task: asyncio.Task[Sequence[Reply | Exception]],
    ) -> None:
        # A callback, and no part of the task: one cancelled before its first step runs none.
        self._sending.discard(task)
        error = None if task.cancelled() else task.exception()
        if task.cancelled():
            for _, reply in waiting:
                reply.cancel()
        elif error is not None:
            for _, reply in waiting:
                _settle(reply, error)
        else:
            for (_, reply), found in zip(waiting, task.result(), strict=True):
                _settle(reply, found)

    async def aclose(self) -> None:
        """Stop. Whoever still waits is cancelled."""
        for _, reply in self._waiting:
            reply.cancel()
        sending = list(self._sending)
        for task in sending:
            task.cancel()
        if sending:
            await asyncio.wait(sending)


def _settle(reply: asyncio.Future[Reply], found: Reply | BaseException) -> None:
    if reply.done():
        return  # its caller has gone
    if isinstance(found, BaseException):
        reply.set_exception(found)
    else:
        reply.set_result(found)
