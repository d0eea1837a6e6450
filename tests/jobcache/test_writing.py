"""`JobCache.write`: the cache after a commit, a rollback, and an unknown outcome."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator

import pytest

from jobcache import CacheOutcome
from jobcache.errors import InvalidDocument, InvalidKey, WriteMisuse
from jobcache.protocol.backend import LeaseResult, PublishResult
from jobcache.protocol.entry import Entry
from tests.jobcache.bench import Bench, Transaction, document
from tests.subjects import KEEPING, MemorySubject, make_subject
from tests.test_documents import blocks


@pytest.fixture
async def bench(request: pytest.FixtureRequest, redis_urls: dict[str, str]) -> AsyncIterator[Bench]:
    async for subject in make_subject(request.param, redis_urls):
        yield Bench(subject)


on_keeping = pytest.mark.parametrize("bench", KEEPING, indirect=True)


@on_keeping
async def test_behind_the_fence_readers_ask_the_source(bench: Bench) -> None:
    await bench.write("k")
    async with bench.cache.write(Transaction(bench.source, "k"), "k") as write:
        assert await bench.read("k") == (1, CacheOutcome.BYPASS)
        write.publish("k", document(2))
    assert await bench.read("k") == (2, CacheOutcome.HIT)


@on_keeping
async def test_a_read_during_a_short_write_waits_for_it_and_costs_no_load(bench: Bench) -> None:
    await bench.write("k")
    async with bench.cache.write(Transaction(bench.source, "k"), "k") as write:
        reading = asyncio.create_task(bench.read("k"))
        many = asyncio.create_task(bench.cache.read_many(["k"], bench.source.load_many))
        await asyncio.sleep(0.005)
        write.publish("k", document(2))
    assert await reading == (2, CacheOutcome.HIT)
    assert (await many)["k"].entry.version == 2
    assert bench.source.loads == 0


@on_keeping
async def test_a_block_that_raises_leaves_nothing_behind(bench: Bench) -> None:
    await bench.write("k")
    with pytest.raises(LookupError):
        async with bench.cache.write(Transaction(bench.source, "k"), "k"):
            raise LookupError
    assert bench.source.versions["k"] == 1
    assert await bench.read("k") == (1, CacheOutcome.MISS), (
        "the fence is withdrawn, the cell is empty"
    )
    assert await bench.read("k") == (1, CacheOutcome.HIT)


@on_keeping
@pytest.mark.parametrize("fails", ["before", "after"])
async def test_after_a_commit_with_an_unknown_outcome_the_fence_stays(
    bench: Bench, fails: str
) -> None:
    await bench.write("k")
    with pytest.raises(ConnectionError):
        await bench.write("k", fails=fails)
    now = bench.source.versions["k"]
    for _ in range(3):
        assert await bench.read("k") == (now, CacheOutcome.BYPASS)
    await bench.elapse(31)
    assert await bench.read("k") == (now, CacheOutcome.MISS)
    assert await bench.read("k") == (now, CacheOutcome.HIT)


@on_keeping
async def test_two_writers_at_once_leave_the_newer_version(bench: Bench) -> None:
    await bench.write("k")
    both_in = asyncio.Barrier(2)

    async def update(version: int) -> None:
        transaction = Transaction(bench.source, "k")
        transaction.version = version
        async with bench.cache.write(transaction, "k") as write:
            await both_in.wait()
            write.publish("k", document(version))

    await asyncio.gather(update(2), update(3))
    bench.source.versions["k"] = 3
    assert (await bench.read("k"))[0] == 3


@on_keeping
async def test_a_key_can_be_fenced_in_the_middle_of_the_transaction(bench: Bench) -> None:
    assert await bench.read("new") == (0, CacheOutcome.MISS)
    async with bench.cache.write(Transaction(bench.source, "new")) as write:
        await write.fence("new")
        write.publish("new", document(1))
    assert await bench.read("new") == (1, CacheOutcome.HIT)


@on_keeping
async def test_an_expired_entry_is_loaded_again(bench: Bench) -> None:
    await bench.write("list")
    async with bench.cache.write(Transaction(bench.source, "list"), "list") as write:
        write.outdate("list", 2)
    assert await bench.read("list") == (2, CacheOutcome.MISS)


@on_keeping
async def test_a_list_outdated_by_one_writer_is_not_brought_back_by_another(bench: Bench) -> None:
    """W0 commits v2, W1 commits v3 and only says so; W0's late publish of v2 must not be served."""
    backend = bench.subject.backend
    await backend.fence("list", "w0")
    bench.source.versions["list"] = 2
    async with bench.cache.write(Transaction(bench.source, "list"), "list") as write:
        write.outdate("list", 3)
    entry = bench.cache.lifetimes.entry(document(2), bench.now_ms)
    assert await backend.publish("list", "w0", entry) is PublishResult.REMOVED
    assert await bench.read("list") == (3, CacheOutcome.MISS)


@on_keeping
async def test_a_deleted_document_is_not_brought_back_by_another_writer(bench: Bench) -> None:
    """W0 commits v2; W1 deletes the row, which has v2; W0's late publish must not be served."""
    backend = bench.subject.backend
    await bench.write("k")
    await backend.fence("k", "w0")
    bench.source.versions["k"] = 2
    async with bench.cache.write("k") as write:
        del bench.source.versions["k"]
        write.delete("k")
    assert await bench.read("k") == (0, CacheOutcome.BYPASS)
    entry = bench.cache.lifetimes.entry(document(2), bench.now_ms)
    assert await backend.publish("k", "w0", entry) is PublishResult.REMOVED
    assert await bench.read("k") == (0, CacheOutcome.MISS)
    assert await bench.read("k") == (0, CacheOutcome.HIT), "as long as `Lifetimes.gone`"


@on_keeping
async def test_a_row_that_is_inserted_after_a_delete_is_published(bench: Bench) -> None:
    await bench.write("k")
    async with bench.cache.write("k") as write:
        del bench.source.versions["k"]
        write.delete("k")
    assert await bench.read("k") == (0, CacheOutcome.MISS)
    await bench.write("k")
    assert await bench.read("k") == (1, CacheOutcome.HIT)


async def test_publishing_none_names_the_delete() -> None:
    bench = Bench(MemorySubject())
    with pytest.raises(InvalidDocument, match="`delete`"):
        async with bench.cache.write(Transaction(bench.source, "k"), "k") as write:
            write.publish("k", None)  # type: ignore[arg-type]
    with pytest.raises(WriteMisuse, match="never fenced"):
        async with bench.cache.write(Transaction(bench.source, "k")) as write:
            write.delete("k")


@on_keeping
async def test_a_fenced_key_must_be_published_or_nothing_commits(bench: Bench) -> None:
    with pytest.raises(WriteMisuse, match="never published: k"):
        async with bench.cache.write(Transaction(bench.source, "k"), "k"):
            pass
    assert "k" not in bench.source.versions
    assert await bench.subject.backend.lease("k", "r") is LeaseResult.ACQUIRED


@on_keeping
async def test_a_key_that_was_not_fenced_cannot_be_published(bench: Bench) -> None:
    with pytest.raises(WriteMisuse, match="other is published but was never fenced"):
        async with bench.cache.write(Transaction(bench.source, "k"), "k") as write:
            write.publish("other", document(1))
    with pytest.raises(WriteMisuse, match="version 0"):
        async with bench.cache.write(Transaction(bench.source, "k"), "k") as write:
            write.publish("k", document(0))
    assert bench.source.versions == {}


class SlowPublish(MemorySubject):
    """A memory backend whose publishes wait for the test."""

    def __init__(self) -> None:
        super().__init__()
        self.offering, self.gate = asyncio.Event(), asyncio.Event()
        publish = self.backend.publish

        async def slow(key: str, token: str, entry: Entry | None) -> PublishResult:
            self.offering.set()
            await self.gate.wait()
            return await publish(key, token, entry)

        self.backend.publish = slow  # type: ignore[method-assign]


async def test_a_writer_cancelled_between_commit_and_publish_still_publishes() -> None:
    subject = SlowPublish()
    bench = Bench(subject)
    writer = asyncio.create_task(bench.write("k"))
    await subject.offering.wait()
    writer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writer
    subject.gate.set()
    await bench.cache._publisher.join()
    assert await bench.read("k") == (1, CacheOutcome.HIT)


async def test_a_writer_cancelled_in_its_block_withdraws() -> None:
    bench = Bench(MemorySubject())
    inside = asyncio.Event()

    async def update() -> None:
        async with bench.cache.write(Transaction(bench.source, "k"), "k"):
            inside.set()
            await asyncio.Event().wait()

    writer = asyncio.create_task(update())
    await inside.wait()
    writer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writer
    assert await bench.subject.backend.lease("k", "r") is LeaseResult.ACQUIRED


# --- without a transaction ---


@on_keeping
async def test_a_block_that_commits_itself_is_fenced_before_and_published_after(
    bench: Bench,
) -> None:
    await bench.write("k")
    async with bench.cache.write("k") as write:
        assert write.transaction is None
        assert await bench.read("k") == (1, CacheOutcome.BYPASS)
        bench.source.versions["k"] = 2
        assert await bench.read("k") == (2, CacheOutcome.BYPASS)
        write.publish("k", document(2))
    assert await bench.read("k") == (2, CacheOutcome.HIT)
    async with bench.cache.write() as write:
        await write.fence("k", "list")
        bench.source.versions["k"] = 3
        write.publish("k", document(3))
        write.outdate("list", 3)
    assert await bench.read("k") == (3, CacheOutcome.HIT)
    loads = bench.source.loads
    await bench.read("list")
    assert bench.source.loads == loads + 1


@on_keeping
@pytest.mark.parametrize("ends", ["raises", "is cancelled", "publishes nothing"])
async def test_a_block_that_commits_itself_and_fails_leaves_its_fence(
    bench: Bench, ends: str
) -> None:
    """Nobody knows whether it has committed, or is about to."""
    await bench.write("k")
    error = {"raises": TimeoutError, "is cancelled": asyncio.CancelledError}.get(ends, WriteMisuse)

    async def change() -> None:
        async with bench.cache.write("k"):
            if error is not WriteMisuse:
                raise error

    with pytest.raises(error):
        await change()
    assert await bench.read("k") == (1, CacheOutcome.BYPASS)
    bench.source.versions["k"] = 2  # the database carries out the statement that it has received
    assert await bench.read("k") == (2, CacheOutcome.BYPASS)
    await bench.elapse(31)
    assert await bench.read("k") == (2, CacheOutcome.MISS)


@on_keeping
async def test_a_block_that_did_not_begin_leaves_no_fence(bench: Bench) -> None:
    await bench.write("k")
    with pytest.raises(InvalidKey):
        async with bench.cache.write("k", "k" * 5000):
            raise AssertionError
    assert await bench.read("k") == (1, CacheOutcome.MISS)
    assert await bench.read("k") == (1, CacheOutcome.HIT)


async def test_the_example_without_a_transaction_in_the_documentation() -> None:
    example = blocks("docs/embedding.md", "python")[4]
    database = sqlite3.connect(":memory:", isolation_level=None)
    database.execute("CREATE TABLE exports (id INTEGER PRIMARY KEY, percent, version)")
    database.execute("INSERT INTO exports VALUES (7, 0, 1)")
    async for subject in make_subject("memory", {}):
        cache = Bench(subject).cache
        names = {"cache": cache, "database": database, "document": lambda row: document(row[2])}
        exec(example, names)  # noqa: S102 - our own
        await names["report"](50)  # type: ignore[operator]

        async def load() -> None:
            raise AssertionError

        assert (await cache.read("export:7", load)).version == 2
    assert database.execute("SELECT percent, version FROM exports").fetchone() == (50, 2)
    database.close()
