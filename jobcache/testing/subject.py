"""What a test gives to the suite: a backend, and what a test does to it that no caller can."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from jobcache.protocol.backend import CacheBackend


class Subject(Protocol):
    """A backend under test."""

    @property
    def backend(self) -> CacheBackend:
        """The backend; at first all of its cells are empty."""

    async def evict(self, key: str) -> None:
        """Lose the cell of `key`, as memory pressure or a restart would."""

    async def elapse(self, seconds: float) -> None:
        """Let lifetimes run on by `seconds`, without waiting."""


@runtime_checkable
class NotifiedSubject(Protocol):
    """A subject whose backend learns of each commit from the transaction itself."""

    async def committed(self, key: str, writer: str) -> None:
        """Do what the transaction of a writer does at its commit, besides the change."""
