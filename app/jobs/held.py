"""Requests that are held open: how many there may be, who has gone, and when all have to go.

A held request costs memory and a connection for as long as it lasts, so there is a limit on them
per process. Beyond it a poll is answered at once, as it would be without `Prefer: wait`, and a
stream is refused: both clients know what to do then.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from typing import Any

    from starlette.types import Receive

    Kind = Literal["waits", "streams"]

T = TypeVar("T")


class ClientGone(Exception):  # noqa: N818 - says what has happened
    """Whoever asked has hung up."""


class Held:
    """The requests this process holds.

    Args:
        most: of all callers together. One caller that has a name is given half of them at most,
            so that there is always room for others.
        let_go: called once, to end what is being waited for.

    Attributes:
        draining: nothing is held any more, and what was is being let go.
    """

    def __init__(self, most: int, let_go: Callable[[], None]) -> None:
        self.most = most
        self.draining = False
        self._let_go = let_go
        self._kinds: Counter[str] = Counter()
        self._names: Counter[str] = Counter()

    @contextmanager
    def place(self, kind: Kind, name: str) -> Iterator[bool]:
        """A place, while the block runs; False if there is none for this caller."""
        if self.draining or not self._has_room_for(name):
            yield False
            return
        self._kinds[kind] += 1
        self._names[name] += 1
        try:
            yield True
        finally:
            self._kinds[kind] -= 1
            self._names[name] -= 1
            if not self._names[name]:
                del self._names[name]

    def _has_room_for(self, name: str) -> bool:
        if self._kinds.total() >= self.most:
            return False
        return name == "" or self._names[name] < max(1, self.most // 2)

    def drain(self) -> None:
        """The process is about to end. Safe to call again."""
        if not self.draining:
            self.draining = True
            self._let_go()

    def counts(self) -> dict[str, int]:
        """How many there are of each kind, and may be of both."""
        kinds = {"waits": self._kinds["waits"], "streams": self._kinds["streams"]}
        return {**kinds, "most": self.most}


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns, unless the client goes away before: then `work` is cancelled.

    Servers cancel nobody whose client has gone; they only say so to those who listen.

    Raises:
        ClientGone: it has.
    """
    loop = asyncio.get_running_loop()
    try:
        # A timeout that is not of time: the tidy way to cancel one's own task from outside.
        async with asyncio.timeout(None) as limit:

            def stop(_: asyncio.Task[None]) -> None:
                limit.reschedule(loop.time())

            listening = asyncio.create_task(_gone(receive))
            listening.add_done_callback(stop)
            try:
                return await work
            finally:
                listening.remove_done_callback(stop)
                listening.cancel()
    except TimeoutError:
        if not limit.expired():
            raise
        raise ClientGone from None


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass  # the body of a GET, which nobody reads
