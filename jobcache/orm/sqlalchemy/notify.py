"""The part of a statement that notifies, on backend "postgres"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import Text, func, literal, literal_column

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from jobcache.protocol.capabilities import Notification


class NotifyingWrite(Protocol):
    """A write of `JobCache`."""

    def notification(self, *keys: str) -> Notification | None:
        """Return how the transaction can tell all processes of its keys."""


def notify(
    write: NotifyingWrite,
    *keys: str | ColumnElement[Any],
) -> list[ColumnElement[Any]]:
    """Return columns for a statement's RETURNING, with which it notifies of the rows it changes.

        async with cache.write(engine.begin()) as write:
            row = (await write.transaction.execute(
                update(jobs).where(jobs.c.id == 7).values(…)
                .returning(*jobs.c, *notify(write, "job:7"))
            )).one()
            await write.fence("job:7", notified=True)
            write.publish("job:7", document(row))

    On backends that fence, there are no such columns.

    Args:
        write: the write.
        keys: the keys; or columns and expressions whose value is a key, such as
            `"job:" + cast(jobs.c.id, Text)` for a row that the statement inserts.
    """
    known = [key for key in keys if isinstance(key, str)]
    told = write.notification(*known)
    if told is None:
        return []
    computed = [literal(told.prefix, Text) + key for key in keys if not isinstance(key, str)]
    payloads: list[Any] = [told.payload, *computed] if known else computed
    # The setting keeps a trigger of the table from repeating the keys.
    said = (func.set_config(told.setting, payload, literal_column("true")) for payload in payloads)
    return [func.pg_notify(told.channel, each) for each in said]
