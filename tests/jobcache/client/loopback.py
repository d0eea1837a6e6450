"""Small servers on loopback that behave as tests tell them, and clients in a time of their own."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jobcache.client import AsyncJobs, AsyncPoller, Completed, Jobs, Poller, Snapshot
from jobcache.client._sync_runner import SyncRunner
from jobcache.client.core.rules import Rules
from tests.app.process import NO_CERTIFICATES
from tests.subjects import PATIENCE

Reply = Response | Callable[[Request], Response | Awaitable[Response]]


def reply(status: int = 200, document: Any = None, **headers: str) -> Response:
    """A response with a JSON document, or with none."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    if document is None:
        return Response(b"", status, named)
    return Response(json.dumps(document), status, named, "application/json")


class Server:
    """A Starlette application that answers each path by a script, whose last reply repeats.

    Attributes:
        url: of the server, without a path.
        seen: each request, as it came.
    """

    def __init__(self) -> None:
        self.url = ""
        self.seen: list[Request] = []
        self._scripts: dict[str, list[Reply]] = {}
        routes = [Route("/{path:path}", self._answer, methods=["GET", "POST", "PUT", "DELETE"])]
        self.app = Starlette(routes=routes)

    def on(self, path: str, *replies: Reply) -> str:
        """Set the replies of a path; return its URL."""
        self._scripts[path] = list(replies)
        return self.url + path

    def requests(self, path: str | None = None) -> list[Request]:
        return [each for each in self.seen if path is None or each.url.path == path]

    def headers(self, name: str, path: str | None = None) -> list[str | None]:
        return [each.headers.get(name) for each in self.requests(path)]

    @property
    def paths(self) -> list[str]:
        return [each.url.path for each in self.seen]

    async def _answer(self, request: Request) -> Response:
        self.seen.append(request)
        script = self._scripts.get(request.url.path)
        if script is None:
            return reply(404, {"detail": "nothing is here"})
        chosen = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(chosen, Response):
            return chosen
        made = chosen(request)
        return await made if inspect.isawaitable(made) else made


@contextmanager
def serving() -> Iterator[Server]:
    """Run a server in a thread."""
    server = Server()
    config = uvicorn.Config(
        server.app,
        lifespan="off",
        ws="none",
        log_config=None,  # uvicorn would change its loggers for all tests that follow
        date_header=False,
        timeout_graceful_shutdown=1,
    )
    runner = uvicorn.Server(config)
    # asyncio switches Nagle's algorithm off only if the protocol is named.
    with socket.socket(proto=socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        server.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread = threading.Thread(target=lambda: asyncio.run(runner.serve([listening])))
        thread.start()
        try:
            yield server
        finally:
            runner.should_exit = True
            thread.join()


@dataclass
class Waits:
    """A poller or a client of jobs, asynchronous or not, called alike; sleeps take no time."""

    kind: str
    now: float = 1000.0
    chance: float = 0.0
    pauses: list[float] = field(default_factory=list)
    shown: list[Snapshot] = field(default_factory=list)
    poller: Any = None

    def open(self, **options: Any) -> Waits:
        """Make the poller, with these arguments."""
        rules = Rules(clock=lambda: self.now, random=lambda: self.chance)
        if self.kind == "async":
            http = httpx.AsyncClient(verify=NO_CERTIFICATES, **options.pop("http", {}))
            self.poller = AsyncPoller(http=http, rules=rules, sleep=self._asleep, **options)
        else:
            http_sync = httpx.Client(verify=NO_CERTIFICATES, **options.pop("http", {}))
            self.poller = Poller(http=http_sync, rules=rules, sleep=self._sleep, **options)
        return self

    def jobs(self, url: str, **options: Any) -> Waits:
        """Make a client of jobs."""
        rules = Rules(clock=lambda: self.now, random=lambda: self.chance)
        if self.kind == "async":
            http = httpx.AsyncClient(verify=NO_CERTIFICATES)
            self.poller = AsyncJobs(url, http=http, rules=rules, sleep=self._asleep, **options)
        else:
            http_sync = httpx.Client(verify=NO_CERTIFICATES)
            self.poller = Jobs(url, http=http_sync, rules=rules, sleep=self._sleep, **options)
        return self

    async def wait_for(self, source: Any, **options: Any) -> Snapshot:
        if self.poller is None:
            self.open()
        options = {"on_progress": self.shown.append, **options}
        if self.kind == "async":
            found: Snapshot = await self.poller.wait_for(source, **options)
        else:
            # The server runs in another thread, so this one may be blocked.
            found = self.poller.wait_for(source, **options)
        return found

    async def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a method that returns one result, such as `wait_all`."""
        result = getattr(self.poller or self.open().poller, name)(*arguments, **options)
        return await result if self.kind == "async" else result

    async def as_completed(self, sources: Any, **options: Any) -> list[Completed[Any]]:
        found = (self.poller or self.open().poller).as_completed(sources, **options)
        return [each async for each in found] if self.kind == "async" else list(found)

    async def close(self) -> None:
        for thread in threading.enumerate():
            if thread.name == SyncRunner.THREAD:  # of a request that nobody needs any more
                await asyncio.to_thread(thread.join, PATIENCE)
                assert not thread.is_alive()
        if self.poller is not None:
            closed = self.poller._runner.http
            await closed.aclose() if self.kind == "async" else closed.close()

    def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    async def _asleep(self, seconds: float) -> None:
        self._sleep(seconds)
