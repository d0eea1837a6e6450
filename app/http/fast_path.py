"""The fast path as the server's protocol sees it: what answers polls before the application.

`app.jobs.poll_fast_path` implements it; `app.http.fast_path_protocol` uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio

    from starlette.types import Receive, Scope, Send

    from jobcache import ReadResult
    from jobcache.http.reply import Reply

MATCHED = "jobcache.fast_path"
"""The name of an ASGI extension. It is in the scope of a request that `match` has examined already,
so that the application does not examine it again."""


class PendingPoll(Protocol):
    """A poll of an entry that is elsewhere, as an ASGI application for this one request."""

    def begin(self) -> Reply | asyncio.Future[ReadResult | None] | None:
        """Begin to answer, without a task.

        Returns:
            If the entry may be in a store elsewhere, a future for `reply_to`. A reply if that
            failed. None: call this as an application.
        """

    def reply_to(self, reading: asyncio.Future[ReadResult | None]) -> Reply | None:
        """Return the reply, once the store has been read; None: call this as an application."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request by ASGI, with all headers that the whole application would add."""


class FastPath(Protocol):
    """Answers polls, if nothing about them is unusual."""

    def admit(self, server: tuple[str, int | None] | None) -> bool:
        """Return True if connections to this address of the machine may be answered."""

    def match(self, scope: Scope) -> PendingPoll | Reply | None:
        """Return the reply to a poll, or the poll if its entry is not in this process.

        None for any other request.
        """

    def header_lines(self, reply: Reply) -> bytes:
        """Return the headers of a reply as they go over the wire, and keep them in the reply."""
