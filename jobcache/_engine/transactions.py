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
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from jobcache.errors import WriteMisuse

if TYPE_CHECKING:
    from collections.abc import Callable

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
        self._owners: list[Any] = []
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
            WriteMisuse: the transaction is a session or connection, which closes without a commit;
                or a savepoint, or it joins another transaction, or always rolls back.
        """
        # Refused even if the block commits it: an outcome that nobody knows would count as none.
        #   the block commits version 2 and is cancelled meanwhile; the fence is withdrawn
        if _controls_transactions(self._transaction):
            raise WriteMisuse(
                "the write's transaction is a session or connection, which does not commit when its"
                " block ends; give `write` what its `begin()` returns"
            )
        self._owners = _sqlalchemy_owners(self._transaction, value)
        if _is_savepoint(self._transaction, value, self._owners):
            raise WriteMisuse(
                "the write's transaction is a savepoint of another one, or always rolls back;"
                f" {_ADVICE}"
            )
        before = self._savepoints
        for alias, (count, on_commit) in _django_savepoints().items():
            # Django counts a nested block, with or without a savepoint, and none that is outermost.
            if count > before.get(alias, (0, None))[0]:
                return on_commit
        return None

    def leaving(self) -> None:
        """Note the open transactions at the end of the block, before it is left."""
        for owner in self._owners:
            root = owner.get_transaction()
            if root is not None:
                self._open.append((owner, root))

    def left(self) -> None:
        """Check the transaction once it has been left without an error.

        Raises:
            WriteMisuse: it has not been committed. The fences stay until they expire.
        """
        for owner, root in self._open:
            if owner.get_transaction() is root:
                raise WriteMisuse(
                    f"the write's block has ended, and nothing is committed; {_ADVICE}"
                )


def check_autocommit() -> None:
    """Check that a write without a transaction of its own is not in one of Django's.

    Raises:
        WriteMisuse: what the block changes would be committed after the block has ended.
    """
    for connection in _django_connections():
        if connection.in_atomic_block:
            raise WriteMisuse(
                "the write has no transaction, but it is in an atomic block of Django, which"
                " commits later; give `write` a `transaction.atomic()`"
            )


def _django_savepoints() -> dict[str, tuple[int, OnCommit]]:
    """Return in how many nested atomic blocks each connection of this thread is, by alias."""
    if "django.db.transaction" not in sys.modules:
        return {}
    from django.db.transaction import on_commit  # noqa: PLC0415 - not a dependency

    return {
        connection.alias: (
            len(connection.savepoint_ids),
            partial(on_commit, using=connection.alias),
        )
        for connection in _django_connections()
    }


def _django_connections() -> list[Any]:
    """Return the connections that Django has made in this thread; none if it is not loaded."""
    if "django.db.transaction" not in sys.modules:
        return []
    from django.conf import settings  # noqa: PLC0415 - not a dependency
    from django.db import connections  # noqa: PLC0415 - not a dependency

    if not settings.configured:
        return []  # nobody can have connected
    return list(connections.all(initialized_only=True))


def _is_savepoint(
    transaction: Any,  # noqa: ANN401 - of any library
    entered: Any,  # noqa: ANN401 - what it returned
    owners: list[Any],
) -> bool:
    kind: Any = type(transaction)
    kind_entered: Any = type(entered)
    libraries = _libraries_of(kind)
    if "asyncpg" in libraries:
        return getattr(transaction, "_nested", False) is True
    # `Connection.transaction` of psycopg is a generator. The transaction is what it yields.
    if "psycopg" in _libraries_of(kind_entered):
        outermost = getattr(entered, "_outer_transaction", True)
        return not outermost or getattr(entered, "force_rollback", False) is True
    for owner in owners:
        if owner.in_nested_transaction():
            return True
    # A session's own new transaction has not begun one on its connection yet.
    if "sqlalchemy" in libraries:
        for owner, controls in _connections_of_sessions(transaction, entered):
            if owner.get_transaction() is not None and not controls:
                return True
    return False


@lru_cache(maxsize=256)
def _libraries_of(kind: Any) -> frozenset[str]:  # noqa: ANN401 - a class
    """Return the top-level packages that define a class and its base classes."""
    return frozenset(base.__module__.partition(".")[0] for base in kind.__mro__)


def _controls_transactions(value: object) -> bool:
    """Return whether it is a session or connection of SQLAlchemy, synchronous or not."""
    kind: Any = type(value)
    return "sqlalchemy" in _libraries_of(kind) and hasattr(value, "in_nested_transaction")


def _sessions_and_connections(*values: object) -> list[Any]:
    """Return SQLAlchemy's synchronous sessions and connections that these values are, or are of."""
    owners = []
    for value in values:
        kind: Any = type(value)
        if "sqlalchemy" not in _libraries_of(kind):
            continue
        owner: Any = value
        if not hasattr(owner, "in_nested_transaction"):  # but a transaction of one
            owner = getattr(value, "session", None) or getattr(value, "connection", None)
            if owner is None or not _controls_transactions(owner):
                continue
        owner = getattr(owner, "sync_session", owner)
        owners.append(getattr(owner, "sync_connection", owner))
    return owners


def _connections_of_sessions(*values: object) -> list[tuple[Any, bool]]:
    """Return each connection that a session is bound to, and whether the session may commit it."""
    return [
        (connection, owner.join_transaction_mode == "control_fully")
        for owner in _sessions_and_connections(*values)
        if (bind := getattr(owner, "bind", None)) is not None
        for connection in _sessions_and_connections(bind)
    ]


def _sqlalchemy_owners(*values: object) -> list[Any]:
    """Return all that may hold the transaction: sessions, connections, and those of sessions."""
    owners = _sessions_and_connections(*values)
    for connection, _ in _connections_of_sessions(*values):
        owners.append(connection)
    return owners
