"""Many clients on plain sockets: a client library would need more time than what it asks."""

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

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> None:
        """Send a request, and wait for nothing."""
        content = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}", f"Content-Length: {len(content)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if content:
            lines.append("Content-Type: application/json")
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + content)

    async def answer(self) -> Reply:
        """What came back for `ask`."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        return Reply(int(first.split()[1]), headers, body)

    async def request(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        self.ask(method, path, body, **headers)
        return await self.answer()

    def abandon(self) -> None:
        """Go away at once, as a client does whose user has closed the page."""
        self._writer.transport.abort()

    async def aclose(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):  # the other side was quicker
            await self._writer.wait_closed()


@asynccontextmanager
async def connected(ports: Iterable[int]) -> AsyncIterator[list[Connection]]:
    """A connection to each port; one that occurs twice gets two."""
    connections: list[Connection] = []
    try:
        for port in ports:
            connections.append(await Connection.open(port))  # noqa: PERF401 - closed if one fails
        yield connections
    finally:
        for connection in connections:
            await connection.aclose()
