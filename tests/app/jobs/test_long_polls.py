"""`Prefer: wait`: who is held, what ends it, and what the answer says."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobcache import SourceUnavailable
from tests.app.connections import connected
from tests.app.keyed import keyed
from tests.app.running import Service, Start, choosing
from tests.app.test_disconnects import listening

HERE = ("localhost", 80)
on_redis = pytest.mark.parametrize("backend_environment", ["redis"], indirect=True)


async def poll(
    service: Service, job_id: int, tag: str | None, prefer: str, **headers: str
) -> httpx.Response:
    if tag is not None:
        headers["If-None-Match"] = tag
    return await service.http.get(f"/api/v2/jobs/{job_id}", headers={"Prefer": prefer, **headers})


async def held(service: Service, count: int) -> None:
    async with asyncio.timeout(60):
        while (await service.stats())["held"]["waits"] != count:
            await asyncio.sleep(0.005)


async def test_a_held_poll_is_answered_by_the_next_version(service: Service) -> None:
    """On every backend; on null nothing but the process itself tells of it."""
    job = await service.rendering()
    tag = f'"{job["version"]}-0"'
    async with asyncio.timeout(60):
        waiting = [
            asyncio.create_task(poll(service, job["id"], tag, "wait=30")),
            # the tag of the other coding names the same version
            asyncio.create_task(poll(service, job["id"], tag.replace("-0", "-1"), "wait=999")),
            asyncio.create_task(
                service.http.head(
                    f"/api/v2/jobs/{job['id']}", headers={"If-None-Match": tag, "Prefer": "wait=30"}
                )
            ),
        ]
        await held(service, 3)
        now = await service.post(f"{job['id']}/progress", percent=10)
        answers = await asyncio.gather(*waiting)
    assert [answer.status_code for answer in answers] == [200] * 3
    assert answers[0].json() == now
    assert [answer.headers["preference-applied"] for answer in answers] == [
        "wait=30",
        "wait=55",
        "wait=30",
    ]
    for answer in answers:
        assert answer.headers["etag"] == f'"{now["version"]}-0"'
        assert answer.headers["cache-status"].startswith("jobcache; ")
        assert answer.headers["retry-after"] == "2"
        assert answer.headers["vary"] == "Accept-Encoding"
    stats = (await service.stats())["held"]
    assert (stats["waits"], stats["waiters"], stats["keys"]) == (0, 0, 0)


async def test_when_the_time_is_up_it_is_304(start: Start) -> None:
    async with start() as service:
        job = await service.rendering()
        tag = f'"{job["version"]}-0"'
        answer = await poll(service, job["id"], tag, "wait=1")
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["preference-applied"] == "wait=1"
        assert answer.headers["etag"] == tag
        assert answer.headers["retry-after"] == "2"


async def test_a_client_without_the_newest_version_is_not_held_and_none_is_at_the_end(
    start: Start,
) -> None:
    async with start() as service, asyncio.timeout(60):
        job = await service.rendering()
        version = job["version"]
        for tag, status in [
            (None, 200),
            ("*", 304),
            (f'"{version - 1}-0"', 200),
            (f'"{version + 1}-0"', 200),
            (f'"{version}-4"', 200),  # another format of the documents
            ('"video"', 200),
        ]:
            answer = await poll(service, job["id"], tag, "wait=55")
            assert answer.status_code == status
            assert "preference-applied" not in answer.headers
        done = await service.post(f"{job['id']}/complete")
        answer = await poll(service, job["id"], f'"{done["version"]}-0"', "wait=55")
        assert answer.status_code == 304
        assert not {"preference-applied", "retry-after"} & answer.headers.keys()
        # and there is nothing to wait for, of what does not exist
        assert (await poll(service, 999, '"1-0"', "wait=55")).status_code == 404


@on_redis
async def test_another_process_wakes_it_through_the_feed(
    start: Start, backend_environment: dict[str, str], database_url: str, request: Any
) -> None:
    tiered = {**choosing(request, "redis"), "JOBCACHE_BACKEND": "tiered"}
    for environment in (backend_environment, tiered):
        async with (
            start(DATABASE_URL=database_url, **environment) as one,
            start(DATABASE_URL=database_url, **environment) as other,
            asyncio.timeout(60),
        ):
            job = await one.rendering()
            waiting = asyncio.create_task(poll(one, job["id"], f'"{job["version"]}-0"', "wait=30"))
            await held(one, 1)
            while (await one.stats())["statistics"]["feed"]["state"] != "live":
                await asyncio.sleep(0.01)
            loads = one.services.cache.statistics.database_loads
            done = await other.post(f"{job['id']}/complete")
            answer = await waiting
            assert answer.json() == done
            assert one.services.cache.statistics.database_loads == loads


async def test_other_clients_get_404_and_are_not_held(start: Start, tmp_path: Path) -> None:
    async with keyed(start, tmp_path / "keys") as access, asyncio.timeout(60):
        job = await access.service.rendering()
        headers = {"If-None-Match": f'"{job["version"]}-0"', "Prefer": "wait=55"}
        answer = await access.call("stranger", "GET", f"/api/v2/jobs/{job['id']}", headers=headers)
        assert answer.status_code == 404


async def test_beyond_the_limit_polls_are_answered_at_once(start: Start, tmp_path: Path) -> None:
    async with start(JOBCACHE_MAX_HELD_REQUESTS="2") as service, asyncio.timeout(60):
        job = await service.rendering()
        tag = f'"{job["version"]}-0"'
        waiting = [asyncio.create_task(poll(service, job["id"], tag, "wait=55")) for _ in range(2)]
        await held(service, 2)
        answer = await poll(service, job["id"], tag, "wait=55")
        assert (answer.status_code, answer.headers["retry-after"]) == (304, "2")
        assert "preference-applied" not in answer.headers
        refused = await service.http.get(f"/api/v2/jobs/{job['id']}/events")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert refused.headers["content-type"] == "application/problem+json"
        assert service.services.held.refused() == {"waits": 1, "streams": 1}
        await service.post(f"{job['id']}/progress", percent=10)
        assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}
        polls = service.services.cache.statistics.polls
        assert (polls.long_polls_answered, polls.long_polls_ended, polls.unchanged) == (2, 0, 1)


async def test_one_caller_is_given_half_of_the_places(start: Start, tmp_path: Path) -> None:
    async with keyed(start, tmp_path / "keys", JOBCACHE_MAX_HELD_REQUESTS="2") as access:
        held = access.service.services.held
        with held.slot("waits", "acme", HERE) as one, held.slot("streams", "acme", HERE) as two:
            assert (one, two) == (True, False)
            with held.slot("waits", "umbrella", HERE) as other:
                assert other
        assert held.counts() == {"waits": 0, "streams": 0, "most": 2}


async def test_a_client_that_leaves_frees_its_place_at_once(start: Start) -> None:
    async with start() as service, listening(service) as port, asyncio.timeout(60):
        job = await service.rendering()
        path, tag = f"/api/v2/jobs/{job['id']}", f'"{job["version"]}-0"'
        async with connected([port] * 20) as clients:
            for client in clients[:10]:
                client.send("GET", path, If_None_Match=tag, Prefer="wait=55")
            for client in clients[10:]:
                client.send("GET", f"{path}/events")
            while service.services.held.counts() != {"waits": 10, "streams": 10, "most": 10_000}:
                await asyncio.sleep(0.005)
            while service.services.cache.info().waiting != (20, 1):
                await asyncio.sleep(0.005)
            for client in clients:
                client.abandon()
            while service.services.cache.info().waiting != (0, 0):
                await asyncio.sleep(0.005)
        assert (
            service.services.held.counts()["waits"]
            == service.services.held.counts()["streams"]
            == 0
        )


async def test_while_the_database_is_away_it_is_held_all_the_same(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start() as service, asyncio.timeout(60):
        job = await service.rendering()

        async def away(_: int) -> None:
            raise SourceUnavailable("the database is away")

        waiting = asyncio.create_task(poll(service, job["id"], f'"{job["version"]}-0"', "wait=1"))
        await held(service, 1)
        monkeypatch.setattr(service.services.jobs._store, "load", away)
        await service.services.cache.invalidate_all()
        answer = await waiting
        assert answer.status_code == 304, "it knows of nothing newer"
        polls = service.services.cache.statistics.polls
        assert (polls.long_polls_ended, polls.long_polls_timed_out) == (1, 0)


async def test_the_longest_wait_is_a_setting(start: Start) -> None:
    async with start(JOBCACHE_MAX_WAIT="7") as service:
        job = await service.rendering()
        waiting = asyncio.create_task(poll(service, job["id"], f'"{job["version"]}-0"', "wait=600"))
        await held(service, 1)
        await service.post(f"{job['id']}/progress", percent=10)
        assert (await waiting).headers["preference-applied"] == "wait=7"
