"""Refuses sessions whose commit does not commit, and begins transactions of SQLite in time."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection
from sqlalchemy.exc import UnboundExecutionError

from jobcache.errors import WriteMisuse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.orm import Mapper, Session


def check_connection(session: Session, mapper: Mapper[Any], connection: Connection) -> None:
    """Check, before a flush changes a bound row, that the session's commit will commit it.

    Raises:
        WriteMisuse: the session uses two-phase commits, its transaction is part of another one, or
            each statement commits itself.
    """
    if session.twophase:
        # The outcome of a prepared transaction is decided elsewhere, perhaps much later.
        raise WriteMisuse("a session with two-phase commits cannot publish what it commits")
    if (
        isinstance(session.get_bind(mapper), Connection)
        and session.join_transaction_mode != "control_fully"
    ):
        raise WriteMisuse(
            "the session is bound to a connection, whose transaction it may not commit: bind it to"
            " an engine, set join_transaction_mode='control_fully', or use a plain Session"
        )
    if _commits_each_statement(connection):
        #   the UPDATE commits version 2; readers still find version 1 in the cache
        #   the session fences the key when it is committed, which is later
        raise WriteMisuse(
            "the connection is in AUTOCOMMIT mode, so rows change before their keys are fenced"
        )


def check_no_savepoint(connections: Iterable[Connection]) -> None:
    """Check that the commit of a session ends the transactions of its connections.

    Raises:
        WriteMisuse: a savepoint that the session does not know of is open.
    """
    if any(connection.in_nested_transaction() for connection in connections):
        raise WriteMisuse("a savepoint of the session's connection is open: end it before")


def _commits_each_statement(connection: Connection) -> bool:
    try:
        autocommit = connection.dialect.detect_autocommit_setting(
            connection.connection.dbapi_connection  # type: ignore[arg-type]
        )
    except NotImplementedError:
        return False
    # Applications of SQLite often send BEGIN themselves, and switch that of the driver off.
    return autocommit and not (connection.dialect.name == "sqlite" and _in_transaction(connection))


def begin_before_savepoint(session: Session, mappers: Iterable[Mapper[Any]]) -> None:
    """Begin the transaction of SQLite, before a session sets a savepoint.

    Python's driver begins a transaction at the first statement that changes something, and not at a
    savepoint. SQLite itself commits an outermost savepoint when it is released:

        SAVEPOINT; UPDATE, version 2; RELEASE: version 2 is committed, and its key is not fenced
        the session rolls back; version 2 stays
    """
    for mapper in mappers:
        with suppress(UnboundExecutionError):
            connection = session.connection(bind_arguments={"mapper": mapper})
            if connection.dialect.name == "sqlite" and not _in_transaction(connection):
                connection.exec_driver_sql("BEGIN")


def _in_transaction(connection: Connection) -> bool:
    driver: Any = connection.connection.driver_connection
    in_transaction: bool = driver.in_transaction
    return in_transaction
