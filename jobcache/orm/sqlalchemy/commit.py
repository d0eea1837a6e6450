"""The commit of a session: fence the keys of the changed rows, commit, publish.

On backend "postgres" the transaction notifies of the keys in place of fences. Documents are not
made then, because they would not be stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobcache.orm.sqlalchemy.connections import check_no_savepoint
from jobcache.orm.sqlalchemy.steps import begin_write
from jobcache.protocol.document import NEWEST

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection

    from jobcache.cache import JobCache as AsyncJobCache
    from jobcache.orm.sqlalchemy.binding import Binding
    from jobcache.orm.sqlalchemy.changes import ChangedRow
    from jobcache.orm.sqlalchemy.steps import SessionWriteSteps
    from jobcache.protocol.document import Document
    from jobcache.sync.cache import JobCache as SyncJobCache


class CommitWriter:
    """Fences the changes of one session before each commit, and publishes them after it.

    Args:
        cache: the cache.
    """

    def __init__(self, cache: AsyncJobCache | SyncJobCache) -> None:
        self._cache = cache
        self._steps: SessionWriteSteps | None = None
        self._committed = False

    def begin(self) -> None:
        """Forget the transaction before, if its end was cancelled: its fences stay.

        first transaction: COMMIT; cancelled before it publishes
        second transaction: fence; its COMMIT fails, and must not publish like the first
        """
        self._steps, self._committed = None, False

    def fence(self, session: Session, rows: Mapping[str, ChangedRow]) -> None:
        """Make the documents of the changed rows, and fence their keys, or notify of them.

        Nothing is fenced if it raises an error.
        """
        check_no_savepoint({_connection(session, row) for row in rows.values()})
        steps = begin_write(self._cache)
        try:
            if steps.notification(()) is None:
                results = _results(rows)
                steps.fence(results)
            else:
                results = {
                    key: NEWEST if row.version is None else row.version for key, row in rows.items()
                }
                _notify(session, steps, rows)
            for key, result in results.items():
                steps.record(key, result)
        except BaseException:
            steps.withdraw()
            raise
        self._steps = steps

    def withdraw(self) -> None:
        """Remove the fences, because the commit will not be tried."""
        steps, self._steps = self._steps, None
        if steps is not None:
            steps.withdraw()

    def committed(self) -> None:
        """Note that the fenced changes are committed."""
        self._committed = True

    def end(self) -> None:
        """Publish the documents of the changed rows, once the transaction has ended.

        If the commit has failed, nobody knows whether it happened: the fences stay until they
        expire.
        """
        steps, committed = self._steps, self._committed
        self._steps, self._committed = None, False
        if steps is not None:
            if committed:
                steps.publish()
            else:
                steps.abandon()


def _connection(session: Session, row: ChangedRow) -> Connection:
    if row.connection is not None:
        return row.connection
    return session.connection(bind_arguments={"mapper": row.binding.mapper})


def _notify(session: Session, steps: SessionWriteSteps, rows: Mapping[str, ChangedRow]) -> None:
    """Have each transaction of PostgreSQL notify of its keys, with one statement.

    Keys of another database are notified after the commit, by the backend.
    """
    together: dict[Connection, list[str]] = {}
    for key, row in rows.items():
        together.setdefault(_connection(session, row), []).append(key)
    for connection, keys in together.items():
        told = steps.notification(keys) if connection.dialect.name == "postgresql" else None
        if told is not None:
            connection.execute(select(func.pg_notify(told.channel, told.payload)))
        steps.fence(keys, notified=told is not None)


def _results(rows: Mapping[str, ChangedRow]) -> dict[str, Document | int]:
    results: dict[str, Document | int] = dict.fromkeys(rows, NEWEST)
    together: dict[tuple[Binding[Any], Connection], dict[str, ChangedRow]] = {}
    for key, row in rows.items():
        if row.connection is not None:
            together.setdefault((row.binding, row.connection), {})[key] = row
    for (binding, connection), changed in together.items():
        # Read as a load would read, because the database may have rounded numbers, or set columns.
        with Session(connection, join_transaction_mode="rollback_only") as reader:
            identities = {key: row.identity for key, row in changed.items()}
            documents = binding.read_many(reader, identities)
        for key, row in changed.items():
            document = documents.get(key)
            # Otherwise a trigger has changed it, or a savepoint of the connection was rolled back.
            if document is not None and document.version == row.version:
                results[key] = document
    return results
