"""URLs of Redis that cannot be meant are refused, and those of Valkey mean the same."""

from __future__ import annotations

import pytest

from jobcache import CacheOutcome, CacheSettings, JobCache, SettingsError
from jobcache.backends.redis.url import read_url
from jobcache.backends.registry import make_backend

BACKENDS = ["redis", "tiered"]


def chosen(backend: str, url: str) -> CacheSettings:
    return CacheSettings.from_environment({"JOBCACHE_BACKEND": backend, "REDIS_URL": url})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "url",
    [
        "redis://h/x",
        "redis://h/-1",
        "redis://h/1.5",
        "redis://h/0x1",
        "redis://h/\u0663",
        "redis://h/1/2",
        "redis://h/%31",
        "redis://h/12345678",
        "redis://h/0#1",
        "redis://:pa#ss@h/0",
        "redis://h:0/0",
        "redis://h:-1/0",
        "redis://h:70000/0",
        "redis://h?db=-1",
        "redis://h?db=x",
        "redis://h?db=99999999999",
        "redis://h?socket_timeout=-1",
        "redis://h?socket_timeout=0",
        "redis://h?socket_timeout=nan",
        "redis://h?socket_timeout=inf",
        "redis://h?max_connections=0",
        "redis://h?health_check_interval=-1",
        "rediss://h/x",
        "valkey://h/x",
        "valkeys://h/x",
        "unix:///tmp/x.sock?db=-1",
        "unix:///tmp/x.sock#1",
        "redis+sentinel://h/jobs/x",
        "redis+sentinel://h/jobs/0#1",
        "valkey+sentinel://h/jobs/x",
        "redis+cluster://h/x",
        "redis+cluster://h/1",
        "valkey+cluster://h/1",
    ],
)
def test_a_url_that_cannot_be_meant_is_refused(backend: str, url: str) -> None:
    with pytest.raises(SettingsError) as failure:
        make_backend(CacheSettings(backend=backend, redis_url=url))
    message = str(failure.value)
    assert message.startswith("REDIS_URL=")
    assert "pa#ss" not in message
    assert "\n" not in message


@pytest.mark.parametrize("backend", ["null", "memory", *BACKENDS])
@pytest.mark.parametrize("url", ["redis://h/x", "valkey://h/1/2", "redis://h/0#1"])
def test_its_form_is_checked_when_the_environment_is_read(backend: str, url: str) -> None:
    with pytest.raises(SettingsError, match=r"REDIS_URL=.*a database is a number"):
        chosen(backend, url)


@pytest.mark.parametrize(
    ("valkey", "redis"),
    [
        ("valkey://u:p%23@h:1/2?protocol=2", "redis://u:p%23@h:1/2?protocol=2"),
        ("valkeys://h", "rediss://h"),
        ("valkey+sentinel://h,i/jobs/3", "redis+sentinel://h,i/jobs/3"),
        ("valkeys+sentinel://h/jobs", "rediss+sentinel://h/jobs"),
        ("valkey+cluster://h,i", "redis+cluster://h,i"),
        ("valkeys+cluster://h/0", "rediss+cluster://h/0"),
    ],
)
def test_a_url_of_valkey_means_the_same(valkey: str, redis: str) -> None:
    assert read_url(valkey) == read_url(redis)
    for backend in BACKENDS:
        assert chosen(backend, valkey).redis_url == valkey


@pytest.mark.parametrize("url", ["redis://h", "redis://h/", "redis://h/0/", "redis://h:6379/15"])
def test_a_database_that_is_a_number_or_none_is_accepted(url: str) -> None:
    assert read_url(url).options["host"] == "h"


@pytest.mark.parametrize("backend", BACKENDS)
async def test_valkey_is_spoken_to(backend: str, redis_url: str) -> None:
    url = redis_url.replace("redis://", "valkey://", 1)
    assert url != redis_url
    cache = JobCache(make_backend(chosen(backend, url)))
    await cache.start()

    async def load() -> None:
        return None

    try:
        await cache.read("test_valkey_is_spoken_to", load)
        answer = await cache.read("test_valkey_is_spoken_to", load)
        assert answer.outcome is CacheOutcome.HIT
    finally:
        await cache.invalidate("test_valkey_is_spoken_to")
        await cache.aclose()
