"""What comes in one turn of the event loop is done together: one round trip instead of many."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

Item = TypeVar("Item")
Asked = TypeVar("Asked")
Reply = TypeVar("Reply")
Then: TypeAlias = "Callable[[Sequence[Reply | Exception] | BaseException | None], None]"


async def gather_all(calls: Sequence[Coroutine[Any, Any, object]]) -> None:
    """Await them all at once; a single one, as is usual, without a task of its own.

    Raises:
        Exception: the first that any of them raised; the others go on.
    """
    if len(calls) == 1:
        await calls[0]
    else:
        await asyncio.gather(*calls)


class TickBuffer(Generic[Item]):
    """Collects what comes in one turn of the event loop, and hands it on at the turn's end.

    As soon as there are `most`, they are handed on: whoever is to answer is at work on them while
    the others are collected.

    Args:
        hand_on: is given several at once. It must not raise.
        most: how many it is given at a time, at least 1.
    """

    def __init__(self, hand_on: Callable[[Sequence[Item]], None], most: int) -> None:
        self._hand_on = hand_on
        self._most = most
        self._items: list[Item] = []

    def add(self, item: Item) -> None:
        """Hand `item` on, with all others of this turn."""
        items = self._items
        if not items:
            asyncio.get_running_loop().call_soon(self._end)
        items.append(item)
        if len(items) == self._most:
            self._hand_on(self.take())

    def take(self) -> list[Item]:
        """What has come in this turn, so far; it is handed on no more."""
        taken, self._items = self._items, []
        return taken

    def _end(self) -> None:
        if self._items:
            self._hand_on(self.take())


class Batcher(Generic[Asked, Reply]):
    """Calls of one turn of the event loop, made together.

    Args:
        send: asks several things at once. Returns a reply, or an error to raise, for each of them
            in the same order; whatever it raises itself is raised to every caller.
        most: how many it is given at a time, at least 1.
        send_soon: the same without a task, where it can. Returns False if it cannot; else it calls
            its second argument, in a later turn, with the replies, with an error for all, or with
            None, if they are to be sent after all.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Asked]], Coroutine[Any, Any, Sequence[Reply | Exception]]],
        most: int,
        send_soon: Callable[[Sequence[Asked], Then[Reply]], bool] = lambda _asked, _then: False,
    ) -> None:
        self._send = send
        self._send_soon = send_soon
        self._turn: TickBuffer[tuple[Asked, asyncio.Future[Reply]]] = TickBuffer(self._depart, most)
        self._sending: set[asyncio.Task[Sequence[Reply | Exception]]] = set()

    def ask(self, asked: Asked) -> asyncio.Future[Reply]:
        """The reply to `asked`, to be awaited. Who is cancelled meanwhile takes nobody else along.

        Raises (in the future):
            Exception: what `send` raised, or gave as this reply.
        """
        # A future for each caller, and a task, if any, that is nobody's.
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._turn.add((asked, reply))
        return reply

    def _depart(self, waiting: Sequence[tuple[Asked, asyncio.Future[Reply]]]) -> None:
        soon = False
        with suppress(Exception):  # which `send` will raise where it can be told
            soon = self._send_soon([asked for asked, _ in waiting], partial(self._arrive, waiting))
        if not soon:
            self._start(waiting)

    def _start(self, waiting: Sequence[tuple[Asked, asyncio.Future[Reply]]]) -> None:
        task = asyncio.create_task(  # noqa: RUF006 - the set keeps it
            self._send([asked for asked, _ in waiting])
        )
        self._sending.add(task)
        task.add_done_callback(partial(self._ended, waiting))

    def _ended(
        self,
        waiting: Sequence[tuple[Asked, asyncio.Future[Reply]]],
        task: asyncio.Task[Sequence[Reply | Exception]],
    ) -> None:
        # A callback, and no part of the task: one cancelled before its first step runs none.
        self._sending.discard(task)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        self._arrive(waiting, task.result() if error is None else error)

    def _arrive(
        self,
        waiting: Sequence[tuple[Asked, asyncio.Future[Reply]]],
        found: Sequence[Reply | Exception] | BaseException | None,
    ) -> None:
        if found is None:
            self._start(waiting)
            return
        each = [found] * len(waiting) if isinstance(found, BaseException) else found
        for (_, reply), one in zip(waiting, each, strict=True):
            resolve_future(reply, one)

    async def aclose(self) -> None:
        """Stop. Whoever still waits is cancelled."""
        for _, reply in self._turn.take():
            reply.cancel()
        sending = list(self._sending)
        for task in sending:
            task.cancel()
        if sending:
            await asyncio.wait(sending)


def resolve_future(reply: asyncio.Future[Reply], found: Reply | BaseException) -> None:
    """Give a caller its reply, or the error to raise, unless it has gone meanwhile."""
    if reply.done():
        return
    if not isinstance(found, BaseException):
        reply.set_result(found)
    elif isinstance(found, asyncio.CancelledError):
        reply.cancel()
    else:
        reply.set_exception(found)
