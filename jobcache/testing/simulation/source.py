"""The source of truth of a simulation: one row with a version, and transactions on it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Self

from jobcache.protocol.cell import Fence
from jobcache.protocol.document import Document
from jobcache.testing.invariants import Commit

if TYPE_CHECKING:
    from jobcache.testing.simulation.actors import Actor
    from jobcache.testing.simulation.state import State


FRESH = 30.0
"""Seconds for which an entry is fresh."""


class UpdateFailedError(ConnectionError):
    """The database would not take the update; nothing was committed."""


class Transaction:
    """Raises the version under the row's lock, and commits when it is left normally."""

    def __init__(self, state: State, actor: Actor) -> None:
        self.state = state
        self.actor = actor
        self.notification: tuple[str, str] | None = None  # what it notifies of, with `postgres`

    async def __aenter__(self) -> Self:
        return self

    async def update(self) -> int:
        """Raise the version, and return the new one."""
        state = self.state

        def lock() -> int:
            state.row_lock = self
            self.actor.fenced = self.actor.fenced or state.simulator.postgres
            return state.database + 1

        faults = ("lost",) if "commit" in state.simulator.kinds else ()
        free = lambda: state.row_lock is None  # noqa: E731 - reads best beside its use
        return await state.step("update", lock, error=UpdateFailedError, faults=faults, ready=free)

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            self.roll_back()
            return
        faults = ("lost", "unanswered", "late") if "commit" in self.state.simulator.kinds else ()
        await self.state.step(
            "commit",
            self.commit,
            error=ConnectionError,
            faults=faults,
            changes=True,
            abandon=self.roll_back,
        )

    def commit(self) -> None:
        """Commit: from now on every load returns the new version."""
        state = self.state
        stands = isinstance(state.cell, Fence) and any(
            state.tokens.get(token) is self.actor for token in state.cell.tokens
        )
        state.database += 1
        state.row_lock = None
        cut_off = partial(state.cut_off, self.actor, state.database)
        if state.simulator.postgres:
            cut_off = partial(self._is_unannounced, state.database, ended=self.actor.task is None)
            stands = self.notification is not None
            state.servers.committed(state.database, self.notification)
        state.invariants.committed(Commit(state.database, stands, cut_off))

    def _is_unannounced(self, version: int, *, ended: bool) -> bool:
        """Return whether nobody is left who could notify of the version."""
        left = self.actor.process.dead or ended
        if self.state.simulator.unversioned:
            left = left or self.actor.unknown  # it was cut off before its invalidation
        return left and version in self.state.servers.unannounced

    def roll_back(self) -> None:
        """Roll back the transaction."""
        if self.state.row_lock is self:
            self.state.row_lock = None


def document(version: int) -> Document:
    """Return the document of the source."""
    return Document(version, "acme", b"{}", "moving", 2)
