"""The fast path as the server's protocol sees it: what answers polls before the application.

`app.jobs.poll_fast_path` implements it; `app.http.fast_path_protocol` uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive, Scope, Send

    from app.http.reply import Reply

MATCHED = "jobcache.fast_path"
"""The name of an ASGI extension. It is in the scope of a request that `match` has examined already,
so that the application does not examine it again."""


class PendingPoll(Protocol):
    """A poll that the fast path answers, as an ASGI application for this one request."""

    def peek(self) -> Reply | None:
        """Return the reply if it needs no other store and no other task, else None."""

    def ask(self, on_result: Callable[[Reply | None], object]) -> bool:
        """Read a store elsewhere once, without a task.

        Args:
            on_result: called in a later turn of the loop, with the reply if it is a hit or an
                error, or with None: then the poll has to be called as an application.

        Returns:
            False if `on_result` will not be called: call the poll as an application at once.
        """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request by ASGI, with all headers that the whole application would add."""


class FastPath(Protocol):
    """Answers polls, if nothing about them is unusual."""

    def admit(self, server: tuple[str, int | None] | None) -> bool:
        """Return True if connections to this address of the machine may be answered."""

    def match(self, scope: Scope) -> PendingPoll | Reply | None:
        """Return the poll that a request is, or the refusal of it; None for any other request."""

    def header_lines(self, reply: Reply) -> bytes:
        """Return the headers of a reply as they go over the wire, and keep them in the reply."""
