"""A transaction of the asynchronous database, opened in a thread without an event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anyio.from_thread import BlockingPortal
    from sqlalchemy.ext.asyncio import AsyncConnection

    from app.db.database import Database


class _RolledBack(Exception):  # noqa: N818 - rolls a transaction back, within this module
    pass


@contextmanager
def blocking_transaction(portal: BlockingPortal, database: Database) -> Iterator[AsyncConnection]:
    """Open a transaction: committed when the block ends, rolled back when it raises.

    The portal runs the statements of the block: ``portal.call(connection.execute, statement)``.

    One task opens and ends the transaction, because its time limit cancels that task. Rejected:
    `BlockingPortal.wrap_async_context_manager`. It leaves a block that was cancelled as if it had
    ended, and what was done until then would be committed.

    Raises:
        DatabaseUnavailable: as for `Database.transaction`.
    """
    entered: Future[AsyncConnection] = Future()
    left = asyncio.Event()
    failed = False

    async def hold() -> None:
        try:
            async with database.transaction() as connection:
                entered.set_result(connection)
                await left.wait()
                if failed:
                    raise _RolledBack  # noqa: TRY301 - through the transaction
        except BaseException as error:
            if not entered.done():
                entered.set_exception(error)
            raise

    held = portal.start_task_soon(hold)
    connection = entered.result()
    try:
        yield connection
    except BaseException:
        failed = True
        portal.call(left.set)
        with suppress(_RolledBack):
            held.result()  # an error of the transaction itself explains the block's
        raise
    portal.call(left.set)
    held.result()
