"""`JobCache.from_url`, asynchronous and synchronous, and the life of a cache in a block."""

from __future__ import annotations

import pytest

from jobcache import CacheSettings, Document, JobCache, Lifetimes, SettingsError, sync
from jobcache.backends.memory import MemoryBackend
from jobcache.backends.null import NullBackend
from jobcache.errors import CacheClosed

DOCUMENT = Document(3, "acme", b'{"percent": 40}', "moving")


async def load() -> Document:
    return DOCUMENT


@pytest.mark.parametrize(
    ("url", "backend", "redis_url"),
    [
        ("memory://", "memory", ""),
        ("null://", "null", ""),
        *(
            (url, "redis", url)
            for url in (
                "redis://127.0.0.1:6379/1",
                "rediss://user:secret@host/0",
                "valkey://host",
                "valkeys://host",
                "unix:///run/redis.sock?db=2",
                "redis+sentinel://one,two/main/0",
                "rediss+cluster://one,two",
            )
        ),
        ("tiered://", "tiered", "redis://127.0.0.1:6379/0"),
        ("tiered+redis://host:1/2", "tiered", "redis://host:1/2"),
        ("tiered+valkeys+cluster://one", "tiered", "valkeys+cluster://one"),
    ],
)
def test_the_scheme_selects_the_backend(url: str, backend: str, redis_url: str) -> None:
    settings = CacheSettings.from_url(url, prefix="p:", max_entries=7)
    assert (settings.backend, settings.prefix, settings.max_entries) == (backend, "p:", 7)
    if redis_url:
        assert settings.redis_url == redis_url


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "begins with one of"),
        ("memory", "begins with one of"),
        ("mysql://user:secret@host", "memory://"),
        ("memory://host", "nothing after memory://"),
        ("redis://user:secret@host/x", "a URL that begins with redis://"),
        ("tiered+memory://", "a URL that begins with redis://"),
    ],
)
def test_a_wrong_url_is_refused_without_its_password(url: str, said: str) -> None:
    with pytest.raises(SettingsError) as raised:
        JobCache.from_url(url)
    assert str(raised.value).startswith("url=")
    assert said in str(raised.value)
    assert "secret" not in str(raised.value)


async def test_options_of_the_store_and_of_the_cache_are_told_apart() -> None:
    lifetimes = Lifetimes(default=7, jitter=0)
    cache = JobCache.from_url("memory://", max_entries=1, lifetimes=lifetimes)
    assert isinstance(cache.backend, MemoryBackend)
    for key in ("a", "b"):
        assert (await cache.read(key, load)).entry.fresh_ms == 7000
    size = cache.info().size
    assert size is not None
    assert size.entries == 1
    await cache.aclose()
    with pytest.raises(TypeError, match="no_such_option"):
        JobCache.from_url("memory://", no_such_option=1)  # type: ignore[call-arg]


async def test_a_block_starts_the_cache_and_closes_it() -> None:
    async with JobCache.from_url("memory://") as cache:
        result = await cache.read("job:7", load)
        assert (result.version, result.json()) == (3, {"percent": 40})
    with pytest.raises(CacheClosed):
        await cache.read("job:7", load)


async def test_a_block_that_cannot_start_closes_the_cache() -> None:
    class Refusing(NullBackend):
        closed = False

        async def start(self) -> None:
            raise ConnectionRefusedError

        async def aclose(self) -> None:
            self.closed = True

    backend = Refusing()
    with pytest.raises(ConnectionRefusedError):
        async with JobCache(backend):
            raise AssertionError
    assert backend.closed


def test_threads_have_the_same() -> None:
    with sync.JobCache.from_url("memory://", lifetimes=Lifetimes(default=7, jitter=0)) as cache:
        result = cache.read("job:7", lambda: DOCUMENT)
        assert (result.version, result.json()) == (3, {"percent": 40})
        assert result.entry.fresh_ms == 7000
        info = cache.info()
        assert (info.backend, info.counters.misses, info.health.available) == ("memory", 1, True)
    with pytest.raises(CacheClosed):
        cache.read("job:7", lambda: DOCUMENT)
    with pytest.raises(SettingsError, match="nothing after null://"):
        sync.JobCache.from_url("null://host")
