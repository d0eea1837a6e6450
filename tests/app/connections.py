"""HTTP clients on plain sockets: a client library would need more time than the service does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, its header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """One keep-alive connection; one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> Self:
        return cls(*await asyncio.open_connection(HOST, port))

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> None:
        """Send a request without waiting for the answer."""
        content = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}", f"Content-Length: {len(content)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if content:
            lines.append("Content-Type: application/json")
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + content)

    async def receive(self) -> Reply:
        """Return the answer to the request that `send` sent."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        return Reply(int(first.split()[1]), headers, body)

    async def request(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        self.send(method, path, body, **headers)
        return await self.receive()

    def abandon(self) -> None:
        """Reset the connection, as a client does whose user has closed the page."""
        self._writer.transport.abort()

    async def aclose(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):  # the server closed first
            await self._writer.wait_closed()


class Client:
    """A client of one server, on a connection that it opens when it first has a request.

    A server closes a connection that is idle for too long, and one that never sent a request even
    sooner. So a GET on a connection that was used before is sent again on a new one, if no byte of
    an answer came (RFC 9112, section 9.3.1).
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self._connection: Connection | None = None

    async def request(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        kept, self._connection = self._connection, None
        if kept is not None:
            try:
                reply = await kept.request(method, path, body, **headers)
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                kept.abandon()
                if method != "GET" or getattr(error, "partial", b""):
                    raise
            else:
                self._connection = kept
                return reply
        self._connection = await Connection.open(self.port)
        return await self._connection.request(method, path, body, **headers)

    def abandon(self) -> None:
        """Reset the connection."""
        if self._connection is not None:
            self._connection.abandon()


@asynccontextmanager
async def connected(ports: Iterable[int]) -> AsyncIterator[list[Connection]]:
    """Open a connection for each item of `ports`, and close them at the end."""
    connections: list[Connection] = []
    try:
        for port in ports:
            connections.append(await Connection.open(port))  # noqa: PERF401 - closed if one fails
        yield connections
    finally:
        for connection in connections:
            await connection.aclose()
