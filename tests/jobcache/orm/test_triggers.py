"""`docs/sqlalchemy.md`: the column of the versions, and the triggers that raise them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.orm.exc import StaleDataError

from jobcache import CacheOutcome, Document, JobCache
from jobcache.orm.sqlalchemy import Binding, CoherentSession
from tests.test_documents import blocks

MIGRATION = blocks("docs/sqlalchemy.md", "python")[1]
POSTGRES, SQLITE = blocks("docs/sqlalchemy.md", "sql")


class Base(DeclarativeBase):
    """What the class has in common with no other."""


class Export(Base):
    """A row of the table in the document."""

    __tablename__ = "exports"
    id: Mapped[int] = mapped_column(primary_key=True)
    percent: Mapped[int]
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy reads it once


EXPORTS = Binding(
    Export,
    key="export:{id}",
    document=lambda export: Document(export.version, "", b"%d" % export.percent),
)


def migrate(connection: Connection, step: str) -> None:
    names: dict[str, Any] = {}
    exec(MIGRATION, names)  # noqa: S102 - our own
    with Operations.context(MigrationContext.configure(connection)):
        names[step]()


@pytest.fixture
async def table(engine: AsyncEngine) -> AsyncIterator[None]:
    """The table, as it was before the migration, and then with the trigger."""
    postgres = engine.dialect.name == "postgresql"
    async with engine.begin() as connection:
        run = connection.exec_driver_sql
        await run("CREATE TABLE exports (id INTEGER PRIMARY KEY, percent INTEGER)")
        await run("INSERT INTO exports VALUES (1, 0)")
        for step in ("upgrade", "downgrade", "upgrade"):
            await connection.run_sync(migrate, step)
        for statement in POSTGRES.split("\n\n") if postgres else [SQLITE]:
            await run(statement)
    yield
    async with engine.begin() as connection:
        await connection.exec_driver_sql("DROP TABLE exports")
        if postgres:
            await connection.exec_driver_sql("DROP FUNCTION raise_version")


async def run(engine: AsyncEngine, statement: str) -> None:
    async with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            await connection.exec_driver_sql("PRAGMA recursive_triggers = ON")
        await connection.execute(text(statement))


async def version(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        found: int = (await connection.execute(text("SELECT version FROM exports"))).scalar_one()
        return found


@pytest.mark.usefixtures("table")
async def test_the_trigger_raises_versions_for_all_and_the_mapper_its_own(
    engine: AsyncEngine, cache: JobCache
) -> None:
    assert await version(engine) == 1
    await run(engine, "UPDATE exports SET percent = 1")
    await run(engine, "UPDATE exports SET percent = 1")
    assert await version(engine) == 3
    await run(engine, "UPDATE exports SET version = version + 1")
    await run(engine, "UPDATE exports SET version = 1")
    assert await version(engine) == 5
    sessions = async_sessionmaker(
        engine, sync_session_class=CoherentSession, cache=cache, bindings=[EXPORTS]
    )
    async with sessions() as session:
        export = await session.get_one(Export, 1)
        for percent in (50, 60):
            export.percent = percent
            await session.commit()
            await session.refresh(export)
        load = EXPORTS.loader(sessions)
        result = await cache.read("export:1", load(1))
        assert (result.version, result.outcome, result.body) == (7, CacheOutcome.HIT, b"60")
        await session.commit()
        await session.refresh(export)
        session.expunge(export)
    await run(engine, "UPDATE exports SET percent = 70")
    async with sessions() as session:
        session.add(export)
        export.percent = 80
        with pytest.raises(StaleDataError):
            await session.commit()
    assert await version(engine) == 8


@pytest.mark.usefixtures("table")
async def test_versions_are_in_the_order_of_the_commits(engine: AsyncEngine) -> None:
    """On PostgreSQL the second transaction waits, and then finds the version of the first."""
    if engine.dialect.name == "sqlite":
        return  # one writer at a time
    async with engine.connect() as first, engine.connect() as second:
        await first.execute(text("UPDATE exports SET percent = 1"))
        waiting = asyncio.create_task(
            second.execute(text("UPDATE exports SET percent = 2 RETURNING version"))
        )
        await asyncio.sleep(0)
        await first.commit()
        assert (await waiting).scalar_one() == 3
        await second.commit()


async def test_statements_of_the_document(cache: JobCache, engine: AsyncEngine) -> None:
    page = blocks("docs/sqlalchemy.md", "python")
    definitions = page[0].replace("asyncio.run(main())", "")
    names: dict[str, Any] = {}
    source = "\n".join([definitions, page[2], page[3]])
    exec(compile(source, "sqlalchemy.md", "exec", dont_inherit=True), names)  # noqa: S102 - our own
    exports = names["exports"]
    sessions = async_sessionmaker(
        engine, sync_session_class=CoherentSession, cache=cache, bindings=[exports]
    )
    async with engine.begin() as connection:
        await connection.run_sync(names["Base"].metadata.create_all)
    try:
        async with sessions.begin() as session:
            session.add(names["Export"](id=7, owner="a", percent=50))
        async with sessions.begin() as session:
            assert await names["restart"](session) == [7]
        load = exports.loader(sessions)
        assert (await cache.read("export:7", load(7))).version == 2
        async with sessions.begin() as session:
            await names["restart_one"](session, 7)
        assert (await cache.read("export:7", load(7))).version == 3
    finally:
        async with engine.begin() as connection:
            await connection.run_sync(names["Base"].metadata.drop_all)
