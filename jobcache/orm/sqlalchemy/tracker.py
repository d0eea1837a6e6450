"""Notes the rows of bound classes that a session changes, by savepoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import event, inspect
from sqlalchemy.orm import object_session

from jobcache.errors import WriteMisuse
from jobcache.orm.sqlalchemy.changes import ChangedRow, Changes
from jobcache.orm.sqlalchemy.connections import check_connection
from jobcache.orm.sqlalchemy.versions import key_may_return

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection
    from sqlalchemy.engine import Dialect
    from sqlalchemy.orm import Mapper, Session, SessionTransaction

    from jobcache.orm.sqlalchemy.binding import Binding


class ChangeTracker:
    """Notes what one session changes.

    The unit of work calls the events of the mapped classes, also for objects that only a
    relationship has changed.

    Args:
        session: the session.
        bindings: of the mapped classes whose rows are cached.

    Attributes:
        bindings: as given.
    """

    def __init__(self, session: Session, bindings: Sequence[Binding[Any]]) -> None:
        self._session = session
        self.bindings = tuple(bindings)
        self._open: list[tuple[SessionTransaction, Changes]] = []  # the innermost is last
        self._flushed: list[tuple[Any, int | None, Connection]] = []
        self._checked: set[Connection] = set()
        for binding in self.bindings:
            _listen(binding.mapped)

    def bindings_of(self, mapper: Mapper[Any]) -> list[Binding[Any]]:
        """Return the bindings of a mapped class and of its base classes."""
        return [binding for binding in self.bindings if mapper.isa(binding.mapper)]

    @property
    def mappers(self) -> list[Mapper[Any]]:
        """The mappers of the bound classes."""
        return [binding.mapper for binding in self.bindings]

    # --- transactions and savepoints ---

    def began(self, transaction: SessionTransaction) -> None:
        """Note that a transaction or a savepoint has begun."""
        self.forget_ended()
        self._open.append((transaction, Changes()))

    def released(self) -> None:
        """Add the changes of the innermost savepoint to those of the enclosing one."""
        (_, outer), (_, savepoint) = self._open[-2:]
        outer.merge(savepoint)

    def forget_ended(self) -> None:
        """Forget the changes of each transaction and savepoint that has ended.

        Done before each use, too, because SQLAlchemy does not call `after_transaction_end` if the
        end is cancelled or fails:

            COMMIT; the reset of the connection is cancelled; no event
            the next transaction seems to be a savepoint of this one: its COMMIT is not fenced
        """
        in_progress = {self._session.get_transaction()}
        savepoint = self._session.get_nested_transaction()
        while savepoint is not None:
            in_progress.add(savepoint)
            savepoint = savepoint.parent
        self._open = [each for each in self._open if each[0] in in_progress]
        if not self._open:
            self._checked.clear()

    @property
    def in_savepoint(self) -> bool:
        """Whether a savepoint is open."""
        self.forget_ended()
        return len(self._open) > 1

    @property
    def committing(self) -> bool:
        """Whether a commit, or the release of a savepoint, has begun and not ended."""
        self.forget_ended()
        return any(changes.committing for _, changes in self._open)

    def innermost(self) -> Changes:
        """Return the changes of the innermost savepoint, or else of the transaction."""
        self.forget_ended()
        if not self._open:
            self._session.begin()
        return self._open[-1][1]

    def any_changed(self) -> bool:
        """Return whether the transaction or one of its savepoints has changes."""
        return any(changes.rows for _, changes in self._open)

    # --- what a flush changes ---

    def flushing(self) -> None:
        """Note that a flush begins."""
        self._flushed.clear()

    def check(self, mapper: Mapper[Any], connection: Connection) -> None:
        """Check that the session sees and commits what a connection changes, once for each.

        Raises:
            WriteMisuse: the session's commit would not commit it, or a relationship has
                `post_update`.
        """
        if connection not in self._checked:
            for binding in self.bindings:
                if binding.post_update is not None:
                    raise WriteMisuse(
                        f"{binding.post_update} has post_update, which changes rows of"
                        f" {binding.mapped.__name__} after the session has noted their versions"
                    )
            check_connection(self._session, mapper, connection)
            self._checked.add(connection)

    def changing(self, target: object, version: int | None, connection: Connection) -> None:
        """Note that the flush inserts a row, or may update it.

        Args:
            target: the object.
            version: the version before the update.
            connection: the connection that changes the row.
        """
        self._flushed.append((target, version, connection))

    def flushed(self) -> None:
        """Note the rows whose versions the flush has raised.

        An object without a net change was not updated. To publish its document would be wrong: the
        transaction holds no lock of the row, so another one may have changed it.
        """
        for target, before, connection in self._flushed:
            mapper = inspect(target).mapper
            for binding in self.bindings_of(mapper):
                version: int = getattr(target, binding.version)
                if version != before:
                    identity = tuple(mapper.primary_key_from_instance(target))
                    self.changed(binding, ChangedRow(binding, identity, version, connection))
        self._flushed.clear()

    def changed(self, binding: Binding[Any], row: ChangedRow) -> None:
        """Note a changed row with its new version."""
        self.innermost().rows[binding.key(*row.identity)] = row

    def outdated(self, mapper: Mapper[Any], identity: Sequence[Any]) -> None:
        """Note a row whose new version is unknown, or that is gone."""
        for binding in self.bindings_of(mapper):
            row = ChangedRow(binding, tuple(identity), None, None)
            self.innermost().rows[binding.key(*identity)] = row


def check_delete(mapper: Mapper[Any], dialect: Dialect) -> None:
    """Check that no later row can be taken for one that is deleted.

    Raises:
        WriteMisuse: the primary key can be used again, with the same versions.
    """
    if key_may_return(mapper, dialect):
        name = mapper.class_.__name__
        raise WriteMisuse(
            f"another {name} may be given the primary key of a deleted one, and the same versions:"
            f" set version_id_generator=count_from_clock in the mapper of {name}"
            + (
                ', or __table_args__ = {"sqlite_autoincrement": True}'
                if dialect.name == "sqlite"
                else ""
            )
        )


# --- events of mapped classes ---


def _tracker(mapper: Mapper[Any], target: object) -> ChangeTracker | None:
    """Return the tracker of an object's session, if the session has bound its class."""
    tracker = getattr(object_session(target), "tracker", None)
    if isinstance(tracker, ChangeTracker) and tracker.bindings_of(mapper):
        return tracker
    return None


def _before_insert(mapper: Mapper[Any], connection: Connection, target: object) -> None:
    tracker = _tracker(mapper, target)
    if tracker is not None:
        tracker.check(mapper, connection)
        tracker.changing(target, None, connection)


def _before_update(mapper: Mapper[Any], connection: Connection, target: object) -> None:
    tracker = _tracker(mapper, target)
    if tracker is None:
        return
    tracker.check(mapper, connection)
    state = inspect(target)
    name = mapper.class_.__name__
    if state.identity != tuple(mapper.primary_key_from_instance(target)):
        raise WriteMisuse(
            f"the primary key of {name}{state.identity} has changed, and with it the key of the"
            " document: delete the row and insert another one"
        )
    version = state.attrs[tracker.bindings_of(mapper)[0].version].load_history()
    if version.added:
        raise WriteMisuse(
            f"the version of {name}{state.identity} was set to {version.added[0]}: leave it to the"
            " mapper, which raises it with each change"
        )
    tracker.changing(target, version.unchanged[0], connection)


def _before_delete(mapper: Mapper[Any], connection: Connection, target: object) -> None:
    tracker = _tracker(mapper, target)
    if tracker is not None:
        tracker.check(mapper, connection)
        check_delete(mapper, connection.dialect)


def _after_delete(mapper: Mapper[Any], _: Connection, target: object) -> None:
    tracker = _tracker(mapper, target)
    if tracker is not None:
        tracker.outdated(mapper, mapper.primary_key_from_instance(target))


def _listen(mapped: type[Any]) -> None:
    """Call the functions above for a class and its subclasses, once each."""
    for name, function in (
        ("before_insert", _before_insert),
        ("before_update", _before_update),
        ("before_delete", _before_delete),
        ("after_delete", _after_delete),
    ):
        if not event.contains(mapped, name, function):
            event.listen(mapped, name, function, propagate=True)
