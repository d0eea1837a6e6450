"""`GET …/events`: each version once, until the last; resumed, kept alive, and ended in order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx
import pytest

from app.auth.callers import TRUSTED
from jobcache import SourceUnavailable
from tests.app.connections import HOST
from tests.app.running import Service, Start
from tests.app.test_disconnects import listening

on_memory = pytest.mark.parametrize("backend_environment", ["memory"], indirect=True)
EVER = {"JOBCACHE_HEARTBEAT_SECONDS": "0.05", "JOBCACHE_STREAM_SECONDS": "60"}


class Event(NamedTuple):
    id: int
    name: str
    job: dict[str, Any]


class Stream:
    """A stream that is being read.

    Attributes:
        comments: how many have come.
        retries: the hints when to come again.
    """

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.comments = 0
        self.retries: list[int] = []
        self._lines = response.aiter_lines()

    async def __aiter__(self) -> AsyncIterator[Event]:
        fields: dict[str, str] = {}
        async for line in self._lines:
            if line == "":
                if "data" in fields:
                    yield Event(int(fields["id"]), fields["event"], json.loads(fields["data"]))
                fields.clear()
            elif line.startswith(":"):
                self.comments += 1
            else:
                name, _, value = line.partition(": ")
                assert name in {"retry", "id", "event", "data"}
                assert name not in fields
                if name == "retry":
                    self.retries.append(int(value))
                else:
                    fields[name] = value
        assert not fields, "ended in the middle of an event"


@asynccontextmanager
async def reading(port: int, job_id: int, last_event_id: str = "") -> AsyncIterator[Stream]:
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    url = f"http://{HOST}:{port}/api/v2/jobs/{job_id}/events"
    async with (
        httpx.AsyncClient(timeout=20) as client,
        client.stream("GET", url, headers=headers) as response,
    ):
        yield Stream(response)


async def test_a_stream_brings_every_version_that_there_is_time_for_and_ends_with_the_last(
    service: Service,
) -> None:
    async with listening(service) as port, asyncio.timeout(60):
        job = await service.rendering()
        async with reading(port, job["id"]) as stream:
            assert stream.response.status_code == 200
            headers = stream.response.headers
            assert headers["content-type"] == "text/event-stream"
            assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-cache", "no")
            assert not {"content-encoding", "content-length"} & headers.keys()
            seen = []
            async for event in stream:
                seen.append(event)
                if len(seen) < 4:
                    await service.post(f"{job['id']}/progress", percent=10 * len(seen))
                else:
                    await service.post(f"{job['id']}/complete")
        first = job["version"]
        assert [event.id for event in seen] == list(range(first, first + 5))
        assert {event.name for event in seen} == {"status"}
        assert [event.job["progress"]["percent"] for event in seen] == [0, 10, 20, 30, 100]
        assert seen[-1].job == await service.job(job["id"])
        assert 1000 <= stream.retries[0] <= 3000
        assert service.services.cache.info().waiting == (0, 0)


@on_memory
async def test_a_client_that_comes_again_is_sent_what_is_newer_than_it_says(
    service: Service,
) -> None:
    async with listening(service) as port, asyncio.timeout(60):
        job = await service.rendering()
        path, held = f"/api/v2/jobs/{job['id']}", job["version"]
        newest = (await service.post(f"{job['id']}/progress", percent=1))["version"]
        for last in ("", str(held), "0", "-1", "what", "9" * 30, str(newest + 7), f'"{newest}-0"'):
            async with reading(port, job["id"], last) as stream:
                event = await anext(aiter(stream))
                assert event.id == newest, last
        async with reading(port, job["id"], str(newest)) as stream:
            events = aiter(stream)
            waiting = asyncio.ensure_future(anext(events))
            while service.services.held.counts()["streams"] != 1:
                await asyncio.sleep(0.005)
            done = await service.post(f"{job['id']}/cancel")
            assert (await waiting).job == done
            assert [event async for event in events] == []
        async with reading(port, job["id"], str(newest)) as stream:
            assert [event.id async for event in stream] == [done["version"]]
        last = {"Last-Event-ID": str(done["version"])}
        # to a browser's EventSource this says not to come again (WHATWG HTML, 9.2.3)
        for ask in (service.http.get, service.http.head):
            answer = await ask(f"{path}/events", headers=last)
            assert (answer.status_code, answer.content) == (204, b"")
            assert answer.headers["cache-control"] == "no-cache"
        missing = await service.http.get("/api/v2/jobs/999/events")
        assert missing.status_code == 404
        assert missing.headers["content-type"] == "application/problem+json"


async def test_a_quiet_stream_is_kept_alive_and_ends_after_its_time(start: Start) -> None:
    short = {"JOBCACHE_HEARTBEAT_SECONDS": "0.05", "JOBCACHE_STREAM_SECONDS": "0.4"}
    async with start(**short) as service, listening(service) as port, asyncio.timeout(60):
        job = await service.rendering()
        async with reading(port, job["id"]) as stream:
            assert [event.id async for event in stream] == [job["version"]]
            assert 3 <= stream.comments <= 9
        head = await service.http.head(f"/api/v2/jobs/{job['id']}/events")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == "text/event-stream"


@on_memory
async def test_a_slow_reader_of_a_stream_gets_the_newest_version_and_no_backlog(
    service: Service,
) -> None:
    job = await service.rendering()
    services, sent, gate = service.services, [], asyncio.Event()
    gone: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message.get("body", b""))
        await gate.wait()

    async def receive() -> Any:
        return await gone

    first = await services.jobs.poll(job["id"], TRUSTED)
    document = services.jobs.polled_document(job["id"], TRUSTED)
    events = services.events.of(document, first, 0)
    sending = asyncio.create_task(
        services.events.send(document, events, {"path": "/"}, receive, send)  # type: ignore[arg-type]
    )
    for percent in range(20):
        await service.post(f"{job['id']}/progress", percent=percent)
        assert len(sent) <= 1
    gate.set()
    done = await service.post(f"{job['id']}/complete")
    async with asyncio.timeout(60):
        await sending
    ids = [int(piece[4 : piece.index(b"\n")]) for piece in sent if piece.startswith(b"id: ")]
    assert ids[-1] == done["version"]
    assert len(ids) <= 3, "what was current when it came, when it read on, and the last"


async def test_a_stream_outlives_an_outage_of_the_database(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 503 would be the end for a browser's EventSource."""
    async with start(**EVER) as service, listening(service) as port, asyncio.timeout(60):
        job = await service.rendering()
        async with reading(port, job["id"]) as stream:
            events = aiter(stream)
            await anext(events)

            async def away(_: int) -> None:
                raise SourceUnavailable("the database is away")

            with monkeypatch.context() as patch:
                patch.setattr(service.services.jobs._store, "load", away)
                await service.services.cache.invalidate_all()
                waiting = asyncio.ensure_future(anext(events))
                before = stream.comments
                while stream.comments < before + 5:
                    await asyncio.sleep(0.01)
                assert not waiting.done()
            done = await service.post(f"{job['id']}/complete")
            assert (await waiting).job == done
