"""What an error of the database driver means for a request: one table per database.

A request that meets `Failure.BUG` is answered with 500, every other one with 503 and Retry-After,
unless another attempt succeeds first. `tests/app/db/test_database_errors.py` has a test per row.
"""

from __future__ import annotations

import sqlite3
from enum import Enum
from typing import Final

from sqlalchemy import exc as sqlalchemy_errors


class Failure(Enum):
    """How the service reacts to an error."""

    BUG = "the statement is wrong; another attempt would fail in the same way"
    UNAVAILABLE = "the database cannot do it now; the connection is in order"
    DISCONNECTED = "the connection, and every pooled one as old as it, must not be used again"
    RETRY = "the server has undone everything, and the next attempt is likely to succeed"


POSTGRES: Final[dict[str, Failure]] = {
    # A whole SQLSTATE, or a class (the first two characters). The whole one takes precedence.
    "08": Failure.DISCONNECTED,  # connection exception; also a failure that PgBouncer reports
    "25": Failure.DISCONNECTED,  # read-only server (25006), state of a transaction mixed up
    "26000": Failure.DISCONNECTED,  # no such prepared statement: a pooler swapped servers
    "28": Failure.DISCONNECTED,  # password or role refused on a reconnection
    "3D000": Failure.DISCONNECTED,  # no such database, on a reconnection
    "40": Failure.RETRY,  # serialization failure, deadlock
    "40003": Failure.UNAVAILABLE,  # statement completion unknown
    "42P05": Failure.DISCONNECTED,  # prepared statement exists: a pooler swapped servers
    "53": Failure.UNAVAILABLE,  # out of disk space, memory, connections
    "54000": Failure.UNAVAILABLE,  # the queue of notifications is full
    "55": Failure.UNAVAILABLE,  # lock timeout, object in use
    "57": Failure.DISCONNECTED,  # shutdown, crash, start, idle session
    "57014": Failure.UNAVAILABLE,  # cancelled, or statement timeout
    "58": Failure.UNAVAILABLE,  # I/O error
    "XX": Failure.UNAVAILABLE,  # internal error, corrupted data
}
"""PostgreSQL. What is not listed is a bug. Before the table: a FATAL error ends the connection,
whatever its state; and 0A000 is retried if it reports a plan that a changed table outdated."""

SQLITE: Final[dict[int, Failure]] = {
    # Primary result codes. Another file may have taken the place of one that is not usable.
    sqlite3.SQLITE_INTERNAL: Failure.UNAVAILABLE,
    sqlite3.SQLITE_PERM: Failure.DISCONNECTED,
    sqlite3.SQLITE_ABORT: Failure.UNAVAILABLE,
    sqlite3.SQLITE_BUSY: Failure.UNAVAILABLE,  # another process has held the lock for too long
    sqlite3.SQLITE_LOCKED: Failure.UNAVAILABLE,
    sqlite3.SQLITE_NOMEM: Failure.UNAVAILABLE,
    sqlite3.SQLITE_READONLY: Failure.DISCONNECTED,
    sqlite3.SQLITE_INTERRUPT: Failure.UNAVAILABLE,
    sqlite3.SQLITE_IOERR: Failure.DISCONNECTED,
    sqlite3.SQLITE_CORRUPT: Failure.DISCONNECTED,
    sqlite3.SQLITE_FULL: Failure.UNAVAILABLE,
    sqlite3.SQLITE_CANTOPEN: Failure.DISCONNECTED,
    sqlite3.SQLITE_PROTOCOL: Failure.UNAVAILABLE,
    sqlite3.SQLITE_SCHEMA: Failure.RETRY,
    sqlite3.SQLITE_NOLFS: Failure.UNAVAILABLE,
    sqlite3.SQLITE_NOTADB: Failure.DISCONNECTED,
}
"""SQLite. What is not listed is a bug: a wrong statement (SQLITE_ERROR), a constraint, misuse."""

_GIVEN_UP = "This connection is closed"
"""SQLAlchemy's error for a pool that was renewed several times while it made a connection."""

_REFUSED_WRITES = ("53100", "58")
_REFUSED_WRITE_CODES = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY}


def classify(error: BaseException) -> Failure:
    """Return what an exception of SQLAlchemy or of a driver means."""
    cause = driver_error(error)
    if isinstance(cause, sqlite3.Error):
        return SQLITE.get(_sqlite_code(cause), Failure.BUG)
    if _is_from_asyncpg(cause):
        return _classify_asyncpg(cause)
    # uvloop's error for a write to a connection that was lost just now.
    lost = isinstance(error, RuntimeError) and "handler is closed" in str(error)
    if lost or getattr(error, "connection_invalidated", False):
        return Failure.DISCONNECTED
    # OSError includes the built-in TimeoutError. SQLAlchemy's: no pooled connection became free.
    if isinstance(error, OSError | EOFError | sqlalchemy_errors.TimeoutError):
        return Failure.UNAVAILABLE
    if isinstance(error, sqlalchemy_errors.InvalidRequestError) and str(error) == _GIVEN_UP:
        return Failure.RETRY
    return Failure.BUG


def is_write_refused(error: BaseException) -> bool:
    """Return whether the error says that writes fail although reads may succeed."""
    cause = driver_error(error)
    if isinstance(cause, sqlite3.Error):
        return _sqlite_code(cause) in _REFUSED_WRITE_CODES
    return _sqlstate(cause).startswith(_REFUSED_WRITES)


def is_refused(error: BaseException) -> bool:
    """Return whether PostgreSQL itself refuses for now: the connection is in order."""
    return bool(_sqlstate(driver_error(error))) and classify(error) is Failure.UNAVAILABLE


def driver_error(error: BaseException) -> BaseException:
    """Return the exception that the driver raised, without what SQLAlchemy wrapped around it."""
    wrapped = getattr(error, "orig", None)
    if not isinstance(wrapped, BaseException):
        return error
    # SQLAlchemy has an exception of its own between asyncpg's and the outermost.
    cause = wrapped.__cause__
    return cause if cause is not None and _is_from_asyncpg(cause) else wrapped


def _classify_asyncpg(error: BaseException) -> Failure:
    state = _sqlstate(error)
    if not state:
        # The client library itself. It checks arguments, and otherwise complains of a connection
        # that is closed, in use by another task, or out of step with the server.
        wrong_argument = isinstance(error, ValueError) or "the server expects" in str(error)
        return Failure.BUG if wrong_argument else Failure.DISCONNECTED
    if _is_fatal(error):
        return Failure.DISCONNECTED
    if type(error).__name__ == "InvalidCachedStatementError":
        return Failure.RETRY
    exact = POSTGRES.get(state)
    return POSTGRES.get(state[:2], Failure.BUG) if exact is None else exact


def _is_from_asyncpg(error: BaseException) -> bool:
    return type(error).__module__.startswith("asyncpg.")


def _is_fatal(error: BaseException) -> bool:
    # The first is in English whatever the language of the server's messages.
    severity = getattr(error, "severity_en", None) or getattr(error, "severity", None)
    return severity in {"FATAL", "PANIC"}


def _sqlstate(error: BaseException) -> str:
    return getattr(error, "sqlstate", None) or ""


def _sqlite_code(error: sqlite3.Error) -> int:
    # An extended code has the primary one in its lowest byte.
    code = getattr(error, "sqlite_errorcode", None)
    return sqlite3.SQLITE_ERROR if code is None else code & 0xFF
