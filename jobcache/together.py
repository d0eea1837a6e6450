"""Calls of one turn of the event loop, made together: one round trip instead of many."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

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
        self, send: Callable[[Sequence[Asked]], Awaitable[Sequence[Reply | Exception]]], most: int
    ) -> None:
        self._send = send
        self._most = most
        self._waiting: list[tuple[Asked, asyncio.Future[Reply]]] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def ask(self, asked: Asked) -> Reply:
        """The reply to `asked`. A caller who is cancelled takes nobody else's along.

        Raises:
            Exception: what `send` raised, or gave as this reply.
        """
        loop = asyncio.get_running_loop()
        # A future for each caller, and a task that is nobody's.
        reply: asyncio.Future[Reply] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._depart)
        self._waiting.append((asked, reply))
        return await reply

    def _depart(self) -> None:
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), self._most):
            task = asyncio.create_task(self._travel(waiting[start : start + self._most]))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _travel(self, waiting: Sequence[tuple[Asked, asyncio.Future[Reply]]]) -> None:
        try:
            replies = await self._send([asked for asked, _ in waiting])
        except Exception as error:  # noqa: BLE001 - it is the callers' to handle
            for _, reply in waiting:
                if not reply.done():
                    reply.set_exception(error)
        else:
            for (_, reply), found in zip(waiting, replies, strict=True):
                if reply.done():
                    continue  # its caller has gone
                if isinstance(found, Exception):
                    reply.set_exception(found)
                else:
                    reply.set_result(found)
        finally:
            for _, reply in waiting:
                reply.cancel()  # unless it is done: this was cancelled

    async def aclose(self) -> None:
        """Stop. Whoever still waits is cancelled."""
        for _, reply in self._waiting:
            reply.cancel()
        sending = list(self._sending)
        for task in sending:
            task.cancel()
        if sending:
            await asyncio.wait(sending)
