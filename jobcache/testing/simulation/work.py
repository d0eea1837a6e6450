"""What readers and writers do: one read, one write, or one change that is announced afterwards."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from jobcache.errors import CacheUnavailable, SourceUnavailable
from jobcache.testing.simulation.source import FRESH, Transaction, document

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jobcache.protocol.document import Document
    from jobcache.testing.simulation.actors import Actor
    from jobcache.testing.simulation.state import State


async def read(state: State, actor: Actor) -> int:
    """Read as a reader does, and return the version."""

    async def load() -> Document:
        fates = ("lost",) if "load" in state.simulator.kinds else ()
        error, line = SourceUnavailable, actor.process.line
        if line is None:
            select = lambda: state.database  # noqa: E731 - reads best beside its use
            return document(await state.step("load", select, error=error, faults=fates))
        loading, completed = line.begin_load(), False
        try:
            select = partial(line.select, loading)
            version = await state.step("load", select, error=error, faults=fates)
            await state.step("row", lambda: None)  # its publish follows at once
            completed = True
        finally:
            line.end_load(loading, completed=completed)
        return document(version)

    async def load_many(keys: Sequence[str]) -> Mapping[str, Document]:
        return dict.fromkeys(keys, await load())

    async def load_value() -> int:
        return (await load()).version

    cache = actor.process.cache
    if state.simulator.unversioned:
        return await cache.get_or_load(state.key, load_value, ttl=FRESH)
    if actor.name[0] == "M":
        return (await cache.read_many([state.key], load_many))[state.key].entry.version
    return (await cache.read(state.key, load)).entry.version


async def write(state: State, actor: Actor) -> int:
    """Write as a writer does, and return the version."""
    transaction = Transaction(state, actor)
    if state.simulator.unversioned:
        async with transaction:
            version = await transaction.update()
        try:
            await actor.process.cache.invalidate(state.key)
        except CacheUnavailable:
            actor.unannounced = True
        return version
    notifies = state.simulator.postgres and not state.simulator.unnotified
    late_fence = state.simulator.late_fence or notifies
    keys = () if late_fence else (state.key,)
    async with actor.process.cache.write(transaction, *keys) as write:
        notification = write.notification(state.key) if notifies else None
        version = await transaction.update()
        if notification is not None:
            transaction.notification = notification.channel, notification.payload
        if late_fence:
            await write.fence(state.key, notified=notifies)
        write.publish(state.key, document(version))
    return version
