"""What users of the public API write. `mypy --strict` checks it; nothing runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import timedelta
from typing import Any, assert_type

from jobcache import (
    CacheOutcome,
    Document,
    Entry,
    JobCache,
    Lifetimes,
    ReadResult,
    Write,
    client,
    sync,
    with_session,
)
from jobcache.models import CacheInfo, CacheSize, ReadResults, WaiterCount
from jobcache.observability.statistics import Counters
from jobcache.protocol.capabilities import Health
from jobcache.protocol.change_feed import FeedStatus


class Session:
    """A session of the user's database."""

    async def get(self, job_id: int) -> bytes | None:
        """Return a row."""


def sessions() -> AbstractAsyncContextManager[Session]:
    """Open a session."""
    raise NotImplementedError


async def load() -> Document | None:
    """Load one document."""
    return Document(1, "acme", b"{}", status="moving", poll_after=2)


async def load_many(keys: Sequence[str]) -> Mapping[str, Document]:
    """Load several documents."""
    return {key: Document(1, "acme", b"{}") for key in keys}


async def load_in(session: Session, job_id: int, *, scale: float) -> Document | None:
    """Load one document in a session."""
    body = await session.get(job_id)
    return None if body is None else Document(int(scale), "acme", body)


async def values(cache: JobCache) -> None:
    """Read values without a version."""

    async def load_names() -> list[str]:
        return []

    assert_type(await cache.get_or_load("k", load_names, ttl=1), list[str])
    assert_type(await cache.get_or_load("k", load_names, ttl=timedelta(1)), list[str])

    @cache.cached("names:{team_id}", ttl=60, tags=["team:{team_id}"])
    async def names(team_id: int, *, short: bool = False) -> list[str]:
        return await load_names()

    assert_type(await names(7, short=True), list[str])
    assert_type(await names.bypass(team_id=7), list[str])
    assert_type(await names.invalidate(7), bool)
    assert_type(names.key(7), str)
    names("7")  # type: ignore[arg-type,unused-coroutine]
    names.key()  # type: ignore[call-arg]
    await names.invalidate(7, long=True)  # type: ignore[call-arg]

    class Teams:
        @cache.cached("size:{team_id}", ttl=60)
        async def size(self, team_id: int) -> int:
            return team_id

    teams = Teams()
    assert_type(await teams.size(7), int)
    assert_type(teams.size.key(team_id=7), str)
    teams.size.key()  # type: ignore[call-arg]
    assert_type(await cache.invalidate_tags("team:7"), int)


async def asynchronous(transaction: AbstractAsyncContextManager[Session]) -> None:
    """Use every method of the asynchronous cache."""
    async with JobCache.from_url(
        "redis://host", prefix="video:", lifetimes=Lifetimes(default=7), load_timeout=None
    ) as cache:
        assert_type(cache, JobCache)
        result = await cache.read("k", load, min_version=3)
        assert_type(result, ReadResult)
        assert_type(result.body, bytes)
        assert_type(result.json(), Any)
        assert_type(result.missing, bool)
        assert_type(result.version, int)
        assert_type(result.outcome, CacheOutcome)
        assert_type(result.entry, Entry)
        assert_type(result.entry.encoded_body, bytes)
        assert_type(await cache.read_many(["a", "b"], load_many), ReadResults)
        assert_type(cache.peek("k", load), ReadResult | None)
        assert_type(await cache.wait_for_newer("k", load, 3, 30.0), ReadResult | None)
        async with cache.write(transaction, "k") as write:
            assert_type(write, Write[Session])
            assert_type(write.transaction, Session)
            await write.fence("other")
            write.publish("k", Document(2, "acme", b""))
            write.outdate("other", 2)
        async with cache.write("k", "other") as unwrapped:
            assert_type(unwrapped, Write[None])
        assert_type(await cache.invalidate("a", "b"), int)
        assert_type(await cache.invalidate_all(), int)
        info = cache.info()
        assert_type(info, CacheInfo)
        assert_type(info.health, Health)
        assert_type(info.size, CacheSize | None)
        assert_type(info.feed, FeedStatus | None)
        assert_type(info.waiting, WaiterCount)
        assert_type(info.counters, Counters)
        assert_type(info.counters.hit_rate, float)
        bound = with_session(sessions, load_in)
        assert_type(await bound(7, scale=2.0), Document | None)


def synchronous(transaction: AbstractContextManager[Session]) -> None:
    """Use the synchronous cache."""

    def load_now() -> Document | None:
        return None

    with sync.JobCache.from_url("memory://", max_entries=7) as cache:
        assert_type(cache, sync.JobCache)
        assert_type(cache.read("k", load_now), ReadResult)
        assert_type(cache.read_many(["a"], lambda _: {}), ReadResults)
        assert_type(cache.wait_for_newer("k", load_now, 3, 30.0), ReadResult | None)
        assert_type(cache.get_or_load("k", lambda: 7, ttl=1), int)

        @cache.cached("names:{team_id}", ttl=60)
        def names(team_id: int) -> list[str]:
            return []

        assert_type(names(7), list[str])
        assert_type(names.invalidate(team_id=7), bool)
        names("7")  # type: ignore[arg-type]
        with cache.write(transaction) as write:
            assert_type(write, sync.Write[Session])
            assert_type(write.transaction, Session)
        with cache.write("k") as unwrapped:
            assert_type(unwrapped, sync.Write[None])
        assert_type(cache.invalidate("k"), int)
        assert_type(cache.info(), CacheInfo)


async def waits(poller: client.AsyncPoller, jobs: client.AsyncJobs) -> None:
    """Wait for URLs and jobs."""
    with client.ProgressBars() as bars:
        assert_type(await poller.wait_for("https://a.example", on_progress=bars), client.Snapshot)
        assert_type(await poller.wait_all(["https://a.example"]), list[client.Snapshot])
        assert_type(await poller.wait_any(["https://a.example"], timeout=9), client.Snapshot)
        async for each in poller.as_completed(["https://a.example"], until=lambda seen: seen.etag):
            assert_type(each, client.Completed[client.Snapshot])
        assert_type(
            await jobs.wait_all([7], on_progress=bars, until={"approved"}), list[client.Job]
        )
        async for ended in jobs.as_completed([7]):
            assert_type(ended.result(), client.Job)
        async for listed in jobs.list_jobs(status="rendering"):
            assert_type(listed, client.Job)


def threaded_waits(poller: client.Poller, jobs: client.Jobs) -> None:
    """Wait for URLs and jobs without an event loop."""
    assert_type(poller.wait_for("https://a.example"), client.Snapshot)
    for each in poller.as_completed(["https://a.example"]):
        assert_type(each.result(), client.Snapshot)
    assert_type(jobs.wait_any([7]), client.Job)
    assert_type(list(jobs.list_jobs()), list[client.Job])


async def wrong(cache: JobCache, threaded: sync.JobCache) -> None:
    """Every line is an error. An ignore that is not needed is one, too."""
    await cache.read(7, load)  # type: ignore[arg-type]
    await cache.read("k", load_many)  # type: ignore[arg-type]
    await cache.read("k", lambda: Document(1, "acme", b""))  # type: ignore[arg-type, return-value]
    cache.write("k", transaction=7)  # type: ignore[call-overload]
    await cache.read("k", load, 3)  # type: ignore[call-arg]
    threaded.read("k", load)  # type: ignore[arg-type]
    JobCache.from_url("memory://", no_such_option=1)  # type: ignore[call-arg]
    sync.JobCache.from_url("memory://", max_entries="7")  # type: ignore[arg-type]
    cache.info().backend = "redis"  # type: ignore[misc]
    await with_session(sessions, load_in)("7", scale=2.0)  # type: ignore[arg-type]
    (await cache.read("k", load)).entry.body  # type: ignore[attr-defined]  # noqa: B018
