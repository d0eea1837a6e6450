"""A session that fences the keys of its changes, and publishes them after the commit.

    flush        note the changed rows, by savepoint
    commit       flush; make the documents; fence their keys; COMMIT; publish
    rollback     forget the changed rows; nothing has been fenced

Rejected: overriding `commit`, because `session.begin()` never calls it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import event, inspect
from sqlalchemy.orm import Session

from jobcache.errors import WriteMisuse
from jobcache.orm.sqlalchemy.commit import CommitWriter
from jobcache.orm.sqlalchemy.connections import begin_before_savepoint
from jobcache.orm.sqlalchemy.statements import execute_bulk
from jobcache.orm.sqlalchemy.tracker import ChangeTracker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy import Result
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Mapper, ORMExecuteState, SessionTransaction

    from jobcache.cache import JobCache as AsyncJobCache
    from jobcache.orm.sqlalchemy.binding import Binding
    from jobcache.sync.cache import JobCache as SyncJobCache


F = TypeVar("F", bound="Callable[..., object]")


class CoherentSession(Session):
    """A session that keeps the cache coherent with the rows that it commits.

        sessions = async_sessionmaker(
            engine, sync_session_class=CoherentSession, cache=cache, bindings=[exports]
        )

    With threads: `sessionmaker(engine, class_=CoherentSession, cache=cache, bindings=[exports])`,
    and a `jobcache.sync.JobCache`.

    The keys of the rows that the unit of work inserts, updates or deletes are fenced before the
    commit, and published after it. A rollback, also to a savepoint, publishes nothing. If the
    commit fails, or the process dies before it has published, readers ask the database until the
    fences expire. Changes that the session cannot see must be reported (`mark_changed`).

    Args:
        arguments: as for `sqlalchemy.orm.Session`.
        cache: the cache; for an `AsyncSession` an asynchronous one.
        bindings: of the mapped classes whose rows are cached.
        options: as for `sqlalchemy.orm.Session`.

    Attributes:
        tracker: notes what the session changes.
        writer: fences and publishes.
    """

    def __init__(
        self,
        *arguments: Any,  # noqa: ANN401 - as in the base class
        cache: AsyncJobCache | SyncJobCache,
        bindings: Sequence[Binding[Any]],
        **options: Any,  # noqa: ANN401 - as in the base class
    ) -> None:
        super().__init__(*arguments, **options)
        self.tracker = ChangeTracker(self, bindings)
        self.writer = CommitWriter(cache)

    def begin(self, nested: bool = False) -> SessionTransaction:  # noqa: D102, FBT001, FBT002 - as in the base class
        if nested:
            begin_before_savepoint(self, self.tracker.mappers)
        return super().begin(nested=nested)

    def close(self) -> None:  # noqa: D102 - as in the base class
        self._end_failed_commit()
        super().close()

    def reset(self) -> None:  # noqa: D102 - as in the base class
        self._end_failed_commit()
        super().reset()

    def _end_failed_commit(self) -> None:
        """Roll back a transaction whose commit has failed.

        SQLAlchemy does not, and returns the connection to the pool with the transaction open:

            UPDATE, version 2; COMMIT fails, because SQLite's database is locked; close
            a load is given the connection, and finds version 2, which nobody has committed
        """
        if self.tracker.committing:
            self.rollback()

    # SQLAlchemy calls no event for these three.

    def bulk_save_objects(self, objects: Iterable[object], *arguments: Any, **options: Any) -> None:  # noqa: ANN401, D102 - as in the base class
        objects = list(objects)
        for mapped in {type(each) for each in objects}:
            self._refuse_bulk(inspect(mapped))
        super().bulk_save_objects(objects, *arguments, **options)

    def bulk_insert_mappings(self, mapper: Any, *arguments: Any, **options: Any) -> None:  # noqa: ANN401, D102 - as in the base class
        self._refuse_bulk(inspect(mapper))
        super().bulk_insert_mappings(mapper, *arguments, **options)

    def bulk_update_mappings(self, mapper: Any, *arguments: Any, **options: Any) -> None:  # noqa: ANN401, D102 - as in the base class
        self._refuse_bulk(inspect(mapper))
        super().bulk_update_mappings(mapper, *arguments, **options)

    def _refuse_bulk(self, mapper: Mapper[Any]) -> None:
        if self.tracker.bindings_of(mapper):
            raise WriteMisuse(
                f"this method does not say which rows of {mapper.class_.__name__} it changes: use"
                " add_all, or execute insert(…).returning(…)"
            )


def mark_changed(
    session: AsyncSession | Session,
    mapped: type[Any],
    *identity: Any,  # noqa: ANN401 - of any type
) -> None:
    """Report a row that the transaction has changed by a statement that the session cannot see.

        await session.execute(text("UPDATE exports SET percent = 0, version = version + 1 …"))
        mark_changed(session, Export, 7)

    The commit fences the key of the row, and leaves it empty, so that the next read loads the row.
    The statement must raise the version.

    Args:
        session: a `CoherentSession`, or an `AsyncSession` with one.
        mapped: the bound class.
        identity: the primary key of the row, as the database has it. If it takes "a" and "A" for
            equal, that is the spelling in the row; `RETURNING` returns it.

    Raises:
        WriteMisuse: the session is no `CoherentSession`, or has not bound the class. A session that
            is refused for changes of objects is refused at the commit.
    """
    coherent = getattr(session, "sync_session", session)
    if not isinstance(coherent, CoherentSession):
        raise WriteMisuse(f"a {type(coherent).__name__} is no CoherentSession")
    mapper = inspect(mapped)
    if not coherent.tracker.bindings_of(mapper):
        raise WriteMisuse(f"{mapped.__name__} is not bound in this session")
    coherent.tracker.outdated(mapper, identity)


def _listens(name: str) -> Callable[[F], F]:
    def listen(function: F) -> F:
        event.listen(CoherentSession, name, function, propagate=True)
        return function

    return listen


@_listens("after_transaction_create")
def _began(session: CoherentSession, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.writer.begin()
    if transaction.parent is None or transaction.nested:
        session.tracker.began(transaction)


@_listens("before_flush")
def _flushing(session: CoherentSession, *_: object) -> None:
    session.tracker.flushing()


@_listens("after_flush")
def _flushed(session: CoherentSession, *_: object) -> None:
    changes = session.tracker.innermost()
    before = dict(changes.rows)
    session.tracker.flushed()
    if changes.committing and changes.rows != before:
        session.writer.withdraw()
        raise WriteMisuse(
            "a hook has changed a bound object after the commit had begun: change it before"
        )


@_listens("do_orm_execute")
def _executing(state: ORMExecuteState) -> Result[Any] | None:
    assert isinstance(state.session, CoherentSession)  # noqa: S101 - who listens
    return execute_bulk(state.session.tracker, state)


@_listens("before_commit")
def _committing(session: CoherentSession) -> None:
    session.flush()
    changes = session.tracker.innermost()
    if not session.tracker.in_savepoint:
        changes.committing = True
        if changes.rows:
            # Not checked by `mark_changed`, which cannot wait for a connection.
            for mapper in {it.binding.mapper for it in changes.rows.values() if not it.connection}:
                session.tracker.check(mapper, session.connection(bind_arguments={"mapper": mapper}))
            session.writer.fence(session, changes.rows)
    elif changes.committing and session.tracker.any_changed():
        # SQLAlchemy calls this event for the outer transaction, which it does not name, and then
        # for each savepoint that is still open. It does not call it again before it commits.
        raise WriteMisuse("a savepoint is open at the commit of the transaction: end it before")
    else:
        changes.committing = True


@_listens("after_commit")
def _committed(session: CoherentSession) -> None:
    # Also called when a savepoint is released.
    if session.tracker.in_savepoint:
        session.tracker.released()
    else:
        session.writer.committed()


@_listens("after_transaction_end")
def _ended(session: CoherentSession, transaction: SessionTransaction) -> None:
    session.tracker.forget_ended()
    if transaction.parent is None:
        # Not before: the connection has been returned by now, even if publishing is cancelled.
        session.writer.end()
