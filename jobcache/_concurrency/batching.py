"""Requests of one turn of the event loop, sent together: one round trip instead of many."""

from __future__ import annotations

import asyncio
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

_first = itemgetter(0)

Item = TypeVar("Item")
Request = TypeVar("Request")
Reply = TypeVar("Reply")


async def gather_all(calls: Sequence[Coroutine[Any, Any, object]]) -> None:
    """Await all coroutines at once; a single one, as is usual, without a task of its own.

    Raises:
        Exception: the first that any of them raised; the others go on.
    """
    if len(calls) == 1:
        await calls[0]
    else:
        await asyncio.gather(*calls)


class TickBuffer(Generic[Item]):
    """Collect the items of one turn of the event loop, and pass them on at the end of the turn.

    As soon as there are `most` items they are passed on: the receiver works on them while the
    others are collected.

    Args:
        receive: is given several items at once. It must not raise.
        most: how many items it is given at a time, at least 1.
    """

    def __init__(self, receive: Callable[[Sequence[Item]], None], most: int) -> None:
        self._receive = receive
        self._most = most
        self._items: list[Item] = []

    def add(self, item: Item) -> None:
        """Pass `item` on, with all others of this turn."""
        items = self._items
        if not items:
            asyncio.get_running_loop().call_soon(self._flush)
        items.append(item)
        if len(items) == self._most:
            self._flush()

    def take(self) -> list[Item]:
        """Remove and return the items of this turn, which are not passed on."""
        taken, self._items = self._items, []
        return taken

    def _flush(self) -> None:
        items = self._items
        if items:
            self._items = []
            self._receive(items)


class Batcher(Generic[Request, Reply]):
    """Send the requests of one turn of the event loop together.

    Args:
        send: sends several requests. The future that it returns has a reply, or an error to raise,
            for each of them, in the same order; an error of the future itself is raised to every
            caller.
        most: how many requests it is given at a time, at least 1.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Request]], asyncio.Future[Sequence[Reply | Exception]]],
        most: int,
    ) -> None:
        self._send = send
        self._buffer: TickBuffer[tuple[Request, asyncio.Future[Reply]]] = TickBuffer(
            self._depart, most
        )

    def request(self, request: Request) -> asyncio.Future[Reply]:
        """Return a future of the reply. A caller that is cancelled does not affect the others.

        Raises (in the future):
            Exception: what `send` raised, or gave as this reply.
        """
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._buffer.add((request, reply))
        return reply

    def _depart(self, waiting: Sequence[tuple[Request, asyncio.Future[Reply]]]) -> None:
        try:
            sent = self._send(list(map(_first, waiting)))
        except Exception as error:  # noqa: BLE001 - raised to the callers
            for _, reply in waiting:
                resolve_future(reply, error)
        else:
            sent.add_done_callback(partial(_arrive, waiting))

    def cancel(self) -> None:
        """Cancel the callers whose requests have not been sent."""
        for _, reply in self._buffer.take():
            reply.cancel()


def _arrive(
    waiting: Sequence[tuple[Any, asyncio.Future[Any]]],
    sent: asyncio.Future[Sequence[Reply | Exception]],
) -> None:
    if sent.cancelled() or sent.exception() is not None:
        error = outcome_error(sent)
        for _, reply in waiting:
            resolve_future(reply, error)
        return
    for (_, reply), found in zip(waiting, sent.result(), strict=True):
        if isinstance(found, Exception):
            resolve_future(reply, found)
        elif not reply.done():
            reply.set_result(found)


def outcome_error(done: asyncio.Future[Any]) -> BaseException | None:
    """Return the error of a future that is done, be it a cancellation; None if it has a result."""
    return asyncio.CancelledError() if done.cancelled() else done.exception()


def copy_outcome(target: asyncio.Future[Reply], source: asyncio.Future[Reply]) -> None:
    """Give `target` the result or the error of `source`, which is done."""
    error = outcome_error(source)
    resolve_future(target, source.result() if error is None else error)


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
