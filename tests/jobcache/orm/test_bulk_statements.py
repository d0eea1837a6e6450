"""Statements that change many rows at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from jobcache import JobCache
from jobcache.errors import WriteMisuse
from jobcache.orm.sqlalchemy import mark_changed
from tests.jobcache.orm.exports import Export, Note, Part
from tests.jobcache.orm.reading import hit, miss, poll

Sessions = async_sessionmaker[AsyncSession]
TABLE: Any = Export.__table__


@pytest.fixture(autouse=True)
async def two_rows(sessions: Sessions) -> None:
    async with sessions.begin() as session:
        session.add_all([Export(id=1), Export(id=2)])


async def test_an_update_that_returns_its_rows_raises_versions_and_empties_the_keys(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    statement = update(Export).where(Export.id < 3).values(percent=7).returning(Export)
    async with sessions.begin() as session:
        first = await session.get_one(Export, 1)
        found = (await session.scalars(statement)).all()
        assert {export.id for export in found} == {1, 2}
        assert (first.percent, first.version) == (7, 2)
        first.percent = 8
    assert await poll(cache, engine, 1) == hit(3)
    assert await poll(cache, engine, 2) == miss(2)


async def test_the_result_is_that_of_the_statement(sessions: Sessions) -> None:
    async with sessions.begin() as session:
        ((_, export, percent),) = (
            await session.execute(
                update(Export)
                .where(Export.id == 1)
                .values({Export.version: Export.version + 1, "percent": 7})
                .returning(Export.id, Export, Export.percent)
            )
        ).all()
        assert (export.id, export.version, percent) == (1, 2, 7)
        ids = update(Export).values(percent=1).returning(Export.id)
        assert sorted(await session.scalars(ids)) == [1, 2]
        nothing = update(Export).where(Export.id == 9).values(percent=1).returning(Export)
        assert (await session.scalars(nothing)).one_or_none() is None


async def test_an_update_in_a_savepoint_that_is_rolled_back(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    async with sessions.begin() as session:
        savepoint = await session.begin_nested()
        await session.execute(update(Export).values(percent=7).returning(Export))
        await savepoint.rollback()
    assert await poll(cache, engine, 1) == hit(1)


async def test_inserts_and_deletes_that_return_their_rows(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    assert await poll(cache, engine, 3) == miss(0)
    async with sessions.begin() as session:
        rows = [{"id": 3, "percent": 3}, {"id": 4}]
        await session.execute(insert(Export).returning(Export), rows)
        assert await poll(cache, engine, 3) == hit(0)
    assert await poll(cache, engine, 3) == miss(1)
    async with sessions.begin() as session:
        await session.execute(delete(Export).where(Export.id > 2).returning(Export))
    assert await poll(cache, engine, 3) == miss(0)


async def test_statements_about_other_classes_are_left_alone(sessions: Sessions) -> None:
    async with sessions.begin() as session:
        await session.execute(insert(Note), [{"text": "a"}, {"text": "b"}])
        changed = await session.execute(update(Note).values(text="c"))
        assert changed.rowcount == 2
        await session.run_sync(lambda blocking: blocking.bulk_save_objects([Note(text="d")]))
        assert await session.scalar(select(func.count()).select_from(Note)) == 3


def upsert(session: Session) -> object:
    dialect = session.get_bind().dialect.name
    made = (postgresql if dialect == "postgresql" else sqlite).insert(Export)
    statement = made.values(id=1, version=1, percent=3, price=0)
    return session.execute(
        statement.on_conflict_do_update(index_elements=["id"], set_={"percent": 3}).returning(
            Export
        )
    )


REFUSED: dict[str, Callable[[Session], object]] = {
    "an update": lambda session: session.execute(update(Export).values(percent=1)),
    "an update of the table": lambda session: session.execute(update(TABLE).values(percent=1)),
    "an update of the table that returns ids": lambda session: session.execute(
        update(TABLE).values(percent=1).returning(TABLE.c.id)
    ),
    "an update by primary key": lambda session: session.execute(
        update(Export), [{"id": 1, "percent": 1}]
    ),
    "an update of a query": lambda session: session.query(Export).update({"percent": 1}),
    "an update within a select": lambda session: session.scalars(
        select(Export).from_statement(update(Export).values(percent=1).returning(Export))
    ),
    "a delete": lambda session: session.execute(delete(Export)),
    "a delete of a query": lambda session: session.query(Export).delete(),
    "a delete of the table": lambda session: session.execute(delete(TABLE)),
    "an insert": lambda session: session.execute(insert(Export), [{"id": 3}]),
    "an insert into the table": lambda session: session.execute(insert(TABLE).values(id=3)),
    "an upsert": upsert,
    "bulk_save_objects": lambda session: session.bulk_save_objects([Export(id=3)]),
    "bulk_insert_mappings": lambda session: session.bulk_insert_mappings(Export, [{"id": 3}]),
    "bulk_update_mappings": lambda session: session.bulk_update_mappings(
        Export, [{"id": 1, "version": 1, "percent": 1}]
    ),
}


async def test_all_others_are_refused_before_they_change_anything(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    async with sessions.begin() as session:
        for name, statement in REFUSED.items():
            try:
                await session.run_sync(statement)
            except WriteMisuse as error:
                assert "rows of Export" in str(error)  # noqa: PT017 - which one is in the message
            else:
                pytest.fail(name)
    assert await poll(cache, engine, 1) == hit(1)
    assert await poll(cache, engine, 3) == miss(0)


async def test_a_row_that_was_changed_by_text_is_marked(
    sessions: Sessions, cache: JobCache, engine: AsyncEngine
) -> None:
    raise_all = text("UPDATE orm_exports SET percent = 9, version = version + 1")
    async with sessions.begin() as session:
        await session.execute(raise_all)
        mark_changed(session, Export, 1)
        mark_changed(session, Export, 2)
    assert await poll(cache, engine, 1) == miss(2)
    assert await poll(cache, engine, 2) == miss(2)
    async with sessions() as session:
        mark_changed(session, Export, 1)  # before the statement, in a new transaction
        await session.execute(raise_all)
        mark_changed(session, Export, 2)
        await session.rollback()
    assert await poll(cache, engine, 1) == hit(2)


async def test_marks_need_a_session_that_can_publish(
    sessions: Sessions, engine: AsyncEngine
) -> None:
    async with sessions() as session:
        with pytest.raises(WriteMisuse, match="Note is not bound"):
            mark_changed(session, Note, 1)
        with pytest.raises(TypeError, match="2 values"):
            mark_changed(session, Part, 1)
    with pytest.raises(WriteMisuse, match="no CoherentSession"):
        mark_changed(AsyncSession(engine), Export, 1)
