"""Operations that revisions use so that PostgreSQL answers polls and writes meanwhile."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from alembic import op
from sqlalchemy import text
from sqlalchemy.schema import CreateIndex, DropIndex

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Index

_IS_INVALID = text(
    "SELECT 1 FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
    " WHERE relname = :name AND pg_table_is_visible(indrelid) AND NOT indisvalid"
)


def on_postgres() -> bool:
    """Return whether the revision is applied to PostgreSQL."""
    return op.get_context().dialect.name == "postgresql"


def create_index(index: Index) -> None:
    """Create an index, unless it exists, while others write to its table.

    On PostgreSQL this ends the transaction of the revision. So whatever the revision does must
    be correct when it is done again: after a failure it is applied anew, from its beginning.
    """
    if not on_postgres():
        op.execute(CreateIndex(index, if_not_exists=True))
        return
    with _outside_transaction():
        # One that was interrupted leaves an index that is maintained and never used.
        if op.get_bind().execute(_IS_INVALID, {"name": index.name}).first() is not None:
            _drop_concurrently(index)
        index.dialect_options["postgresql"]["concurrently"] = True
        op.execute(CreateIndex(index, if_not_exists=True))


def drop_index(index: Index) -> None:
    """Drop an index, if it exists, while others use its table; otherwise as `create_index`."""
    if not on_postgres():
        op.execute(DropIndex(index, if_exists=True))
        return
    with _outside_transaction():
        _drop_concurrently(index)


def _drop_concurrently(index: Index) -> None:
    index.dialect_options["postgresql"]["concurrently"] = True
    op.execute(DropIndex(index, if_exists=True))


@contextmanager
def _outside_transaction() -> Iterator[None]:
    """Run statements in transactions of their own, which may wait for locks without a limit.

    They wait for transactions that are older. Nobody waits for them meanwhile.
    """
    with op.get_context().autocommit_block():
        limit = op.get_bind().scalar(text("SHOW lock_timeout"))
        op.execute("SET lock_timeout = 0")
        yield
        op.execute(f"SET lock_timeout = '{limit}'")
