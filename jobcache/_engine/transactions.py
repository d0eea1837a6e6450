"""Detects a write's transaction that does not commit when its block ends.

    outer transaction begins
        write: savepoint, version 2, fence, savepoint released, version 2 published
        readers are given version 2
    outer transaction rolls back: version 2 has never existed

A transaction of Django that is part of another one defers the write to the commit of the other one.
Any other such transaction is refused. Libraries are recognised by their objects and never imported.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from jobcache.errors import WriteMisuse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    OnCommit = Callable[[Callable[[], object]], object]

_ADVICE = "give `write` the outermost transaction, which commits when its block ends"


class Enclosing:
    """Finds out whether a write's transaction is enclosed in another one.

    Make it before the transaction is entered; then call each method once, in their order.

    Args:
        transaction: the context manager that the write was given.
    """

    def __init__(self, transaction: object) -> None:
        self._transaction = transaction
        self._entered: object = None
        self._savepoints = _django_savepoints()
        self._open: list[tuple[Any, object]] = []

    def entered(self, value: object) -> OnCommit | None:
        """Check the transaction once it has been entered.

        Args:
            value: what entering it returned.

        Returns:
            A function that takes a callback for the commit of Django's outer transaction; None if
            the transaction is not part of one.

        Raises:
            WriteMisuse: the transaction is a savepoint, or joins another transaction.
        """
        self._entered = value
        if _is_savepoint(self._transaction, value):
            raise WriteMisuse(f"the write's transaction is a savepoint of another one; {_ADVICE}")
        before = self._savepoints
        for alias, (count, on_commit) in _django_savepoints().items():
            # Django counts a nested block, with or without a savepoint, and none that is outermost.
            if count > before.get(alias, (0, None))[0]:
                return on_commit
        return None

    def leaving(self) -> None:
        """Check the transaction at the end of the block, before it is left.

        Raises:
            WriteMisuse: what is left is a session or connection, which closes without a commit.
        """
        if _controls_transactions(self._transaction) and self._transaction.in_transaction():  # type: ignore[attr-defined]
            raise WriteMisuse(
                "the write's transaction is a session or connection, which does not commit when its"
                " block ends; give `write` what its `begin()` returns"
            )
        self._open = [
            (owner, root)
            for owner in _sqlalchemy_owners(self._transaction, self._entered)
            if (root := owner.get_transaction()) is not None
        ]

    def left(self) -> None:
        """Check the transaction once it has been left without an error.

        Raises:
            WriteMisuse: it has not been committed. The fences stay until they expire.
        """
        if any(owner.get_transaction() is root for owner, root in self._open):
            raise WriteMisuse(f"the write's block has ended, and nothing is committed; {_ADVICE}")


def _django_savepoints() -> dict[str, tuple[int, OnCommit]]:
    """How many nested atomic blocks each connection of this thread is in, by Django's alias."""
    django = sys.modules.get("django.db.transaction")
    if django is None:
        return {}
    from django.conf import settings  # noqa: PLC0415 - not a dependency
    from django.db import connections  # noqa: PLC0415 - not a dependency

    if not settings.configured:
        return {}  # nobody can have connected

    return {
        connection.alias: (
            len(connection.savepoint_ids),
            partial(django.on_commit, using=connection.alias),
        )
        for connection in connections.all(initialized_only=True)
    }


def _is_savepoint(transaction: Any, entered: object) -> bool:  # noqa: ANN401 - of any library
    if _is_from("asyncpg", transaction):
        return getattr(transaction, "_nested", False) is True
    if _is_from("psycopg", transaction):
        return getattr(transaction, "_outer_transaction", True) is False
    if any(_in_savepoint(owner) for owner in _sqlalchemy_owners(transaction, entered)):
        return True
    # A session's own new transaction has not begun one on its connection yet.
    return _is_from("sqlalchemy", transaction) and any(
        owner.get_transaction() is not None and not controls
        for owner, controls in _connections_of_sessions(transaction, entered)
    )


def _in_savepoint(owner: Any) -> bool:  # noqa: ANN401 - a session or a connection
    return bool(owner.in_nested_transaction())


def _is_from(library: str, value: object) -> bool:
    return any(kind.__module__.partition(".")[0] == library for kind in type(value).__mro__)


def _controls_transactions(value: object) -> bool:
    """Whether it is a session or connection of SQLAlchemy, synchronous or not."""
    return _is_from("sqlalchemy", value) and hasattr(value, "in_nested_transaction")


def _sessions_and_connections(*values: object) -> Iterator[Any]:
    """Yield SQLAlchemy's synchronous sessions and connections that these values are, or are of."""
    for value in values:
        if not _is_from("sqlalchemy", value):
            continue
        owner: Any = value
        if not _controls_transactions(value):  # but a transaction of one
            owner = getattr(value, "session", None) or getattr(value, "connection", None)
        if _controls_transactions(owner):
            owner = getattr(owner, "sync_session", owner)
            yield getattr(owner, "sync_connection", owner)


def _connections_of_sessions(*values: object) -> Iterator[tuple[Any, bool]]:
    """Yield each connection that a session is bound to, and whether the session may commit it."""
    for owner in _sessions_and_connections(*values):
        for connection in _sessions_and_connections(getattr(owner, "bind", None)):
            yield connection, owner.join_transaction_mode == "control_fully"


def _sqlalchemy_owners(*values: object) -> Iterator[Any]:
    """Yield all that may hold the transaction: sessions, connections, and those of sessions."""
    yield from _sessions_and_connections(*values)
    for connection, _ in _connections_of_sessions(*values):
        yield connection
