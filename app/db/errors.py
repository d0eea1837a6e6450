"""What callers of the database catch, and the translation of drivers' exceptions into it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from app.db.driver_errors import Failure, classify, driver_error
from jobcache import JobCacheError, SettingsError, SourceUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator


class DatabaseUnavailable(SourceUnavailable):
    """The database cannot be reached, did not answer in time, or refuses to work for now."""


class RevisionError(JobCacheError):
    """The tables of the database are older or newer than this version of the service."""


class NothingChanged(DatabaseUnavailable):
    """The database is sure to have changed nothing, and another attempt is likely to succeed."""


class ConnectionDied(NothingChanged):
    """The connection was lost before a commit was sent."""


@contextmanager
def translating() -> Iterator[None]:
    """Raise `DatabaseUnavailable` for every exception in the block that is not a bug."""
    try:
        yield
    except Exception as error:
        if classify(error) is Failure.BUG:
            raise
        raise DatabaseUnavailable(_brief(error)) from error


@contextmanager
def explaining(address: str) -> Iterator[None]:
    """Raise an error of one line for whatever fails while a database is opened.

    The driver gets the options of the URL unchanged and checks them. Drivers have many types of
    errors: one for a wrong password, another for a missing permission.

    Args:
        address: the part of the URL that may be logged.

    Raises:
        SettingsError: the URL cannot be used.
        RevisionError: as raised in the block.
        DatabaseUnavailable: the database cannot be used.
    """
    try:
        yield
    except (RevisionError, SettingsError):
        raise
    except (TypeError, ValueError) as error:
        allowed = f"the driver refuses it: {error}"
        raise SettingsError("DATABASE_URL", address, allowed) from error
    except Exception as error:
        line = str(error).partition("\n")[0]
        raise DatabaseUnavailable(f"{address}: {line}") from error


def may_repeat(error: Exception) -> bool:
    """Return whether a statement that raised this may be sent again, unless it was a COMMIT."""
    failure = classify(error)
    died: bool = getattr(error, "connection_invalidated", False)
    # uvloop's error: SQLAlchemy does not know that it means a lost connection.
    reset = isinstance(error, RuntimeError) and failure is Failure.DISCONNECTED
    return died or reset or failure is Failure.RETRY


def _brief(error: BaseException) -> str:
    cause = driver_error(error)
    return f"{type(cause).__name__}: {cause}".splitlines()[0]
