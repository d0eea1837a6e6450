"""The response to a poll, which tells outer middleware the document that was polled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from jobcache.http.polled_document import PolledDocument
    from jobcache.http.reply import Reply

CONFIRMATION = "jobcache.http.confirmation"
"""The key of the `PollConfirmation` in a scope."""


class PollConfirmation:
    """What the route says about the request that it is answering."""

    __slots__ = ("document", "reply")

    def __init__(self) -> None:
        self.document: PolledDocument | None = None
        self.reply: Reply | None = None


class PolledResponse(Response):
    """A response to a poll. It tells the `RepeatedPolls` middleware which document was polled.

    Args:
        reply: what it sends.
        document: the document of the poll.
    """

    def __init__(self, reply: Reply, document: PolledDocument) -> None:
        super().__init__(reply.body, reply.status)
        self.raw_headers = [*reply.headers]
        self._reply = reply
        self._document = document

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        confirmation = scope.get(CONFIRMATION)
        if confirmation is not None:
            confirmation.document, confirmation.reply = self._document, self._reply
        await super().__call__(scope, receive, send)
