"""The protocol class, the ASGI fast path and the route answer a poll alike, to the byte."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from app.auth.middleware import Authenticator
from app.db.database import DatabaseUnavailable
from app.http.exchange import Exchange
from app.http.fast_path_protocol import FastPathProtocol, is_tested
from app.http.lifespan_state import FAST_PATH
from app.jobs.cache_keys import progress_key
from app.jobs.poll_fast_path import PollFastPath
from jobcache.http.fast_path import MATCHED
from tests.app.keyed import Keyed, keyed
from tests.app.running import Service, Start, choosing
from tests.app.wires import END, MADE_ID, get

WAYS = ("protocol", "ASGI", "route")
LONG = "A fox crosses a frozen river at night. " * 40
HIT = re.compile(rb"cache-status: jobcache; hit")


@dataclass
class Ways:
    """One application on three ports, each of which answers polls in another way.

    Attributes:
        service: the application.
        matched: how often the fast path has examined a request, by way.
        judged: how often the caller of a request was judged, by way.
        reached: how many requests have reached the application, by way.
    """

    service: Service
    servers: dict[str, asyncio.Server] = field(default_factory=dict)
    matched: Counter[str] = field(default_factory=Counter)
    judged: Counter[str] = field(default_factory=Counter)
    reached: Counter[str] = field(default_factory=Counter)
    now: str = ""

    @property
    def is_open(self) -> bool:
        return self.service.services.keys is None and self.service.services.rate is None

    async def serve(self) -> None:
        transport: Any = self.service.http._transport
        app = transport.app
        kinds: dict[str, tuple[Any, ASGIApp, dict[str, Any]]] = {
            "protocol": (FastPathProtocol, app, {FAST_PATH: app.fast_path}),
            "ASGI": (Exchange, app, {}),
            "route": (HttpToolsProtocol, partial(without_fast_path, app), {}),
        }
        for way, (kind, application, lifespan_state) in kinds.items():
            config = uvicorn.Config(
                partial(self.reach, way, application),
                interface="asgi3",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
            )
            config.load()
            state = ServerState()
            state.default_headers = [(b"server", b"under test")]
            made = partial(kind, config, state, lifespan_state)
            loop = asyncio.get_running_loop()
            self.servers[way] = await loop.create_server(partial(unlogged, made), "127.0.0.1", 0)

    async def reach(
        self, way: str, application: ASGIApp, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self.reached[way] += scope["path"] != "/healthz"
        await application(scope, receive, send)

    async def ask(self, way: str, request: bytes) -> bytes:
        """Send a request, and return all that is answered to it."""
        self.now = way
        port = self.servers[way].sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request + END)
        async with asyncio.timeout(60):
            answered = await reader.read()
        writer.close()
        return MADE_ID.sub(b"", answered)

    async def alike(self, request: bytes, *, cold: int = 0) -> bytes:
        """Return the answer to a request, which is the same in all ways.

        Args:
            request: as bytes.
            cold: the job whose entry is removed first, each time.
        """
        cache, answers, counts = self.service.services.cache, {}, {}
        if not cold:
            await self.warm(request)
        for way in WAYS:
            if cold:
                await cache.invalidate(progress_key(cold))
            before = self.matched[way], self.judged[way], cache.info().counters
            answers[way] = await self.ask(way, request)
            after = cache.info().counters
            counts[way] = after.total_requests - before[2].total_requests
            # There are two requests: END is the second.
            matched = 0 if way == "route" else 2
            assert self.matched[way] - before[0] == matched, (way, "examined once", request)
            judged = self.judged[way] - before[1]
            # A service without keys and limits need not judge a poll.
            assert judged == 2 or (self.is_open and judged == 1), (way, "judged once", request)
        assert answers["protocol"] == answers["route"], request
        assert answers["ASGI"] == answers["route"], request
        assert len(set(counts.values())) == 1, (counts, request)
        return answers["route"]

    async def warm(self, request: bytes) -> None:
        """Let the entry get where it stays: into the local tier, if there is one."""
        async with asyncio.timeout(60):
            while True:
                first, second = [await self.ask("route", request) for _ in range(2)]
                cache = self.service.services.cache
                feed = cache.info().feed if cache.backend.name == "tiered" else None
                if first == second and (feed is None or feed.state == "live"):
                    return
                await asyncio.sleep(0.005)


async def without_fast_path(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Call the application as if a server had examined each request already."""
    await app({**scope, "extensions": {MATCHED: {}}}, receive, send)


def unlogged(made: Any) -> Any:
    """Make a protocol that logs no access, though pytest listens."""
    protocol = made()
    protocol.access_log = False
    return protocol


@contextmanager
def counted(ways: Ways) -> Iterator[None]:
    match, judge = PollFastPath.match, Authenticator.judge

    def count_match(self: PollFastPath, scope: Scope) -> Any:
        ways.matched[ways.now] += 1
        return match(self, scope)

    def count_judge(self: Authenticator, scope: Scope, path: str) -> Any:
        ways.judged[ways.now] += 1
        return judge(self, scope, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PollFastPath, "match", count_match)
        patch.setattr(Authenticator, "judge", count_judge)
        yield


@asynccontextmanager
async def three_ways(service: Service) -> AsyncIterator[Ways]:
    clock = service.services.cache._clock
    now_ms = clock.now_ms() + 1500
    clock.now_ms = lambda: now_ms  # answers are to be of one age
    if hasattr(service.services.cache.backend, "_deadline"):
        # On a busy machine Redis may take longer than a poll would wait for it.
        service.services.cache.backend._deadline = 60.0
    ways = Ways(service)
    await ways.serve()
    try:
        with counted(ways):
            yield ways
    finally:
        for server in ways.servers.values():
            server.close()


@pytest.fixture(params=["null", "memory", "redis", "tiered"])
async def ways(
    request: pytest.FixtureRequest, start: Start, tmp_path: Path
) -> AsyncIterator[tuple[Ways, Keyed]]:
    environment = choosing(request, request.param)
    async with (
        keyed(start, tmp_path / "keys", **environment) as service,
        three_ways(service.service) as found,
    ):
        yield found, service


def status_of(answer: bytes) -> int:
    return int(answer[9:12])


def lines(headers: dict[str, str]) -> list[str]:
    return [f"{name}: {value}" for name, value in headers.items()]


async def test_every_kind_of_poll_is_answered_alike(ways: tuple[Ways, Keyed]) -> None:
    three, service = ways
    small = await service.service.rendering()
    large = await service.service.rendering(prompt=LONG)
    own = lines(service.callers["own"])
    path, tag = f"/api/v2/jobs/{small['id']}", f'"{small["version"]}-0"'
    zipped = f'"{large["version"]}-1"'
    kept = service.service.services.cache.backend.name != "null"
    for request, status in (
        (get(path, *own), 200),
        (get(path, *own, f"If-None-Match: {tag}"), 304),
        (get(path, *own, 'If-None-Match: "1-0"'), 200),
        (get(path, *own, "If-None-Match: *"), 304),
        (get(path, *own, "Prefer: wait=0", f"If-None-Match: {tag}"), 304),
        (get(path, *own, "X-Request-Id: of-a-balancer"), 200),
        (get(path, *own, "X-Request-Id: 7", f"If-None-Match: {tag}"), 304),
        (get(path, "X-Request-Id: 7"), 401),
        (get("/api/v2/jobs/999", *own, "X-Request-Id: 7"), 404),
        (get(path, *own, "X-Request-Id: not one"), 200),
        (get(path, *own, "X-Request-Id: 7", "X-Request-Id: 8"), 200),
        (get(path, *own, method="HEAD"), 200),
        (get(path + "?x=1", *own), 200),
        (get(path, *own, "Content-Length: 0"), 200),
        (get(f"/api/v2/jobs/{large['id']}", *own), 200),
        (get(f"/api/v2/jobs/{large['id']}", *own, "Accept-Encoding: gzip"), 200),
        (
            get(
                f"/api/v2/jobs/{large['id']}",
                *own,
                "Accept-Encoding: gzip",
                f"If-None-Match: {zipped}",
            ),
            304,
        ),
        (get(path), 401),
        (get(path, *lines(service.callers["malformed"])), 401),
        (get(path, *lines(service.callers["wrong"])), 401),
        (get(path, *lines(service.callers["stranger"])), 404),
        (get("/api/v2/jobs/999", *own), 404),
        (get("/api/v2/jobs/999", *own, method="HEAD"), 404),
        (get("/api/v2/jobs/0", *own), 422),
    ):
        reached = three.reached["protocol"]
        answer = await three.alike(request)
        assert status_of(answer) == status, request
        assert bool(HIT.search(answer)) is (kept and status in {200, 304}), answer
        unusual = rb"\?|Prefer|Length|jobs/0 |Id: not one|Id: 8"
        plain = request.startswith(b"GET") and not re.search(unusual, request)
        sent = re.search(rb"X-Request-Id: ([-a-z0-9]+)\r\n", request)
        echoed = sent is not None and b"\r\nx-request-id: %b\r\n" % sent[1] in answer
        assert echoed is (plain and sent is not None), answer
        assert (three.reached["protocol"] == reached) is plain, (request, "by the protocol")


async def test_a_cold_key_is_loaded_and_answered_alike(ways: tuple[Ways, Keyed]) -> None:
    three, service = ways
    job = await service.service.rendering()
    request = get(f"/api/v2/jobs/{job['id']}", *lines(service.callers["own"]))
    assert b"fwd=miss" in await three.alike(request, cold=job["id"])


async def test_an_outage_of_the_database_is_answered_alike(
    ways: tuple[Ways, Keyed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an entry past its lifetime, or else with 503."""
    three, service = ways
    services = service.service.services
    job, unknown = await service.service.rendering(), get("/api/v2/jobs/999")
    own = lines(service.callers["own"])
    request = get(f"/api/v2/jobs/{job['id']}", *own)
    await three.warm(request)

    async def away(*_: object) -> None:
        raise DatabaseUnavailable("gone")

    monkeypatch.setattr(services.jobs._store, "load", away)
    now_ms = services.cache._clock.now_ms() + 45_000
    monkeypatch.setattr(services.cache._clock, "now_ms", lambda: now_ms)
    answer = await three.alike(request)
    if services.cache.backend.name == "null":
        assert status_of(answer) == 503
    else:
        assert status_of(answer) == 200
        assert b"fwd=stale; fwd-status=503" in answer
    assert status_of(await three.alike(get("/api/v2/jobs/999", *own))) == 503
    assert status_of(await three.alike(unknown)) == 401


@pytest.mark.parametrize("environment", [{}, {"JOBCACHE_CORS_ORIGINS": "https://app.example.com"}])
async def test_a_call_above_the_rate_is_refused_alike(
    start: Start, environment: dict[str, str]
) -> None:
    limited = {"JOBCACHE_RATE_LIMIT": "200/week", "JOBCACHE_BACKEND": "memory"}
    async with start(**limited, **environment) as service:
        job = await service.rendering()
        rate = service.services.rate
        assert rate is not None
        while rate.wait("address:127.0.0.1") == 0:
            pass
        async with three_ways(service) as ways:
            answers = [await ways.ask(way, get(f"/api/v2/jobs/{job['id']}")) for way in WAYS]
    # Retry-After counts down meanwhile.
    first, *others = [re.sub(rb"retry-after: \d+", b"", answer) for answer in answers]
    assert status_of(answers[0]) == 429
    assert others == [first, first]


async def test_common_headers_and_prefixes_are_alike(start: Start, tmp_path: Path) -> None:
    environment = {
        "JOBCACHE_BACKEND": "memory",
        "JOBCACHE_CORS_ORIGINS": "https://app.example.com",
        "JOBCACHE_ROOT_PATH": "/video",
    }
    async with keyed(start, tmp_path / "keys", **environment) as service:
        job = await service.service.rendering(prompt=LONG)
        own = lines(service.callers["own"])
        async with three_ways(service.service) as ways:
            for under in ("", "/video"):
                path = f"{under}/api/v2/jobs/{job['id']}"
                for request, status in (
                    (get(path, *own, "Accept-Encoding: gzip"), 200),
                    (get(path, *own, f'If-None-Match: "{job["version"]}-0"'), 304),
                    (get(path, *own, "Origin: https://app.example.com"), 200),
                    (get(path, *own, "X-Forwarded-Prefix: /else"), 200),
                    (get(path), 401),
                    (get(f"{under}/api/v2/jobs/999", *own), 404),
                ):
                    answer = await ways.alike(request)
                    assert status_of(answer) == status, request
                    assert answer.partition(b"\r\n\r\n")[0].lower().count(b"\nvary:") == 1, request


async def test_an_unexpected_error_is_answered_alike(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The route's connection is closed afterwards, by uvicorn."""
    async with start(JOBCACHE_BACKEND="memory") as service:
        job = await service.rendering()
        async with three_ways(service) as ways:

            def stopped() -> int:
                raise RuntimeError("no clock")

            monkeypatch.setattr(service.services.cache._clock, "now_ms", stopped)
            request = get(f"/api/v2/jobs/{job['id']}")
            answers = [await ways.ask(way, request) for way in WAYS]
    assert status_of(answers[2]) == 500
    assert answers[0].startswith(answers[2])
    assert answers[1].startswith(answers[2])


async def test_another_version_of_uvicorn_disables_the_protocol_class(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with start(JOBCACHE_BACKEND="memory") as service:
        job = await service.rendering()
        request = get(f"/api/v2/jobs/{job['id']}")
        async with three_ways(service) as ways:
            await ways.alike(request)
            assert ways.reached["protocol"] == 0
            is_tested.cache_clear()
            monkeypatch.setattr(uvicorn, "__version__", "0.999.0")
            for count in (1, 2):
                await ways.alike(request)
                assert ways.reached["protocol"] == count
    is_tested.cache_clear()
    (message,) = [each.getMessage() for each in caplog.records if "fast protocol" in each.msg]
    assert message == (
        "The fast protocol is disabled: it was tested with uvicorn 0.54.x, not with 0.999.0"
    )


def test_the_installed_version_of_uvicorn_is_tested() -> None:
    assert is_tested(uvicorn.__version__)


@pytest.mark.parametrize("enabled", ["0", "1"])
async def test_a_setting_disables_the_protocol_class(start: Start, enabled: str) -> None:
    async with start(JOBCACHE_FAST_PROTOCOL=enabled) as service:
        transport: Any = service.http._transport
        app = transport.app
        async with app.router.lifespan_context(app) as state:
            assert (FAST_PATH in state) is (enabled == "1")


async def test_the_protocol_class_answers_only_where_the_application_does(start: Start) -> None:
    """Without keys that is loopback, whatever address the server listens on."""
    for environment, admitted in (({}, False), ({"JOBCACHE_INSECURE": "1"}, True)):
        async with start(JOBCACHE_BACKEND="memory", **environment) as service:
            transport: Any = service.http._transport
            fast_path = transport.app.fast_path
            assert fast_path.admit(("127.0.0.1", 8000))
            assert fast_path.admit(("192.0.2.1", 8000)) is admitted
