"""Random work of sessions: no read differs from the database after an acknowledged commit.

Two writers work in turn. Their commits are held between the fence, the commit and the publish, are
cancelled at any wait, lose the answer of the database, or die before they publish.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import delete, event, insert, select, text, update
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    AsyncSessionTransaction,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.util import await_

from jobcache import JobCache
from jobcache.backends.memory import MemoryBackend
from jobcache.errors import WriteMisuse
from jobcache.orm.sqlalchemy import CoherentSession, commit, mark_changed
from jobcache.orm.sqlalchemy.steps import SessionWriteSteps
from tests.cancelling import CancelledAt
from tests.jobcache.orm.exports import BINDINGS, EXPORTS, Base, Export, export_document
from tests.sqlite_threads import sqlite_threads_ended

T = TypeVar("T")
IDS = (1, 2, 3)
ids = st.sampled_from(IDS)
writers = st.sampled_from([0, 1])
percents = st.integers(1, 99)
TABLE = Export.__tablename__
SELECT = select(Export.id, Export.version, Export.percent, Export.price)


class Killed(BaseException):
    """Ends a writer after its commit, as the end of its process would."""


@dataclass
class Hold:
    """Stops the commit of one task at a step.

    Attributes:
        step: "fence": after the fence; "publish": before the publish; "die": the same, for ever.
        reached: set when the commit has got there.
        released: lets it go on.
    """

    step: str
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def stop(self) -> None:
        self.reached.set()
        await_(self.released.wait())


HOLD: ContextVar[Hold | None] = ContextVar("HOLD", default=None)


class HeldSteps:
    """The steps of a write, stopped where `HOLD` says."""

    def __init__(self, steps: SessionWriteSteps) -> None:
        self._steps = steps
        self._hold = HOLD.get()
        self.record, self.withdraw = steps.record, steps.withdraw
        self.notification, self.abandon = steps.notification, steps.abandon

    def fence(self, keys: Iterable[str], *, notified: bool = False) -> None:
        self._steps.fence(keys, notified=notified)
        if self._hold is not None and self._hold.step == "fence":
            self._hold.stop()

    def publish(self) -> None:
        if self._hold is not None and self._hold.step == "publish":
            self._hold.stop()
        if self._hold is not None and self._hold.step == "die":
            raise Killed
        self._steps.publish()


@dataclass
class Writer:
    """A session, its open savepoints, and its commit if that is held."""

    session: AsyncSession
    savepoints: list[AsyncSessionTransaction] = field(default_factory=list)
    hold: Hold | None = None
    committing: asyncio.Task[None] | None = None


class Machine(RuleBasedStateMachine):
    """The class attributes are set by the test that runs it."""

    loop: ClassVar[asyncio.AbstractEventLoop]
    engine: ClassVar[AsyncEngine]
    make_cache: ClassVar[Callable[[], JobCache]]

    def __init__(self) -> None:
        super().__init__()
        self.run(self.set_up())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    async def set_up(self) -> None:
        async with asyncio.timeout(60):
            while not await self.emptied():
                await asyncio.sleep(0.01)
        self.cache = type(self).make_cache()
        self.sessions = async_sessionmaker(
            self.engine, sync_session_class=CoherentSession, cache=self.cache, bindings=BINDINGS
        )
        self.reader = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self.plain = async_sessionmaker(self.engine)
        self.writers = [Writer(self.sessions()) for _ in range(2)]

    async def emptied(self) -> bool:
        """Delete all rows, unless the database still ends a transaction that was cancelled."""
        try:
            async with self.engine.begin() as connection:
                await connection.execute(delete(Export))
        except DBAPIError:
            return False
        return True

    # --- the work of a transaction ---

    def work(self, number: int, change: Callable[[Writer], Coroutine[Any, Any, object]]) -> None:
        """Let a writer do something. If the database refuses it, the writer rolls back."""
        writer = self.writers[number]
        if writer.committing is None:
            self.run(self._work(writer, change))

    async def _work(
        self, writer: Writer, change: Callable[[Writer], Coroutine[Any, Any, object]]
    ) -> None:
        try:
            await change(writer)
        except (SQLAlchemyError, ConnectionError, WriteMisuse, asyncio.CancelledError, Killed):
            writer.savepoints.clear()
            await writer.session.close()

    @rule(number=writers, export_id=ids, percent=percents)
    def insert(self, number: int, export_id: int, percent: int) -> None:
        async def change(writer: Writer) -> None:
            if await writer.session.get(Export, export_id) is None:
                writer.session.add(Export(id=export_id, percent=percent))

        self.work(number, change)

    @rule(number=writers, export_id=ids, percent=percents)
    def update(self, number: int, export_id: int, percent: int) -> None:
        async def change(writer: Writer) -> None:
            export = await writer.session.get(Export, export_id)
            if export is not None:
                export.percent = percent

        self.work(number, change)

    @rule(number=writers, export_id=ids)
    def change_nothing(self, number: int, export_id: int) -> None:
        async def change(writer: Writer) -> None:
            export = await writer.session.get(Export, export_id)
            if export is not None:
                before = export.percent
                export.percent = -1
                export.percent = before

        self.work(number, change)

    @rule(number=writers, export_id=ids)
    def delete(self, number: int, export_id: int) -> None:
        async def change(writer: Writer) -> None:
            export = await writer.session.get(Export, export_id)
            if export is not None:
                await writer.session.delete(export)

        self.work(number, change)

    @rule(number=writers, some=st.sets(ids), percent=percents)
    def bulk_update(self, number: int, some: set[int], percent: int) -> None:
        statement = update(Export).where(Export.id.in_(some)).values(percent=percent)
        self.work(number, lambda writer: writer.session.execute(statement.returning(Export)))

    @rule(number=writers, export_id=ids)
    def bulk_delete(self, number: int, export_id: int) -> None:
        statement = delete(Export).where(Export.id == export_id).returning(Export.id)
        self.work(number, lambda writer: writer.session.execute(statement))

    @rule(number=writers, percent=percents)
    def bulk_insert(self, number: int, percent: int) -> None:
        rows = [{"id": each, "percent": percent} for each in IDS]
        statement = insert(Export).returning(Export)
        self.work(number, lambda writer: writer.session.execute(statement, rows))

    @rule(number=writers)
    def refused_update(self, number: int) -> None:
        async def change(writer: Writer) -> None:
            with pytest.raises(WriteMisuse):
                await writer.session.execute(update(Export).values(percent=0))

        self.work(number, change)

    @rule(number=writers, export_id=ids, percent=percents)
    def update_by_text(self, number: int, export_id: int, percent: int) -> None:
        statement = text(
            "UPDATE orm_exports SET version = version + 1, percent = :percent WHERE id = :id"
        )

        async def change(writer: Writer) -> None:
            await writer.session.flush()
            await writer.session.execute(statement, {"id": export_id, "percent": percent})
            mark_changed(writer.session, Export, export_id)
            writer.session.expire_all()

        self.work(number, change)

    @rule(number=writers)
    def flush(self, number: int) -> None:
        self.work(number, lambda writer: writer.session.flush())

    @rule(number=writers)
    def savepoint(self, number: int) -> None:
        async def change(writer: Writer) -> None:
            writer.savepoints.append(await writer.session.begin_nested())

        self.work(number, change)

    @rule(number=writers, released=st.booleans())
    def end_savepoint(self, number: int, *, released: bool) -> None:
        async def change(writer: Writer) -> None:
            if writer.savepoints:
                savepoint = writer.savepoints.pop()
                await (savepoint.commit() if released else savepoint.rollback())

        self.work(number, change)

    @rule(number=writers)
    def rollback(self, number: int) -> None:
        async def change(writer: Writer) -> None:
            writer.savepoints.clear()
            await writer.session.rollback()

        self.work(number, change)

    @rule(number=writers)
    def close(self, number: int) -> None:
        async def change(writer: Writer) -> None:
            writer.savepoints.clear()
            await writer.session.close()

        self.work(number, change)

    # --- the end of a transaction ---

    async def commit_of(self, writer: Writer) -> None:
        writer.savepoints.clear()
        await writer.session.commit()

    @rule(number=writers)
    def commit(self, number: int) -> None:
        self.work(number, self.commit_of)

    @rule()
    def commit_both(self) -> None:
        async def both() -> None:
            free = [writer for writer in self.writers if writer.committing is None]
            reads = [self.read(each) for each in IDS]
            await asyncio.gather(*(self._work(each, self.commit_of) for each in free), *reads)

        self.run(both())

    @rule(number=writers)
    def die_before_the_publish(self, number: int) -> None:
        async def change(writer: Writer) -> None:
            HOLD.set(Hold("die"))
            await self.commit_of(writer)

        self.work(number, change)

    @rule(number=writers, outcome=st.sampled_from(["committed", "rolled back", "still open"]))
    def lose_the_answer_to_the_commit(self, number: int, outcome: str) -> None:
        dialect = self.engine.sync_engine.dialect

        def lose(connection: Any) -> None:
            if outcome == "committed":
                type(dialect).do_commit(dialect, connection)
            elif outcome == "rolled back":
                dialect.do_rollback(connection)
            raise ConnectionError

        async def change(writer: Writer) -> None:
            dialect.do_commit = lose
            try:
                await self.commit_of(writer)
            finally:
                del dialect.do_commit

        self.work(number, change)

    @rule(number=writers, wait=st.integers(1, 12), late=st.booleans())
    def cancel_the_commit(self, number: int, wait: int, *, late: bool) -> None:
        async def change(writer: Writer) -> None:
            async def cancelled() -> None:
                await CancelledAt(self.commit_of(writer), wait, late=late)

            await asyncio.create_task(cancelled())

        self.work(number, change)

    @rule(number=writers, step=st.sampled_from(["fence", "publish"]))
    def hold_the_commit(self, number: int, step: str) -> None:
        """Until `let_go`, the others work while this commit stands still."""

        async def change(writer: Writer) -> None:
            hold = Hold(step)

            async def held() -> None:
                HOLD.set(hold)
                await self._work(writer, self.commit_of)

            committing = asyncio.create_task(held())
            reached = asyncio.create_task(hold.reached.wait())
            await asyncio.wait([committing, reached], return_when=asyncio.FIRST_COMPLETED)
            if committing.done():
                reached.cancel()
            else:
                writer.hold, writer.committing = hold, committing

        self.work(number, change)

    @rule(
        number=writers,
        export_id=ids,
        percent=percents,
        step=st.sampled_from(["", "fence", "publish"]),
    )
    def write(self, number: int, export_id: int, percent: int, step: str) -> None:
        """Change one row and commit: rules at random seldom do that in a row."""
        self.rollback(number)
        if percent % 3:
            self.insert(number, export_id, percent)
            self.update(number, export_id, percent)
        else:
            self.delete(number, export_id)
        if step:
            self.hold_the_commit(number, step)
        else:
            self.commit(number)

    @rule(number=writers)
    def let_go(self, number: int) -> None:
        self.run(self._let_go(self.writers[number]))

    async def _let_go(self, writer: Writer) -> None:
        if writer.hold is not None and writer.committing is not None:
            writer.hold.released.set()
            await writer.committing
            writer.hold = writer.committing = None

    # --- reads ---

    async def read(self, export_id: int) -> tuple[int, bytes] | None:
        load = EXPORTS.loader(self.plain)
        result = await self.cache.read(EXPORTS.key(export_id), load(export_id))
        return None if result.missing else (result.version, result.body)

    async def committed(self) -> dict[int, tuple[int, bytes]]:
        async with self.reader.connect() as connection:
            rows = (await connection.execute(SELECT)).all()
        documents = {row.id: export_document(cast("Export", row)) for row in rows}
        return {each: (document.version, document.body) for each, document in documents.items()}

    @invariant()
    def reads_are_as_in_the_database(self) -> None:
        self.run(self._compare())

    async def _compare(self) -> None:
        before = await self.committed()
        for export_id in IDS:
            seen = await self.read(export_id)
            if seen != before.get(export_id):  # a commit that was cancelled has only now ended
                assert seen == (await self.committed()).get(export_id)

    def teardown(self) -> None:
        async def end() -> None:
            for writer in self.writers:
                await self._let_go(writer)
                await writer.session.close()
            await self._compare()
            await self.cache.aclose()

        self.run(end())


@asynccontextmanager
async def database(request: pytest.FixtureRequest, name: str) -> AsyncIterator[AsyncEngine]:
    """Yield an engine that waits for no lock: then the writer rolls back."""
    if name == "postgres":
        url = request.getfixturevalue("postgres_url")
        engine = create_async_engine(url, connect_args={"server_settings": {"lock_timeout": "1ms"}})
    else:
        path: Path = request.getfixturevalue("tmp_path")
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{path / 'machine.db'}", connect_args={"timeout": 0}
        )
        event.listen(engine.sync_engine, "connect", _never_wait_for_the_disk)
    async with engine.begin() as connection:
        if name == "sqlite":  # readers are not refused while a writer commits
            await connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        await connection.run_sync(Base.metadata.create_all)
        if name == "postgres":  # autovacuum locks the table for readers while it truncates it
            await connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
            await connection.exec_driver_sql(f"ALTER TABLE {TABLE} SET (vacuum_truncate = false)")
    yield engine
    await engine.dispose()
    await sqlite_threads_ended()


def _never_wait_for_the_disk(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous = OFF")
    cursor.close()


async def at_once(_: float) -> None:
    """Wait behind a fence for a turn of the loop: nobody needs longer here."""
    await asyncio.sleep(0)


@pytest.mark.parametrize("source", ["sqlite", "postgres"])
@pytest.mark.parametrize("backend", ["memory", "redis"])
def test_no_read_differs_from_the_database(
    request: pytest.FixtureRequest,
    patient: None,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    source: str,
    *,
    long: bool,
) -> None:
    def make_cache() -> JobCache:
        if backend == "memory":
            return JobCache(MemoryBackend(), sleep=at_once)
        url = request.getfixturevalue("redis_url")
        with redis.Redis.from_url(url) as raw:
            raw.flushall()
        return JobCache.from_url(url, sleep=at_once)

    begin_write = commit.begin_write
    monkeypatch.setattr(commit, "begin_write", lambda cache: HeldSteps(begin_write(cache)))
    with asyncio.Runner() as runner:
        opened = database(request, source)
        members: dict[str, Any] = {
            "loop": runner.get_loop(),
            "engine": runner.run(opened.__aenter__()),
            "make_cache": staticmethod(make_cache),
        }
        try:
            run_state_machine_as_test(
                type("Sessions", (Machine,), members),
                settings=settings(
                    max_examples=300 if long else 6,
                    stateful_step_count=40 if long else 30,
                    phases=[Phase.generate],  # what is found depends on times: shrinking is in vain
                    derandomize=not long,  # a short run checks the code, a long one explores
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(opened.__aexit__(None, None, None))
