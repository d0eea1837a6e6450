"""Statements that change many rows at once: each row is named, or the statement is refused.

The session cannot see which rows such a statement changes, unless the statement returns them. To
select the rows before was rejected: the statement may change others.

    SELECT the ids of unfinished rows: 1, 2; another transaction inserts row 3 and commits
    UPDATE all unfinished rows: 1, 2, 3; the key of row 3 is not fenced
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Delete, Insert, Update

from jobcache.errors import WriteMisuse
from jobcache.orm.sqlalchemy.tracker import check_delete

if TYPE_CHECKING:
    from sqlalchemy import Result
    from sqlalchemy.orm import Mapper, ORMExecuteState

    from jobcache.orm.sqlalchemy.binding import Binding
    from jobcache.orm.sqlalchemy.tracker import ChangeTracker


def execute_bulk(tracker: ChangeTracker, state: ORMExecuteState) -> Result[Any] | None:
    """Execute a statement that changes rows of bound classes, and note the rows.

    `update(Export)` also raises the versions of the rows.

    Returns:
        The result; None if the statement does not concern a bound class. Then nothing was executed.

    Raises:
        WriteMisuse: the statement does not say which rows it has changed, or may not raise their
            versions.
    """
    statement: Any = state.statement
    if state.is_from_statement:
        statement = statement.element
    if not isinstance(statement, Insert | Update | Delete):
        return None
    table: Any = statement.table
    binding = next((each for each in tracker.bindings if table in each.tables), None)
    if binding is None:
        return None
    _check(statement, state, binding)
    mapper: Mapper[Any] = binding.mapper
    connection = state.session.connection(bind_arguments={"mapper": mapper})
    tracker.check(mapper, connection)
    if isinstance(statement, Delete):
        check_delete(mapper, connection.dialect)
    if isinstance(statement, Update):
        version = getattr(binding.mapped, binding.version)
        statement = statement.values({binding.version: version + 1})
    identity = [
        getattr(binding.mapped, name).label(f"jobcache_{name}") for name in binding.primary_key
    ]
    result = state.invoke_statement(statement.returning(*identity))
    wanted = len(result.keys()) - len(identity)
    frozen = result.freeze()
    for row in frozen():
        tracker.outdated(mapper, row[wanted:])
    return frozen().columns(*range(wanted))


def _check(statement: Any, state: ORMExecuteState, binding: Binding[Any]) -> None:  # noqa: ANN401 - of three types
    name = binding.mapped.__name__
    many = isinstance(state.parameters, list)
    if (
        state.is_from_statement
        or state.bind_mapper is not binding.mapper
        or (many and not isinstance(statement, Insert))
    ):
        raise WriteMisuse(
            f"this statement may change rows of {name} without their versions: change the objects,"
            f" or execute update({name}).where(…).values(…).returning({name})"
        )
    if getattr(statement, "_post_values_clause", None) is not None:
        raise WriteMisuse(
            f"ON CONFLICT or ON DUPLICATE KEY may change rows of {name} without their versions:"
            " load the object, and change it or add another one"
        )
    if not statement.exported_columns:
        raise WriteMisuse(
            f"this statement does not say which rows of {name} it changes: add .returning({name})"
        )
