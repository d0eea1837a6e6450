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

    from app.auth.callers import Caller

    Kind = Literal["waits", "streams"]

T = TypeVar("T")


class Revoked(Exception):  # noqa: N818 - says what has happened
    """The key of whoever asked has been taken away."""


class Place:
    """A request that is to be held, and that may have to be let go before its time.

    Attributes:
        caller: whose it is.
        revoked: the caller's key has been taken away.
        end: ends the request, if there is anything to end.
    """

    __slots__ = ("caller", "end", "revoked")

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.revoked = False
        self.end: Callable[[], None] | None = None


class ClientGone(Exception):  # noqa: N818 - says what has happened
    """Whoever asked has hung up."""


class HeldRequests:
    """The requests this process holds.

    Args:
        most: of all callers together. One caller that has a name is given half of them at most,
            so that there is always room for others.
        let_go: called once, to end what is being waited for.

    Attributes:
        draining: nothing is held any more, and what was is being let go.
        admits: tells whether a caller who was let in earlier would still be.
    """

    def __init__(self, most: int, let_go: Callable[[], None]) -> None:
        self.most = most
        self.draining = False
        self._let_go = let_go
        self._kinds: Counter[str] = Counter()
        self._names: Counter[str] = Counter()
        self._places: set[Place] = set()
        self.admits: Callable[[Caller], bool] = lambda _: True

    @contextmanager
    def slot(self, kind: Kind, name: str, request: Place | None = None) -> Iterator[bool]:
        """A place, while the block runs; False if there is none for this caller.

        Args:
            kind: of request.
            name: of the caller, to count by.
            request: what to end when the caller's key is taken away.
        """
        # Whoever has lost its key since it was let in would not be found by a review any more.
        gone = request is not None and not self._admitted(request)
        if self.draining or gone or not self._has_room_for(name):
            yield False
            return
        self._kinds[kind] += 1
        self._names[name] += 1
        if request is not None:
            self._places.add(request)
        try:
            yield True
        finally:
            if request is not None:
                self._places.discard(request)
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

    def review(self) -> None:
        """End the requests of those whose keys have been taken away."""
        for slot in list(self._places):
            if not self._admitted(slot):
                slot.revoked = True
                if slot.end is not None:
                    slot.end()

    def _admitted(self, slot: Place) -> bool:
        return self.admits(slot.caller)

    def counts(self) -> dict[str, int]:
        """How many there are of each kind, and may be of both."""
        kinds = {"waits": self._kinds["waits"], "streams": self._kinds["streams"]}
        return {**kinds, "most": self.most}


async def cancel_on_disconnect(
    receive: Receive, work: Coroutine[Any, Any, T], slot: Place | None = None
) -> T:
    """What `work` returns, unless the client goes away before: then `work` is cancelled.

    Servers cancel nobody whose client has gone; they only say so to those who listen.

    Raises:
        ClientGone: it has.
        Revoked: its key has been taken away.
    """
    loop = asyncio.get_running_loop()
    try:
        # A timeout that is not of time: the tidy way to cancel one's own task from outside.
        async with asyncio.timeout(None) as limit:

            def stop(_: asyncio.Task[None] | None = None) -> None:
                limit.reschedule(loop.time())

            if slot is not None:
                slot.end = stop
            listening = asyncio.create_task(_gone(receive))
            listening.add_done_callback(stop)
            try:
                return await work
            finally:
                if slot is not None:
                    slot.end = None
                listening.remove_done_callback(stop)
                listening.cancel()
    except TimeoutError:
        if not limit.expired():
            raise
        if slot is not None and slot.revoked:
            raise Revoked from None
        raise ClientGone from None


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass  # the body of a GET, which nobody reads
