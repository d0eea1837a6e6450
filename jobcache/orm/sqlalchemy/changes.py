"""What a transaction has changed, by savepoint.

savepoint: row 7, version 2; rolled back: the transaction has not changed row 7
savepoint: row 7, version 2; released: the transaction has changed it, and may yet roll back
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from jobcache.orm.sqlalchemy.binding import Binding


@dataclass(frozen=True, slots=True)
class ChangedRow:
    """A row that a transaction has changed.

    Attributes:
        binding: makes its document.
        identity: its primary key.
        version: the version that a flush gave it; None if it is unknown, or the row is gone.
        connection: the connection whose transaction has changed it; None with the version.
    """

    binding: Binding[Any]
    identity: tuple[Any, ...]
    version: int | None
    connection: Connection | None


@dataclass(slots=True)
class Changes:
    """The changes of a transaction, or of one of its savepoints.

    Attributes:
        rows: by key, the changed rows.
        committing: True once the commit, or the release of the savepoint, has begun.
    """

    rows: dict[str, ChangedRow] = field(default_factory=dict)
    committing: bool = False

    def merge(self, released: Changes) -> None:
        """Add the changes of a savepoint that has been released."""
        self.rows.update(released.rows)
