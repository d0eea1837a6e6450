"""The lines at DEBUG: one for each hit, miss, load, fence and publish, and none otherwise."""

from __future__ import annotations

import logging

import pytest

from jobcache import Document, JobCache, SourceUnavailable
from jobcache._engine.reading import Reads
from jobcache._engine.values import Values

STORES = ("null", "memory", "redis", "tiered")


async def load() -> Document:
    return Document(version=1, owner="acme", body=b"40 %")


async def fail() -> Document:
    raise SourceUnavailable("gone")


def url(backend: str, redis_url: str) -> str:
    store = {"null": "null://", "memory": "memory://", "redis": redis_url}
    return store.get(backend, f"tiered+{redis_url}")


@pytest.mark.parametrize("backend", STORES)
async def test_each_step_is_one_line(
    backend: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "jobcache")
    async with JobCache.from_url(
        url(backend, redis_url), prefix=f"{backend}:", source_id="d"
    ) as cache:
        caplog.clear()
        await cache.read("job:7", load)
        miss = "bypass" if backend == "null" else "miss"
        seen = [record for record in caplog.records if "7" in record.getMessage()]
        loaded, published, missed = [record.getMessage() for record in seen]
        assert loaded.startswith("load of 'job:7' returned after ")
        assert published.startswith("publish version 1 of 'job:7': ")
        remote = backend if backend != "tiered" else "redis"
        assert missed in {f"{it} 'job:7' on {remote}, version 1" for it in ("miss", miss)}
        assert vars(seen[2])["key"] == "job:7"
        assert vars(seen[2])["tier"] == remote

        caplog.clear()
        async with cache.write("job:7") as write:
            write.publish("job:7", Document(version=2, owner="acme", body=b"done"))
        fenced, published = [it for it in caplog.messages if "7" in it]
        assert fenced == "fence 'job:7'"
        assert published.startswith("publish version 2 of 'job:7': ")
        assert ("stored" in published) is (backend != "null")

        if backend != "null":
            caplog.clear()
            await cache.read("job:7", load)
            (hit,) = [it for it in caplog.messages if "7" in it]
            assert hit.startswith("hit 'job:7' on ")
            assert hit.endswith(", version 2")


async def test_values_and_failures_are_lines_as_well(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "jobcache")
    async with JobCache.from_url("memory://") as cache:

        @cache.cached("report:{report_id}", ttl=60)
        async def report(report_id: int) -> int:
            return report_id

        assert [await report(3), await report(3)] == [3, 3]
        lines = [it for it in caplog.messages if "report:3" in it]
        assert [line.partition(" ")[0] for line in lines] == ["load", "publish", "miss", "hit"]
        with pytest.raises(SourceUnavailable):
            await cache.read("a\nb", fail)
        (failed,) = [it for it in caplog.messages if it.startswith("load of 'a")]
        assert failed.startswith("load of 'a\\nb' failed after ")
        assert all(line.isprintable() for line in caplog.messages)


async def test_without_the_level_nothing_is_added_to_a_hit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "jobcache")
    async with JobCache.from_url("memory://") as cache:
        assert type(cache.reads) is Reads
        assert type(cache.values) is Values
        for _ in range(2):
            await cache.read("job:7", load)
    assert caplog.messages == []
