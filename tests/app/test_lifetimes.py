"""How long answers live in the cache is what the settings say, on every backend."""

from __future__ import annotations

import asyncio

import pytest
import redis

from app.jobs.cache_keys import jobs_key, progress_key, storyboard_key
from jobcache import SettingsError
from jobcache.protocol.entry import Entry
from tests.app.running import Service, Start

LIFETIMES = {
    "JOBCACHE_TTL": "70",
    "JOBCACHE_TTL_TERMINAL": "7000",
    "JOBCACHE_TTL_UNKNOWN": "700",
    "JOBCACHE_GRACE": "20000",
}
JITTER = 0.1


async def stored(service: Service, key: str) -> Entry | None:
    async with asyncio.timeout(10):
        while True:  # a writer's entry may be stored just after its answer has been sent
            entry = await service.services.cache.backend.get(key)
            if entry is not None or service.settings.cache.backend == "null":
                return entry
            await asyncio.sleep(0.01)


def check(entry: Entry | None, seconds: float, grace: float) -> None:
    if entry is None:  # nothing is kept by null
        return
    assert seconds * 1000 * (1 - JITTER) - 1 <= entry.fresh_ms <= seconds * 1000
    assert entry.keep_ms == entry.fresh_ms + grace * 1000


async def test_every_lifetime_takes_effect(
    start: Start, backend_environment: dict[str, str]
) -> None:
    async with start(**backend_environment, **LIFETIMES) as service:
        job = await service.rendering()
        for path, status in (
            (f"/{job['id']}", 200),
            (f"/{job['id']}/storyboard", 200),
            ("?client_id=acme", 200),
            ("/999", 404),
        ):
            assert (await service.http.get(f"/api/v2/jobs{path}")).status_code == status
        check(await stored(service, progress_key(job["id"])), 70, 20000)
        check(await stored(service, jobs_key("acme")), 70, 20000)
        check(await stored(service, storyboard_key(job["id"])), 7000, 20000)
        check(await stored(service, progress_key(999)), 700, 0)
        url = backend_environment.get("REDIS_URL")
        if url is not None:
            with redis.Redis.from_url(url) as raw:
                left = raw.pttl(progress_key(job["id"]))
            assert 20_000_000 < left <= 20_070_000
        assert (await service.stats())["statistics"]["ttl_seconds"] == 70
        await service.post(f"{job['id']}/cancel")
        await service.job(job["id"])
        check(await stored(service, progress_key(job["id"])), 7000, 20000)


async def test_a_lifetime_of_zero_has_every_poll_ask_the_database(
    start: Start, backend_environment: dict[str, str]
) -> None:
    zero = dict.fromkeys(LIFETIMES, "0")
    async with start(**backend_environment, **zero) as service:
        job = await service.rendering()
        for percent in (10, 20):
            await service.post(f"{job['id']}/progress", percent=percent)
            for path in (f"{job['id']}", "999", f"{job['id']}/storyboard"):
                response = await service.http.get(f"/api/v2/jobs/{path}")
                assert "; hit" not in response.headers.get("cache-status", "")
            assert (await service.job(job["id"]))["progress"]["percent"] == percent
        for key in (progress_key(job["id"]), progress_key(999), storyboard_key(job["id"])):
            assert await service.services.cache.backend.get(key) is None
        statistics = (await service.stats())["statistics"]
        assert (statistics["ttl_seconds"], statistics["hits"]) == (0, 0)


async def test_without_grace_nothing_is_kept_past_its_lifetime(
    start: Start, backend_environment: dict[str, str]
) -> None:
    async with start(**backend_environment, JOBCACHE_TTL="2.5", JOBCACHE_GRACE="0") as service:
        job = await service.rendering()
        await service.job(job["id"])
        check(await stored(service, progress_key(job["id"])), 2.5, 0)
        assert (await service.stats())["statistics"]["ttl_seconds"] == 2.5


async def test_unless_set_they_are_what_the_first_version_promised(start: Start) -> None:
    async with start() as service:
        lifetimes = service.services.cache.lifetimes
        assert (lifetimes.default, lifetimes.gone, lifetimes.grace) == (30, 5, 300)
        assert set(lifetimes.by_status.values()) == {3600}
        assert set(lifetimes.by_status) == {"completed", "failed", "cancelled", "storyboard"}


@pytest.mark.parametrize("variable", LIFETIMES)
@pytest.mark.parametrize("value", ["-1", "nan", "inf", "1e9", "soon", "1m"])
async def test_an_absurd_lifetime_is_refused(start: Start, variable: str, value: str) -> None:
    with pytest.raises(SettingsError) as failure:
        async with start(**{variable: value}):
            pass
    assert str(failure.value).startswith(f"{variable}={value}: ")
    assert "\n" not in str(failure.value)
