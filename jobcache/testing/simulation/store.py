"""The backend as one process of a simulation uses it: each operation is a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from jobcache.errors import CacheUnavailable
from jobcache.protocol import cell
from jobcache.protocol.entry import UNVERSIONED
from jobcache.testing.scenarios import version_in
from jobcache.testing.simulation.actors import ACTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jobcache.protocol.backend import LeaseResult, PublishResult
    from jobcache.protocol.entry import Entry
    from jobcache.testing.simulation.actors import Process
    from jobcache.testing.simulation.state import State

T = TypeVar("T")


class Store:
    """Pass the operations of one process to the backend, each as a step."""

    name = "explored"

    def __init__(self, state: State, process: Process) -> None:
        self._state = state
        self._process = process

    async def _step(
        self,
        label: str,
        act: Callable[[], T],
        *,
        detail: str = "",
        changes: bool = True,
        version: int | None = None,
    ) -> T:
        return await self._state.step(
            label,
            act,
            detail=detail,
            error=CacheUnavailable,
            faults=tuple(self._state.fates(changes=changes)),
            changes=changes,
            version=version,
        )

    async def get(self, key: str) -> Entry | None:
        """Get an entry, as a step."""
        state = self._state
        return await self._step(
            "get", lambda: state.carry_out(state.subject.backend.get(key)), changes=False
        )

    async def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """Get entries, as one step."""
        state = self._state
        return await self._step(
            "get", lambda: state.carry_out(state.subject.backend.get_many(keys)), changes=False
        )

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:
        """Take a lease, as a step."""
        state = self._state

        def act() -> Entry | LeaseResult:
            state.cell = cell.lease(state.cell, token).cell
            return state.ask(state.subject.backend.lease(key, token))

        return await self._step("lease", act, detail=f" {token}")

    async def fence(self, key: str, token: str) -> None:
        """Fence the cell, as a step."""
        state = self._state
        actor = state.tokens[token] = ACTOR.get()

        def act() -> None:
            actor.fenced = True
            state.cell = cell.fence(state.cell, token).cell
            state.ask(state.subject.backend.fence(key, token))

        await self._step("fence", act, detail=f" {token}")

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:
        """Publish or withdraw, as a step."""
        state = self._state

        def act() -> PublishResult:
            state.cell = cell.publish(state.cell, token, entry).cell
            published = state.ask(state.subject.backend.publish(key, token, entry))
            if version is not None:
                state.invariants.published(version)
            return published

        # Without a body, nobody but the reader knows which version an unversioned entry has.
        known = entry is not None and (entry.version != UNVERSIONED or entry.encoded_body != b"")
        version = version_in(entry) if entry is not None and known else None
        label = (
            "withdraw" if entry is None else "publish" if version is None else f"publish v{version}"
        )
        detail = f" {token}" if entry is None else f" {token} {entry.keep_ms} {entry.token}"
        return await self._step(label, act, detail=detail, version=version)

    async def purge(self, keys: Sequence[str]) -> int:
        """Purge, as a step."""
        state = self._state

        def act() -> int:
            state.cell = cell.purge(state.cell).cell
            purged = state.ask(state.subject.backend.purge(keys))
            if state.simulator.unversioned:
                # Every value that is stored from now on was loaded after the purge.
                state.invariants.published(state.database)
            return purged

        # An invalidation that fails leaves a writer's version unannounced.
        actor = ACTOR.get()
        version = state.database if state.simulator.unversioned and actor.writes else None
        return await self._step("purge", act, version=version)

    async def purge_all(self) -> int:
        """Lose the cell: the simulation has one key."""
        state = self._state

        def act() -> int:
            state.evict()
            return 1

        return await self._step("purge all", act)

    async def ping(self) -> None:
        """Ping, as a step."""
        await self._step("ping", lambda: None, changes=False)

    async def aclose(self) -> None:
        """Do nothing: the owner of the subject closes it."""
