"""A client's connection that is opened again after it was lost."""

from __future__ import annotations

import asyncio
import time

from loadtests.connection import Connection, Response, connect

PATIENCE = 10.0
"""Seconds after which a response is no longer waited for."""


class NoAnswer(Exception):  # noqa: N818 - says what is the matter
    """The connection could not be opened, was lost, or brought no response in time."""


class LastingConnection:
    """A connection that is opened when it is first needed, and again after it was lost.

    One request at a time.

    Args:
        port: of the loopback interface.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: Connection | None = None
        self._response: asyncio.Future[Response] | None = None
        self._sent_at = 0.0

    async def send(self, request: bytes) -> Response:
        """Send a request and wait for the whole response.

        Raises:
            NoAnswer: there was none. The request may have been carried out.
        """
        connection = self._connection
        if connection is None or not connection.open:
            try:
                async with asyncio.timeout(PATIENCE):
                    connection = await connect(self._port, self._received)
            except (OSError, TimeoutError) as error:
                raise NoAnswer(f"not connected: {error}") from error
            self._connection = connection
            if not connection.open:
                raise NoAnswer("the connection was lost at once")
        self._response = asyncio.get_running_loop().create_future()
        self._sent_at = time.monotonic()
        connection.send(request)
        try:
            response = await self._response
        except asyncio.CancelledError:
            connection.abort("cancelled")  # the response may still come, and is not the next one's
            raise
        finally:
            self._response = None
        if response.lost:
            raise NoAnswer(response.body.decode())
        return response

    def give_up(self, now: float) -> None:
        """Close the connection if a response is overdue at `now`, in monotonic seconds."""
        if self._response is not None and now - self._sent_at > PATIENCE:
            self._fail(f"no response within {PATIENCE:g} s")

    def close(self) -> None:
        """Close the connection; a waiting request gets no response."""
        self._fail("closed")

    def _fail(self, reason: str) -> None:
        if self._connection is not None:
            self._connection.abort(reason)

    def _received(self, response: Response) -> None:
        waiting = self._response
        if waiting is not None and not waiting.done():
            waiting.set_result(response)
        elif not response.lost:
            self._fail("a response that no request has asked for")
