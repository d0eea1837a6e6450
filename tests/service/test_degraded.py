"""With Redis or the database away, or Redis full of rubbish: what still works, and what it says."""

from __future__ import annotations

import asyncio
import logging

import pytest
import redis

from app.devservers import PostgresServer, RedisServer, free_port
from tests.service.running import Service, Start


def away_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "jobcache" and record.levelno >= logging.WARNING
    ]


async def back(service: Service) -> None:
    """Wait until the breaker has closed, by itself."""
    async with asyncio.timeout(5):
        while not service.parts.cache.condition().available:
            await asyncio.sleep(0.01)


async def test_without_redis_the_service_starts_and_says_so_once(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    async with start(JOBCACHE_BACKEND="redis", REDIS_URL=url) as service:
        job = await service.rendering()
        for percent in range(20):
            reported = await service.post(f"{job['id']}/progress", percent=percent)
            assert await service.job(job["id"]) == reported
        response = await service.http.get(f"/api/v2/jobs/{job['id']}")
        assert response.headers["cache-status"] == "jobcache; fwd=bypass; detail=redis"
        stats = await service.stats()
        assert stats["statistics"]["redis_enabled"] is True
        assert stats["statistics"]["redis_available"] is False
        assert stats["message"].startswith("Cache is away (")
        assert (await service.http.get("/readyz")).status_code == 200
    assert len(away_lines(caplog)) == 1


async def test_redis_killed_in_mid_flight_costs_no_answer_and_leaves_nothing_old(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer() as server:
        async with start(JOBCACHE_BACKEND="redis", REDIS_URL=server.url) as service:
            job = await service.rendering()
            path = f"/api/v2/jobs/{job['id']}"
            assert "; hit;" in (await service.http.get(path)).headers["cache-status"]
            server.kill()
            for percent in range(1, 11):
                reported = await service.post(f"{job['id']}/progress", percent=percent)
                assert await service.job(job["id"]) == reported
            server.start()
            await back(service)
            async with asyncio.timeout(5):  # at first each answer is confirmed by the database
                while "; hit;" not in (await service.http.get(path)).headers["cache-status"]:
                    assert await service.job(job["id"]) == reported
                    await asyncio.sleep(0.01)
            assert await service.job(job["id"]) == reported
    lines = away_lines(caplog)
    assert len(lines) == 2
    assert "is away" in lines[0]
    assert "is back after" in lines[1]


async def test_a_write_that_redis_never_heard_of_is_not_hidden_when_it_comes_back(
    start: Start,
) -> None:
    """Redis is paused, not restarted: it comes back with the old entry."""
    with RedisServer() as server:
        async with start(JOBCACHE_BACKEND="redis", REDIS_URL=server.url) as service:
            job = await service.rendering()
            assert (await service.job(job["id"]))["version"] == job["version"]
            server.pause()
            reported = await service.post(f"{job['id']}/progress", percent=50)
            assert await service.job(job["id"]) == reported
            server.resume()
            for _ in range(50):
                assert await service.job(job["id"]) == reported
            await back(service)
            for _ in range(50):
                assert await service.job(job["id"]) == reported


@pytest.mark.parametrize("kind", ["garbage", "list", "another format"])
async def test_rubbish_in_redis_is_never_an_error(start: Start, redis_url: str, kind: str) -> None:
    with redis.Redis.from_url(redis_url) as raw:
        raw.flushall()
        async with start(JOBCACHE_BACKEND="redis", REDIS_URL=redis_url) as service:
            job = await service.rendering()
            await service.http.get("/api/v2/jobs?client_id=acme")
            await service.http.get(f"/api/v2/jobs/{job['id']}/storyboard")
            keys = [*raw.scan_iter("job:*"), *raw.scan_iter("jobs:*")]
            assert len(keys) == 3
            for _ in range(2):
                for key in keys:
                    raw.delete(key)
                    if kind == "list":
                        raw.rpush(key, "x")
                    else:
                        raw.set(key, {"garbage": b"\x80\x04.", "another format": b"E2|1|"}[kind])
                listed = (await service.http.get("/api/v2/jobs?client_id=acme")).json()
                assert [item["id"] for item in listed["items"]] == [job["id"]]
                assert await service.job(job["id"]) == listed["items"][0]
                storyboard = await service.http.get(f"/api/v2/jobs/{job['id']}/storyboard")
                assert storyboard.status_code == 200
            done = await service.post(f"{job['id']}/complete")
            assert await service.job(job["id"]) == done


async def test_an_operator_is_told_when_a_purge_has_to_wait(start: Start) -> None:
    with RedisServer() as server:
        async with start(JOBCACHE_BACKEND="redis", REDIS_URL=server.url) as service:
            server.kill()
            for body in ({"job_id": 1}, {"all": True}):
                response = await service.http.post("/api/v2/cache/invalidate", json=body)
                assert response.status_code == 503
                assert response.headers["retry-after"] == "2"
                assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("backend", ["null", "memory", "redis"])
async def test_while_the_database_is_away_what_is_cached_is_answered(
    start: Start, backend: str, redis_url: str
) -> None:
    with redis.Redis.from_url(redis_url) as raw:
        raw.flushall()
    with PostgresServer() as server:
        async with start(
            JOBCACHE_BACKEND=backend, REDIS_URL=redis_url, DATABASE_URL=server.url()
        ) as service:
            job = await service.rendering()
            path = f"/api/v2/jobs/{job['id']}"
            server.stop()
            answer = await service.http.get(path)
            if backend == "null":
                assert answer.status_code == 503
            else:
                assert answer.json() == job
            unavailable = [
                await service.http.get("/api/v2/jobs/77"),
                await service.http.get("/api/v2/jobs"),
                await service.http.post(f"{path}/progress", json={"percent": 1}),
                await service.http.post("/api/v2/jobs", json={"client_id": "acme", "prompt": "x"}),
                await service.http.get("/readyz"),
            ]
            for response in unavailable:
                assert response.status_code == 503, response.text
                assert response.headers["retry-after"] == "2"
                assert response.headers["content-type"] == "application/problem+json"
            assert (await service.http.get("/healthz")).status_code == 200
            if backend != "null":
                assert await service.job(job["id"]) == job, "a write that failed cost it nothing"
            server.start()
            assert (await service.http.get("/readyz")).status_code == 200
            assert await service.job(job["id"]) == job
            reported = await service.post(f"{job['id']}/progress", percent=5)
            assert await service.job(job["id"]) == reported


async def test_past_its_freshness_an_answer_is_marked_stale(start: Start) -> None:
    with PostgresServer() as server:
        async with start(JOBCACHE_BACKEND="memory", DATABASE_URL=server.url()) as service:
            job = await service.rendering()
            now = service.parts.cache._clock_ms
            service.parts.cache._clock_ms = lambda: now() + 45_000
            server.stop()
            answer = await service.http.get(f"/api/v2/jobs/{job['id']}")
            assert answer.json() == job
            assert answer.headers["age"] == "45"
            status = answer.headers["cache-status"]
            assert status.startswith("jobcache; fwd=stale; fwd-status=503; ttl=-1")
            stats = await service.stats()
            assert stats["statistics"]["stale_served"] == 1
