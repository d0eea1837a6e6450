"""Requests that are held open: their number is limited, and they end early when they have to.

A held request uses memory and a connection for as long as it lasts, so each process limits their
number. Beyond the limit a poll is answered at once, as without `Prefer: wait`, and a stream is
refused: clients know what to do in both cases.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal, TypeVar

from jobcache.http.shutdown import Shutdown

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from typing import Any

    from starlette.types import Receive

    from jobcache.http.listening_sockets import Server

    Kind = Literal["waits", "streams"]

T = TypeVar("T")

_KINDS = ("waits", "streams")


class Revoked(Exception):  # noqa: N818 - an event, not a failure
    """The caller would no longer be admitted."""


class ClientGone(Exception):  # noqa: N818 - an event, not a failure
    """The client has closed the connection."""


class HeldRequest:
    """A request that is to be held, and that may have to end early.

    Attributes:
        caller: whose request it is; passed to `HeldRequests.admits` unchanged.
        revoked: True once the caller would no longer be admitted.
        end: ends the request, while there is anything to end.
    """

    __slots__ = ("caller", "end", "revoked")

    def __init__(self, caller: object = None) -> None:
        self.caller = caller
        self.revoked = False
        self.end: Callable[[], None] | None = None


class HeldRequests:
    """The requests that this process holds.

    Args:
        most: the limit for all callers together. A caller that has a name gets at most half of the
            slots, so that there is always room for others.
        end_waits: called once, when the process begins to shut down; ends all waits, as
            `JobCache.cancel_waiters` does.
        admits: tells whether a caller who was admitted earlier would still be admitted.

    Attributes:
        shutdown: ends the waits. No request is held any more once it has begun.
        admits: as given.
    """

    def __init__(
        self,
        most: int,
        end_waits: Callable[[], None],
        admits: Callable[[Any], bool] = lambda _: True,
    ) -> None:
        self.most = most
        self.admits = admits
        self.shutdown = Shutdown(end_waits)
        self._kinds: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._names: Counter[str] = Counter()
        self._requests: set[HeldRequest] = set()

    @contextmanager
    def slot(
        self, kind: Kind, name: str, server: Server, request: HeldRequest | None = None
    ) -> Iterator[bool]:
        """Take a slot while the block runs. Yield False if there is none for this caller.

        Args:
            kind: of request.
            name: of the caller, to count by.
            server: `scope["server"]` of the request.
            request: ended early if the caller would no longer be admitted.
        """
        # If its key was revoked after the caller was admitted, no later review would find that.
        revoked = request is not None and not self._admitted(request)
        if revoked or not self._has_room_for(name):
            self._refused[kind] += not revoked
            yield False
            return
        self._kinds[kind] += 1
        self._names[name] += 1
        if request is not None:
            self._requests.add(request)
        try:
            with self.shutdown.watched(server):
                yield not self.shutdown.begun
        finally:
            if request is not None:
                self._requests.discard(request)
            self._kinds[kind] -= 1
            self._names[name] -= 1
            if not self._names[name]:
                del self._names[name]

    def _has_room_for(self, name: str) -> bool:
        if self._kinds.total() >= self.most:
            return False
        return name == "" or self._names[name] < max(1, self.most // 2)

    def review(self) -> None:
        """End the requests of callers who would no longer be admitted."""
        for request in list(self._requests):
            if not self._admitted(request):
                request.revoked = True
                if request.end is not None:
                    request.end()

    def _admitted(self, request: HeldRequest) -> bool:
        return self.admits(request.caller)

    def counts(self) -> dict[str, int]:
        """Return the number of held requests of each kind, and the limit for both together."""
        return {**{kind: self._kinds[kind] for kind in _KINDS}, "most": self.most}

    def refused(self) -> dict[str, int]:
        """Return the number of requests of each kind for which there was no slot."""
        return {kind: self._refused[kind] for kind in _KINDS}


async def cancel_on_disconnect(
    receive: Receive, work: Coroutine[Any, Any, T], request: HeldRequest | None = None
) -> T:
    """Return the result of `work`; cancel it if the client disconnects or is no longer admitted.

    Servers do not cancel the task of a client that has disconnected. They only report that to a
    caller of `receive`.

    Raises:
        ClientGone: the client has disconnected.
        Revoked: the caller would no longer be admitted.
    """
    loop = asyncio.get_running_loop()
    try:
        # A timeout without a time: the clean way to cancel one's own task from outside.
        async with asyncio.timeout(None) as limit:

            def stop(_: asyncio.Task[None] | None = None) -> None:
                with suppress(RuntimeError):  # it has been stopped already, or has just ended
                    limit.reschedule(loop.time())

            if request is not None:
                request.end = stop
            listening = asyncio.create_task(_disconnected(receive))
            listening.add_done_callback(stop)
            try:
                return await work
            finally:
                if request is not None:
                    request.end = None
                listening.remove_done_callback(stop)
                listening.cancel()
    except TimeoutError:
        if not limit.expired():
            raise
        if request is not None and request.revoked:
            raise Revoked from None
        raise ClientGone from None


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass  # the body of a GET, which nobody reads
