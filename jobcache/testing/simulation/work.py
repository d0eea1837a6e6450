"""What readers and writers do: one read, one write, or one change that is announced afterwards."""

from __future__ import annotations

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
        error = SourceUnavailable
        return document(await state.step("load", lambda: state.database, error=error, faults=fates))

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
    keys = () if state.simulator.late_fence else (state.key,)
    async with actor.process.cache.write(transaction, *keys) as write:
        version = await transaction.update()
        if state.simulator.late_fence:
            await write.fence(state.key)
        write.publish(state.key, document(version))
    return version
