"""A keep-alive connection of one client."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Self

from jobcache.client.core.messages import Response

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

HOST = "127.0.0.1"


class Connection:
    """Sends one request after the other.

    Args:
        reader: of the connection.
        writer: of the connection.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> Self:
        """Return a new connection to a port of this machine."""
        return cls(*await asyncio.open_connection(HOST, port))

    async def close(self) -> None:
        """Close the connection, also in the middle of a response."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def call(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: object = None,
        *,
        pause: float = 0.0,
    ) -> Response:
        """Send a request; return the response, which is read after a pause in seconds.

        Raises:
            OSError: the connection was lost.
        """
        self.send(method, path, headers, body)
        await asyncio.sleep(pause)
        response = await self._head()
        length = int(response.headers.get("content-length", 0))
        if response.status == 304 or not length:
            return response
        return Response(response.status, response.headers, await self._read(length))

    def send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: object = None,
    ) -> None:
        """Send a request without waiting for the response."""
        content = b"" if body is None else json.dumps(body).encode()
        fields = {"Host": HOST, "Content-Length": str(len(content)), **(headers or {})}
        if content:
            fields["Content-Type"] = "application/json"
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._writer.write(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + content)

    async def events(self, path: str) -> AsyncGenerator[bytes, None]:
        """Yield the data of each server-sent event, until the stream ends.

        Raises:
            OSError: the connection was lost, or there is no stream.
        """
        self.send("GET", path)
        response = await self._head()
        if response.status != 200:
            raise ConnectionError(f"status {response.status}, not 200")
        while size := int(await self._reader.readline(), 16):  # chunked transfer
            chunk = await self._read(size)
            await self._reader.readline()
            for line in chunk.splitlines():
                if line.startswith(b"data: "):
                    yield line.removeprefix(b"data: ")

    async def _head(self) -> Response:
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            raise ConnectionError("the connection was lost") from error
        first, *lines = head.decode("latin-1").strip().split("\r\n")
        fields = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in fields}
        return Response(int(first.split()[1]), headers, b"")

    async def _read(self, size: int) -> bytes:
        try:
            return await self._reader.readexactly(size)
        except asyncio.IncompleteReadError as error:
            raise ConnectionError("the connection was lost") from error
