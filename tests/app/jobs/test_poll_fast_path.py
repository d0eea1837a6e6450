"""The hot path answers as the route does, to the byte, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from app.jobs.cache_keys import progress_key
from app.main import Application
from jobcache import SourceUnavailable
from jobcache.protocol.backend import PublishResult
from tests.app.keyed import Keyed, keyed
from tests.app.running import Service, Start, choosing

JOB = "/api/v2/jobs"
NEVER_PLAIN = ["0", "01", "+1", "1_0", "1.0", "9" * 19, "9" * 30, "1/", "1%32", "", "x", "\u0661"]
TAGS = [
    None,
    "*",
    '"{v}-0"',
    '"{v}-1"',
    'W/"{v}-0"',
    '"1-0", "{v}-0"',
    '"{above}-0"',
    "rubbish",
    '""',
]
CODINGS = [None, "gzip", "identity", "gzip;q=0", "br, *;q=0.1"]

Messages = list[dict[str, Any]]


def is_made_id(header: tuple[bytes, bytes]) -> bool:
    """Whether it is the id of a request that brought none; hits of the fast path have none."""
    return header[0] == b"x-request-id" and len(header[1]) == 32


class Cold:
    """Answers no poll: all of them go to the route."""

    def answer(self, *_: object) -> None:
        return None


class SendRequest:
    """Sends one request to the application, in both ways."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(
        self,
        path: str,
        headers: dict[str, str | None],
        *,
        hot: bool,
        method: str = "GET",
        query: str = "",
    ) -> Messages:
        raw = [
            (name.lower().encode(), value.encode("latin-1"))
            for name, value in headers.items()
            if value is not None
        ]
        return await self.raw(path, raw, hot=hot, method=method, query=query)

    async def raw(
        self,
        path: str,
        raw: list[tuple[bytes, bytes]],
        *,
        hot: bool,
        method: str = "GET",
        query: str = "",
    ) -> Messages:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(b"host", b"localhost"), *raw],
            "client": ("127.0.0.1", 1),
            "server": ("test", 80),
        }
        sent: Messages = []
        received = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if received.is_set():
                await asyncio.Future()  # the client does not go away
            received.set()
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            message = dict(message)
            if message["type"] == "http.response.start":
                message["headers"] = [each for each in message["headers"] if not is_made_id(each)]
            sent.append(message)

        if hot:
            await self._app(scope, receive, send)
        else:
            hot, self._app.fast_path = self._app.fast_path, Cold()  # type: ignore[assignment]
            try:
                await self._app(scope, receive, send)
            finally:
                self._app.fast_path = hot
        return sent


@pytest.fixture(params=["memory", "redis", "null"])
async def asked(
    start: Start, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Keyed, SendRequest]]:
    environment = choosing(request, request.param)
    async with keyed(start, tmp_path / "keys", **environment) as service:
        transport: Any = service.service.http._transport
        # Two answers to compare are to be of the same age.
        monkeypatch = request.getfixturevalue("monkeypatch")
        now_ms = service.service.services.cache._clock.now_ms() + 1500
        monkeypatch.setattr(service.service.services.cache._clock, "now_ms", lambda: now_ms)
        yield service, SendRequest(transport.app)


def requests(
    callers: Iterable[str], *, every: bool
) -> Iterator[tuple[str | None, str | None, str]]:
    """Tags, codings and callers: all of a client of its own job; of others each tag and coding."""
    for caller in callers:
        for (at, tag), (number, coding) in product(enumerate(TAGS), enumerate(CODINGS)):
            if every or caller == "own" or at % len(CODINGS) == number:
                yield tag, coding, caller


async def jobs_of(service: Service) -> dict[str, tuple[str, int]]:
    """Paths of a small document and of one that is kept in gzip, and their versions."""
    small = await service.rendering()
    large = await service.rendering(prompt="A fox crosses a frozen river at night. " * 40)
    for job in (small, large):
        await service.job(job["id"])
    return {
        name: (f"{JOB}/{job['id']}", job["version"])
        for name, job in (("small", small), ("large", large))
    }


async def test_all_ways_answer_alike_to_the_byte(
    asked: tuple[Keyed, SendRequest], *, long: bool
) -> None:
    service, ask = asked
    statistics = service.service.services.cache.statistics
    jobs = await jobs_of(service.service)
    jobs["unknown"] = (f"{JOB}/999", 1)
    taken = gzipped = expected = 0
    for name, (tag, coding, caller) in product(jobs, requests(service.callers, every=long)):
        path, version = jobs[name]
        expected += name != "unknown" and caller in {"own", "worker", "operator"}
        headers = {
            "If-None-Match": tag and tag.format(v=version, above=version + 3),
            "Accept-Encoding": coding,
            **service.callers[caller],
        }
        counted = []
        answers = []
        for hot in (True, False):
            before = statistics.counters().total_requests
            answers.append(await ask(path, headers, hot=hot))
            after: Any = statistics.counters().total_requests
            counted.append(after - before)
        assert answers[0] == answers[1], (path, headers)
        assert counted[0] == counted[1], (path, headers)
        head = answers[0][0]
        taken += head["status"] in {200, 304}
        gzipped += (b"content-encoding", b"gzip") in head["headers"]
    assert gzipped > 0
    assert taken == expected, "own, worker and operator see both jobs"


async def test_what_is_unusual_is_left_to_the_route(asked: tuple[Keyed, SendRequest]) -> None:
    service, ask = asked
    path, version = (await jobs_of(service.service))["small"]
    operator = service.callers["operator"]
    bearer = operator["Authorization"].encode()
    tag = f'"{version}-0"'.encode()
    for strange in NEVER_PLAIN:
        answers = [await ask(f"{JOB}/{strange}", operator, hot=hot) for hot in (True, False)]
        assert answers[0] == answers[1], strange
    for method, query in (
        ("GET", "x=1"),
        ("HEAD", ""),
        ("POST", ""),
        ("DELETE", ""),
        ("OPTIONS", ""),
    ):
        answers = [
            await ask(path, operator, hot=hot, method=method, query=query) for hot in (True, False)
        ]
        assert answers[0] == answers[1], (method, query)
    for raw in (
        [(b"if-none-match", b'"1-0"'), (b"if-none-match", tag)],
        [(b"accept-encoding", b"br"), (b"accept-encoding", b"gzip")],
        [(b"prefer", b"wait=1")],
        [(b"prefer", b"respond-async")],
        [(b"if-none-match", tag), (b"prefer", b"wait=0")],
        [(b"if-none-match", b'"\xff"')],
        [(b"authorization", bearer)],
    ):
        both = [(b"authorization", bearer), *raw]
        answers = [await ask.raw(path, both, hot=hot) for hot in (True, False)]
        assert answers[0] == answers[1], raw


async def test_a_plain_poll_does_not_reach_the_framework(
    asked: tuple[Keyed, SendRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, ask = asked
    path, version = (await jobs_of(service.service))["small"]

    async def reached(*_: object) -> None:
        raise AssertionError("the framework was asked")

    monkeypatch.setattr(FastAPI, "__call__", reached)
    for tag, status in ((None, 200), (f'"{version}-0"', 304)):
        start, body = await ask(path, service.callers["own"] | {"If-None-Match": tag}, hot=True)
        assert start["status"] == status
        assert (body["body"] == b"") is (status == 304)


async def test_errors_are_answered_once_and_by_the_application(
    asked: tuple[Keyed, SendRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, ask = asked
    (path, _), polls = (await jobs_of(service.service))["small"], 0

    async def fails(*_: object, **__: object) -> None:
        nonlocal polls
        polls += 1
        raise SourceUnavailable("gone")

    monkeypatch.setattr(service.service.services.cache.reads, "_peek", None)
    monkeypatch.setattr(service.service.services.cache, "read", fails)
    answer = await ask(path, service.callers["own"], hot=True)
    assert (answer[0]["status"], polls) == (503, 1)
    assert answer == await ask(path, service.callers["own"], hot=False)


@pytest.mark.parametrize("asked", ["memory", "redis"], indirect=True)
async def test_a_body_that_cannot_be_read_is_answered_by_the_application(
    asked: tuple[Keyed, SendRequest],
) -> None:
    """In a store elsewhere it is found when the cell is decoded, and loaded again."""
    service, ask = asked
    own = service.callers["own"]
    path, _ = (await jobs_of(service.service))["small"]
    cache = service.service.services.cache
    key = progress_key(int(path.rsplit("/", 1)[1]))
    whole = await ask(path, own, hot=True)
    answers = []
    for hot in (True, False):
        entry = await cache.backend.get(key)
        assert entry is not None
        broken = replace(entry, encoding="gzip", encoded_body=b"no gzip at all")
        assert await cache.backend.publish(key, "t", broken) is PublishResult.PROLONGED
        answers.append(await ask(path, own, hot=hot))
        if cache.backend.name == "memory":
            continue  # only this process writes there, and nobody looks at the body before
        for found in (b"jobcache; fwd=miss", b"jobcache; hit"):  # removed; loaded again
            start, body = await ask(path, own, hot=hot)
            assert (start["status"], body) == (200, whole[1])
            assert dict(start["headers"])[b"cache-status"].startswith(found)
    assert answers[0] == answers[1]
    assert answers[0][0]["status"] == (503 if cache.backend.name == "memory" else 200)
    if cache.backend.name == "redis":
        assert answers[0][1] == whole[1]


async def test_a_changed_list_of_headers_is_the_callers_own(
    asked: tuple[Keyed, SendRequest],
) -> None:
    """As middleware does that adds one."""
    service, ask = asked
    path, _ = (await jobs_of(service.service))["small"]
    first = await ask(path, service.callers["own"], hot=True)
    expected = list(first[0]["headers"])
    first[0]["headers"].append((b"x-added", b"1"))
    assert (await ask(path, service.callers["own"], hot=True))[0]["headers"] == expected
