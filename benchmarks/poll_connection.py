"""One connection that sends polls, one after the other, at little cost to the process."""

from __future__ import annotations

import asyncio
import re
from itertools import count
from typing import TYPE_CHECKING, cast

from benchmarks.generator import WrongAnswer, get
from benchmarks.service import HOST

if TYPE_CHECKING:
    from typing import Self

_NUMBER = "X-Request-Id: %d"
_NOT_MODIFIED = b"HTTP/1.1 304 "
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)


class PollConnection(asyncio.Protocol):
    """Polls one path of a server on loopback. No two requests are alike.

    Args:
        path: the path.
        header: a header of each request; empty: none.
    """

    def __init__(self, path: str, header: str = "") -> None:
        headers = f"{header}\r\n{_NUMBER}" if header else _NUMBER
        self._request = get(path, headers)
        self._numbers = count(1)
        self._received = b""
        self._response: asyncio.Future[bytes] | None = None

    @classmethod
    async def connect(cls, port: int, path: str, header: str = "") -> Self:
        """Return a connection to the port."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: cls(path, header), HOST, port)
        return connection

    async def poll(self) -> bytes:
        """Send one poll; return the whole response, head included.

        Raises:
            WrongAnswer: the server has closed the connection.
        """
        if self._transport.is_closing():
            raise WrongAnswer("the server closed the connection")
        response: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._response = response
        self._transport.write(self._request % next(self._numbers))
        return await response

    def close(self) -> None:
        """Close the connection."""
        self._response = None
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Collect a response until it is complete."""
        received = self._received + data if self._received else data
        if not _complete(received):
            self._received = received
            return
        self._received = b""
        if self._response is not None:
            response, self._response = self._response, None
            response.set_result(received)

    def connection_lost(self, _: Exception | None) -> None:
        """Fail the poll that waits."""
        if self._response is not None and not self._response.done():
            self._response.set_exception(WrongAnswer("the server closed the connection"))


def status_of(response: bytes) -> int:
    """Return the status of a response."""
    found = _STATUS.match(response)
    if found is None:
        raise WrongAnswer(response[:200].decode(errors="replace"))
    return int(found[1])


def _complete(received: bytes) -> bool:
    head, whole_head, body = received.partition(b"\r\n\r\n")
    if not whole_head:
        return False
    if head.startswith(_NOT_MODIFIED):  # has no body, whatever length it states
        return True
    length = _LENGTH.search(head)
    return length is not None and len(body) >= int(length[1])
