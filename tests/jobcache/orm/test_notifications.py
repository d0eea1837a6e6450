"""Sessions and statements on backend "postgres": transactions notify of the rows they change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from sqlalchemy import Text, cast, delete, event, insert, literal, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from jobcache import JobCache
from jobcache._engine.writing import WriteSteps
from jobcache.orm.sqlalchemy import CoherentSession, mark_changed, notify
from tests.jobcache.orm.exports import BINDINGS, EXPORTS, Export
from tests.jobcache.orm.reading import hit, miss, poll

pytestmark = pytest.mark.parametrize("engine", ["postgres"], indirect=True)
Sessions = async_sessionmaker[AsyncSession]


class Reports:
    def __init__(self) -> None:
        self.keys: list[str] = []

    def changed(self, keys: Sequence[str]) -> None:
        self.keys += keys

    def interrupted(self) -> None:
        """Nothing to forget."""

    def resumed(self) -> None:
        """Nothing to learn."""


@pytest.fixture
async def caches(postgres_url: str) -> AsyncIterator[list[JobCache]]:
    """Two, as in two processes."""
    made = [JobCache.from_url(postgres_url) for _ in range(2)]
    for cache in made:
        await cache.start()
        await until(lambda cache=cache: cache.info().health.available)  # type: ignore[misc]
    yield made
    for cache in made:
        await cache.aclose()


@pytest.fixture
def sessions(engine: AsyncEngine, caches: list[JobCache]) -> Sessions:
    return async_sessionmaker(
        engine, sync_session_class=CoherentSession, cache=caches[0], bindings=BINDINGS
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


def reports_to(cache: JobCache) -> Reports:
    reports = Reports()
    cache.backend.feed().listen(reports)  # type: ignore[attr-defined]
    return reports


@contextmanager
def statements(engine: AsyncEngine) -> Iterator[list[str]]:
    sent: list[str] = []

    def note(*arguments: object) -> None:
        verb, rest = str(arguments[2]).split(None, 1)
        sent.append(f"{verb} pg_notify" if "pg_notify" in rest else verb)

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    yield sent
    event.remove(engine.sync_engine, "before_cursor_execute", note)


async def test_each_kind_of_change_of_a_session_reaches_the_other_process(
    sessions: Sessions, caches: list[JobCache], engine: AsyncEngine
) -> None:
    one, two = caches
    reports = reports_to(two)

    async def reported() -> None:
        await until(lambda: reports.keys.count(EXPORTS.key(1)) > 0)
        reports.keys.clear()
        assert await poll(two, engine) == await poll(one, engine), "both have loaded it"
        assert await poll(two, engine) == await poll(one, engine)

    async with sessions.begin() as session:
        session.add(Export(id=1))
    assert await poll(one, engine) == miss(1)
    assert await poll(one, engine) == hit(1)
    await until(lambda: EXPORTS.key(1) in reports.keys)
    reports.keys.clear()
    assert await poll(two, engine) == miss(1)
    async with sessions.begin() as session:
        (await session.get_one(Export, 1)).percent = 50
    await reported()
    async with sessions.begin() as session:
        await session.execute(update(Export).values(percent=60).returning(Export.id))
    await reported()
    async with sessions.begin() as session:
        await session.execute(text("UPDATE orm_exports SET percent = 7, version = version + 1"))
        mark_changed(session, Export, 1)
    await reported()
    async with sessions.begin() as session:
        await session.delete(await session.get_one(Export, 1))
    await reported()


async def test_the_transaction_notifies_with_one_statement_and_makes_no_document(
    sessions: Sessions, engine: AsyncEngine
) -> None:
    with statements(engine) as sent:
        async with sessions.begin() as session:
            session.add_all([Export(id=number) for number in range(1, 4)])
    assert sent == ["INSERT", "SELECT pg_notify"]


async def test_a_session_whose_process_dies_after_the_commit_hides_nothing(
    sessions: Sessions, caches: list[JobCache], engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(_: WriteSteps) -> None:
        raise ZeroDivisionError

    async with sessions.begin() as session:
        session.add(Export(id=1))
    reports = reports_to(caches[1])
    monkeypatch.setattr(WriteSteps, "publish", die)
    with pytest.raises(ZeroDivisionError):
        async with sessions.begin() as session:
            (await session.get_one(Export, 1)).percent = 50
    await until(lambda: EXPORTS.key(1) in reports.keys)


async def test_what_is_rolled_back_is_not_reported(
    sessions: Sessions, caches: list[JobCache]
) -> None:
    reports = reports_to(caches[1])
    async with sessions() as session:
        session.add(Export(id=1))
        await session.flush()
        await session.rollback()
    async with sessions() as session:
        session.add(Export(id=2))
        await session.flush()
        late = "id int UNIQUE DEFERRABLE INITIALLY DEFERRED"
        await session.execute(text(f"CREATE TEMPORARY TABLE late ({late})"))
        await session.execute(text("INSERT INTO late VALUES (1), (1)"))
        with pytest.raises(Exception, match="duplicate key"):
            await session.commit()
        await session.rollback()
    await caches[0].invalidate("end")
    await until(lambda: "end" in reports.keys)
    assert reports.keys == ["end"]
    assert not caches[0].backend._writing  # type: ignore[attr-defined]


async def test_a_statement_notifies_of_keys_that_it_is_given_and_that_it_computes(
    caches: list[JobCache], engine: AsyncEngine
) -> None:
    reports = reports_to(caches[1])
    table = Export.__table__
    computed = literal("export:") + cast(table.c.id, Text)
    async with caches[0].write(engine.begin()) as write:
        inserted = insert(Export).values(id=9, version=1, percent=0, price=0)
        await write.transaction.execute(inserted.returning(Export.id, *notify(write, computed)))
        await write.fence("export:9", notified=True)
        write.outdate("export:9", 1)
    async with caches[0].write(engine.begin()) as write:
        removed = delete(Export).where(Export.id == 9)
        columns = notify(write, "a", "b", computed)
        await write.transaction.execute(removed.returning(Export.id, *columns))
        await write.fence("a", "b", "export:9", notified=True)
        for key in ("a", "b", "export:9"):
            write.outdate(key, 2)
    await until(lambda: len(reports.keys) == 4)
    assert reports.keys == ["export:9", "a", "b", "export:9"]
    assert caches[0].statistics.errors == 0
    async with JobCache.from_url("memory://") as fenced, fenced.write(engine.begin()) as write:
        assert notify(write, "k", computed) == []


async def test_a_write_whose_statement_does_not_notify_is_reported_all_the_same(
    caches: list[JobCache], engine: AsyncEngine
) -> None:
    reports = reports_to(caches[1])
    async with caches[0].write(engine.begin(), "k") as write:
        write.outdate("k", 2)
    await until(lambda: reports.keys == ["k"])
