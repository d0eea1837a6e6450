"""Sessions that insert, update and delete: what readers find after the commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal

import pytest
from sqlalchemy import event, select
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm.exc import StaleDataError

from jobcache import CacheOutcome, Document, JobCache
from jobcache._engine.writing import WriteSteps
from jobcache.orm.sqlalchemy import Binding, CoherentSession
from tests.cancelling import CancelledAt
from tests.jobcache.orm.exports import PARTS, Export, Note, Part
from tests.jobcache.orm.reading import bypass, hit, miss, poll, stored

Sessions = async_sessionmaker[AsyncSession]


async def insert(sessions: Sessions, export_id: int = 1) -> None:
    async with sessions.begin() as session:
        session.add(Export(id=export_id))


async def update(sessions: Sessions, percent: int, export_id: int = 1) -> None:
    async with sessions.begin() as session:
        (await session.get_one(Export, export_id)).percent = percent


async def test_the_poll_after_a_commit_is_a_hit(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    assert await poll(cache, engine) == miss(0)
    assert await poll(cache, engine) == hit(0)
    await insert(sessions)
    assert await poll(cache, engine) == hit(1)
    await update(sessions, 50)
    assert await poll(cache, engine) == hit(2)
    async with sessions() as session:
        export = await session.get_one(Export, 1)
        export.percent = 60
        await session.commit()
        assert await poll(cache, engine) == hit(3)
        export.percent = 70
        await session.flush()
        export.percent = 80
        await session.commit()
    assert await poll(cache, engine) == hit(5)
    async with sessions.begin() as session:
        await session.delete(await session.get_one(Export, 1))
    assert await poll(cache, engine) == miss(0)


async def test_until_the_commit_nothing_is_fenced_or_published(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    await insert(sessions)
    async with sessions() as session:
        (await session.get_one(Export, 1)).percent = 50
        await session.flush()
        assert await poll(cache, engine) == hit(1)
        await session.rollback()
        (await session.get_one(Export, 1)).percent = 60
        await session.flush()
    assert await poll(cache, engine) == hit(1)


async def test_a_commit_that_changes_no_bound_row_does_not_ask_the_cache(
    sessions: Sessions, cache: JobCache
) -> None:
    async with sessions.begin() as session:
        session.add(Note(text="a"))
    async with sessions.begin() as session:
        await session.scalars(select(Note))
    assert cache.statistics.fences == 0


async def test_the_document_is_that_of_the_row_and_not_of_the_object(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    """The database rounds: a document of the object would have another price."""
    async with sessions.begin() as session:
        session.add(Export(id=1, price=Decimal("1.23456")))
    assert await poll(cache, engine) == hit(1)
    document = await stored(engine, 1)
    assert document is not None
    assert document.body == b'{"percent": 0, "price": "1.23"}'


async def test_an_object_without_a_net_change_is_not_published(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    """It was read before another transaction committed version 2, and was not updated since."""
    await insert(sessions)
    async with sessions() as session:
        export = await session.get_one(Export, 1)
        await session.commit()
        await session.refresh(export)
        assert (export.version, export.percent) == (1, 0)
        if engine.dialect.name == "postgresql":
            await update(sessions, 50)
        export.percent = 1
        export.percent = 0
        fences = cache.statistics.fences
        await session.commit()
    assert cache.statistics.fences == fences
    await poll(cache, engine)


async def test_a_relationship_that_changes_the_row_publishes_it(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    """The part is updated, or deleted, because its export was."""
    await insert(sessions)
    async with sessions.begin() as session:
        export = await session.get_one(Export, 1)
        (await session.run_sync(lambda _: export.parts)).append(Part(name="a:b"))
    key = PARTS.key(1, "a:b")
    assert key == "part:1:a%3Ab"
    load = PARTS.loader(async_sessionmaker(engine))
    assert (await cache.read(key, load(1, "a:b"))).outcome is CacheOutcome.HIT
    async with sessions.begin() as session:
        await session.delete(await session.get_one(Export, 1))
    assert (await cache.read(key, load(1, "a:b"))).missing
    assert await poll(cache, engine) == miss(0)


async def test_an_update_of_an_older_version_fails_and_costs_the_cache_nothing(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    await insert(sessions)
    async with sessions() as first:
        export = await first.get_one(Export, 1)
        await first.commit()
        await first.refresh(export)
        first.expunge(export)
    await update(sessions, 50)
    async with sessions() as second:
        second.add(export)
        export.percent = 60
        with pytest.raises(StaleDataError):
            await second.commit()
    assert await poll(cache, engine) == hit(2)


async def test_a_row_that_is_deleted_and_added_again_in_one_transaction(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    await insert(sessions)
    async with sessions.begin() as session:
        await session.delete(await session.get_one(Export, 1))
        session.add(Export(id=1, percent=7))
    assert await poll(cache, engine) == hit(2)
    async with sessions.begin() as session:
        await session.delete(await session.get_one(Export, 1))
        await session.flush()
        session.add(Export(id=1, percent=8))
    await poll(cache, engine)


@dataclass
class Delay:
    """Holds the publish of the next commit."""

    committed: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)


@pytest.fixture
def delay(cache: JobCache, monkeypatch: pytest.MonkeyPatch) -> Delay:
    made, begin = Delay(), cache.writes.begin

    def delayed(_: object) -> WriteSteps:
        monkeypatch.undo()
        steps = begin()
        publish = steps.publish

        async def publish_later() -> None:
            made.committed.set()
            await made.released.wait()
            await publish()

        steps.publish = publish_later
        return steps

    monkeypatch.setattr(type(cache.writes), "begin", delayed)
    return made


async def test_readers_between_fence_and_publish_ask_the_database(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine, delay: Delay
) -> None:
    writing = asyncio.create_task(insert(sessions))
    await delay.committed.wait()
    assert await poll(cache, engine) == bypass(1)
    delay.released.set()
    await writing
    assert await poll(cache, engine) == hit(1)


async def test_a_commit_that_publishes_after_a_later_delete_stores_nothing(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine, delay: Delay
) -> None:
    """The delete has published that every version before it is old."""
    writing = asyncio.create_task(insert(sessions))
    await delay.committed.wait()
    async with sessions.begin() as session:
        await session.delete(await session.get_one(Export, 1))
    delay.released.set()
    await writing
    assert await poll(cache, engine) == miss(0)


async def test_a_process_that_dies_before_it_publishes_leaves_the_fence(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await insert(sessions)

    async def die(_: object) -> None:
        raise SystemError("killed")

    begin = cache.writes.begin

    def dying(_: object) -> WriteSteps:
        steps = begin()
        steps.publish = die.__get__(steps)
        return steps

    monkeypatch.setattr(type(cache.writes), "begin", dying)
    with pytest.raises(SystemError, match="killed"):
        await update(sessions, 50)
    assert await poll(cache, engine) == bypass(2)


async def test_a_commit_that_fails_leaves_the_fence(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows whether it happened."""
    await insert(sessions)
    dialect = engine.sync_engine.dialect
    commit = dialect.do_commit

    def fail(connection: object) -> None:
        commit(connection)
        raise ConnectionError("the answer was lost")

    monkeypatch.setattr(dialect, "do_commit", fail)
    with pytest.raises(ConnectionError):
        await update(sessions, 50)
    monkeypatch.setattr(dialect, "do_commit", commit)
    assert await poll(cache, engine) == bypass(2)


@pytest.mark.parametrize("end", [AsyncSession.close, AsyncSession.reset])
async def test_a_commit_that_fails_leaves_no_transaction_in_the_pool(
    sessions: Sessions,
    cache: JobCache,
    engine: AsyncEngine,
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[[AsyncSession], Coroutine[None, None, None]],
) -> None:
    """A load that is given the same connection must not find what was not committed."""
    await insert(sessions)
    session = sessions()
    (await session.get_one(Export, 1)).percent = 50

    def fail(_: object) -> None:
        raise ConnectionError("database is locked")

    with monkeypatch.context() as patch:
        patch.setattr(engine.sync_engine.dialect, "do_commit", fail)
        with pytest.raises(ConnectionError):
            await session.commit()
    await end(session)
    assert await poll(cache, engine) == bypass(1)


async def test_a_flush_that_failed_needs_no_rollback_before_the_session_is_closed(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    """SQLAlchemy has rolled back. A second rollback would warn of what has changed since."""
    await insert(sessions)
    async with sessions() as session:
        session.add(Export(id=1))
        with pytest.raises(IntegrityError):
            await session.flush()
        session.add(Export(id=2))
    assert await poll(cache, engine) == hit(1)


async def test_wrong_documents_roll_the_transaction_back(
    engine: AsyncEngine, cache: JobCache
) -> None:
    for document, message in (
        (lambda export: Document(export.version + 1, "", b""), "version 2, and the row has 1"),
        (lambda export: b"", "must be a jobcache.Document"),
    ):
        bad = Binding(Export, key="bad:{id}", document=document)
        sessions = async_sessionmaker(
            engine, sync_session_class=CoherentSession, cache=cache, bindings=[bad]
        )
        with pytest.raises(Exception, match=message):
            await insert(sessions)
        assert await stored(engine, 1) is None
    assert cache.statistics.fences == 0


async def test_a_commit_that_is_cancelled_at_any_wait_is_never_stale(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    await insert(sessions)

    async def change() -> None:
        async with sessions() as session:
            (await session.get_one(Export, 1)).percent += 1
            await session.commit()

    async def cancelled(number: int, *, late: bool) -> int:
        await poll(cache, engine)
        changing = CancelledAt(change(), number, late=late)
        await asyncio.gather(_awaited(changing), return_exceptions=True)
        await poll(cache, engine)
        await cache.invalidate_all()  # a fence may have been left
        return changing.waits

    for late in (False, True):
        number = 1
        while await cancelled(number, late=late) >= number:
            number += 1
        assert number > 3
    assert "out connections: 0" in engine.pool.status()


async def _awaited(work: CancelledAt) -> None:
    await work


async def test_a_commit_that_is_cancelled_while_it_fences_withdraws(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was committed, so the next reader may store what it loads."""
    await insert(sessions)
    fence = cache.backend.fence

    async def fence_and_cancel(key: str, token: str) -> None:
        await fence(key, token)
        raise asyncio.CancelledError

    monkeypatch.setattr(cache.backend, "fence", fence_and_cancel)
    with pytest.raises(asyncio.CancelledError):
        await update(sessions, 50)
    monkeypatch.undo()
    assert await poll(cache, engine) == miss(1)
    assert await poll(cache, engine) == hit(1)


@contextmanager
def cancelled_end(engine: AsyncEngine) -> Iterator[None]:
    """Cancel a commit that has happened, while the pool resets its connection."""

    def cancel(*_: object) -> None:
        raise asyncio.CancelledError

    event.listen(engine.sync_engine, "reset", cancel)
    try:
        with pytest.raises(asyncio.CancelledError):
            yield
    finally:
        event.remove(engine.sync_engine, "reset", cancel)


async def test_a_session_goes_on_after_a_commit_whose_end_was_cancelled(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    """SQLAlchemy calls no event for that end: the next commit must be fenced all the same."""
    await insert(sessions)
    await insert(sessions, 2)
    async with sessions() as session:
        (await session.get_one(Export, 1)).percent = 50
        with cancelled_end(engine):
            await session.commit()
        assert await poll(cache, engine) == bypass(2)
        (await session.get_one(Export, 2)).percent = 60
        await session.commit()
        assert await poll(cache, engine, 2) == hit(2)


async def test_a_commit_that_fails_after_one_whose_end_was_cancelled_publishes_nothing(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await insert(sessions)
    async with sessions() as session:
        session.add(Export(id=2))
        with cancelled_end(engine):
            await session.commit()
        (await session.get_one(Export, 1)).percent = 50
        dialect = engine.sync_engine.dialect

        def fail(connection: DBAPIConnection) -> None:
            dialect.do_rollback(connection)
            raise ConnectionError

        with monkeypatch.context() as patch:
            patch.setattr(dialect, "do_commit", fail)
            with pytest.raises(ConnectionError):
                await session.commit()
    assert await poll(cache, engine) == bypass(1)
