"""An application with exports: a database in memory, and polling endpoints in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
from starlette.types import ASGIApp

from jobcache import Document, JobCache, SourceUnavailable
from jobcache.http.json_document import json_document


@dataclass(frozen=True)
class Export:
    """A row."""

    id: int
    owner: str = "acme"
    percent: int = 0
    version: int = 1
    text: str = ""

    def document(self) -> Document:
        return json_document(
            {"id": self.id, "percent": self.percent, "text": self.text},
            version=self.version,
            owner=self.owner,
            poll_after=None if self.percent == 100 else 2,
            final=self.percent == 100,
        )


@dataclass
class Exports:
    """The exports of an application.

    Attributes:
        rows: by id.
        loads: the ids that were loaded, in order.
        away: whether the database is away.
    """

    cache: JobCache
    rows: dict[int, Export] = field(default_factory=lambda: {7: Export(7)})
    loads: list[int] = field(default_factory=list)
    away: bool = False

    async def load(self, export_id: int) -> Document | None:
        if self.away:
            raise SourceUnavailable("the database is away")
        self.loads.append(export_id)
        row = self.rows.get(export_id)
        return None if row is None else row.document()

    async def load_many(self, ids: Sequence[int]) -> dict[int, Document]:
        self.loads += ids
        return {each: self.rows[each].document() for each in ids if each in self.rows}

    async def change(self, export_id: int, **fields: Any) -> None:
        """Commit a change, and publish it."""
        async with self.cache.write(f"export:{export_id}") as write:
            row = self.rows[export_id]
            row = self.rows[export_id] = replace(row, version=row.version + 1, **fields)
            write.publish(f"export:{export_id}", row.document())

    async def waited(self, waiters: int = 1) -> None:
        """Return once so many requests wait for a newer version."""
        async with asyncio.timeout(60):
            while self.cache.info().waiting.waiters != waiters:
                await asyncio.sleep(0.002)


@asynccontextmanager
async def calling(app: ASGIApp, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of an application in this process."""
    transport = httpx.ASGITransport(app, **options)
    async with (
        asyncio.timeout(60),
        httpx.AsyncClient(transport=transport, base_url="http://exports") as client,
    ):
        yield client


async def frames(app: ASGIApp, path: str, *headers: tuple[bytes, bytes]) -> AsyncIterator[bytes]:
    """Yield what a stream sends, piece by piece; `httpx.ASGITransport` waits for its end."""
    sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    gone = asyncio.Event()
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"exports"), *headers],
        "client": ("127.0.0.1", 1),
        "server": ("exports", 80),
    }

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    serving = asyncio.create_task(app(scope, receive, sent.put))  # type: ignore[arg-type]
    try:
        start = await sent.get()
        assert start["status"] == 200, start
        more = True
        while more:
            message = await sent.get()
            more = message.get("more_body", False)
            if message["body"]:
                yield message["body"]
    finally:
        gone.set()
        await serving
