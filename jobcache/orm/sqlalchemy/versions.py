"""Checks that a class has versions that grow in the order of the commits.

The mapper counts them itself (`version_id_col`): each `UPDATE` raises the version of the row, and
changes nothing if another transaction has raised it meanwhile. So each version of a row belongs to
one commit, and a later commit has a higher one. Everything else is refused:

- timestamps: the clock is read before the commit, and another transaction may commit in between;
- `xmin` of PostgreSQL: it numbers the beginnings of transactions, and not their commits;
- random values, such as UUIDs: they have no order.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Integer, Uuid

from jobcache.errors import JobCacheError
from jobcache.protocol.document import VERSION_LIMIT

if TYPE_CHECKING:
    from sqlalchemy import Column, Table
    from sqlalchemy.engine import Dialect
    from sqlalchemy.orm import Mapper

_LARGEST_INTEGER = 2**31 - 1
_PROBES = (1, VERSION_LIMIT // 2)
"""Versions after which a generator must count on."""


class BindingError(JobCacheError, ValueError):
    """A mapped class cannot be bound. The message says why, and what to change."""


def count_from_clock(version: int | None) -> int:
    """Return the version after `version`; the first one is the time in milliseconds.

    A `version_id_generator` for tables in which a primary key may be used again after a delete. The
    new row then begins with a higher version than the old one had, so that no reader takes it for
    the old one. Needs a column of type `BigInteger`.

    That is true unless the clock is set back by more than the old row has lived, or the old row was
    changed a thousand times a second.
    """
    return time.time_ns() // 1_000_000 if version is None else version + 1


def version_attribute(mapper: Mapper[Any]) -> str:
    """Return the name of the attribute that holds the version of a mapped class.

    Raises:
        BindingError: the class has no versions, or they are not in the order of the commits.
    """
    name = mapper.class_.__name__
    column: Column[Any] | None = mapper.version_id_col  # type: ignore[assignment]
    if column is None:
        raise BindingError(
            f"{name} has no version: add a column `version: Mapped[int] = mapped_column()`, and"
            ' `__mapper_args__ = {"version_id_col": version}`'
        )
    if getattr(column, "system", False) or column.name == "xmin":
        raise BindingError(
            f"{name}.{column.name} does not grow in the order of the commits, because it numbers"
            " the beginnings of transactions: use an integer column that the mapper counts"
        )
    if not isinstance(column.type, Integer):
        raise BindingError(
            f"{name}.{column.name} is of type {column.type!r}: a version must be an integer that"
            " each change raises by 1"
        )
    generator = mapper.version_id_generator
    if not callable(generator) or not _counts(generator):
        raise BindingError(
            f"the version_id_generator of {name} does not count: leave it out, or use"
            " jobcache.orm.sqlalchemy.count_from_clock"
        )
    if generator(None) > _LARGEST_INTEGER and not isinstance(column.type, BigInteger):
        raise BindingError(f"{name}.{column.name} must be a BigInteger for this generator")
    return mapper.get_property_by_column(column).key


def _counts(generator: Any) -> bool:  # noqa: ANN401 - a function of the user's
    try:
        following = [generator(each) for each in _PROBES]
        first = generator(None)
    except Exception:  # noqa: BLE001 - of a generator that does not expect numbers
        return False
    return following == [each + 1 for each in _PROBES] and type(first) is int and first > 0


def key_may_return(mapper: Mapper[Any], dialect: Dialect) -> bool:
    """Return whether a row that is inserted after a delete may have the same key and version.

    row 7 is deleted at version 5; another row 7 is inserted with version 1
    a client that has seen version 5 of the old row takes version 5 of the new one for it
    """
    generator = mapper.version_id_generator
    assert callable(generator)  # noqa: S101 - checked when the class was bound
    if generator(None) > 1:
        return False
    table: Table = mapper.base_mapper.local_table  # type: ignore[assignment]
    if any(isinstance(column.type, Uuid) for column in table.primary_key.columns):
        return False
    if table.autoincrement_column is None:
        return True
    return dialect.name == "sqlite" and not table.dialect_options["sqlite"]["autoincrement"]
