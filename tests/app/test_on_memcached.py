"""The service on memcached: processes share entries, and an outage costs no answer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from app.devservers import MemcachedServer
from tests.app.process import serving
from tests.app.running import Service, Start, starting


async def hit(service: Service, job_id: int) -> None:
    """Poll until the cache answers."""
    async with asyncio.timeout(60):
        while True:
            response = await service.http.get(f"/api/v2/jobs/{job_id}")
            assert response.status_code == 200
            if "; hit;" in response.headers["cache-status"]:
                return
            await asyncio.sleep(0.01)


async def test_two_processes_share_entries_and_neither_shows_an_older_one(
    start: Start, tmp_path: Path, memcached_server: MemcachedServer, database_url: str
) -> None:
    chosen = {
        "JOBCACHE_BACKEND": "memcached",
        "MEMCACHED_URL": memcached_server.url,
        "DATABASE_URL": database_url,
    }
    other = starting(tmp_path / "other")
    async with start(**chosen) as one, other(**chosen) as two:
        job = await one.rendering()
        for percent in range(1, 6):
            writer, reader = (one, two) if percent % 2 else (two, one)
            reported = await writer.post(f"{job['id']}/progress", percent=percent)
            response = await reader.http.get(f"/api/v2/jobs/{job['id']}")
            assert response.json() == reported
            await hit(reader, job["id"])
            assert await reader.job(job["id"]) == reported
        await hit(one, job["id"])
        stats = await one.stats()
        assert stats["statistics"]["backend"] == "memcached"
        assert stats["statistics"]["redis_enabled"] is False
        assert stats["message"] == "Cache is working normally"


@pytest.mark.usual_limits  # of half a minute, each write would wait for all of it
async def test_killed_or_hanging_it_costs_no_answer_and_leaves_nothing_old(start: Start) -> None:
    with MemcachedServer() as server:
        async with start(JOBCACHE_BACKEND="memcached", MEMCACHED_URL=server.url) as service:
            job = await service.rendering()
            await hit(service, job["id"])
            for percent, (leave, come_back) in enumerate(
                [(server.kill, server.start), (server.pause, server.resume)], start=1
            ):
                leave()
                for part in range(5):
                    reported = await service.post(
                        f"{job['id']}/progress", percent=10 * percent + part
                    )
                    assert await service.job(job["id"]) == reported
                come_back()
                for _ in range(20):
                    assert await service.job(job["id"]) == reported
                await hit(service, job["id"])
                assert await service.job(job["id"]) == reported


def test_dev_starts_memcached_and_ends_it(tmp_path: Path) -> None:
    arguments = ("dev", "--backend", "memcached")
    with serving(tmp_path, *arguments, JOBCACHE_RENDERER="simulated") as service:
        log = service.log.read_text()
        assert "started memcached at memcached://127.0.0.1:" in log
        assert "backend memcached (memcached://127.0.0.1:" in log
        assert service.http.get("/api/v2/jobs/1").status_code == 404
        stats = service.http.get("/api/v2/cache/stats").json()
        assert stats["statistics"]["backend"] == "memcached"
        family = psutil.Process(service.child.pid).children(recursive=True)
        assert "memcached" in {each.name() for each in family}
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
