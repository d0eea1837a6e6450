"""A backend that keeps nothing. Every read is a load: for comparisons, and to disable caching."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobcache.protocol.backend import LeaseResult, PublishResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobcache.protocol.entry import Entry
    from jobcache.settings import CacheSettings


class NullBackend:
    """A backend of cells that are always empty."""

    name = "null"

    async def get(self, key: str) -> Entry | None:  # noqa: ARG002 - the contract's names
        """Return None."""
        return None

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:  # noqa: ARG002
        """Return no entries."""
        return {}

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:  # noqa: ARG002
        """Grant the lease to everyone: nothing that is published under it is kept."""
        return LeaseResult.ACQUIRED

    async def fence(self, key: str, token: str) -> None:
        """Do nothing: no entry could be served."""

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:  # noqa: ARG002
        """Drop the entry."""
        return PublishResult.NOTHING

    async def purge(self, keys: Sequence[str]) -> int:  # noqa: ARG002
        """Return 0: no cell holds anything."""
        return 0

    async def purge_all(self) -> int:
        """Return 0: no cell holds anything."""
        return 0

    async def aclose(self) -> None:
        """Do nothing: there is nothing to release."""


def from_settings(settings: CacheSettings) -> NullBackend:  # noqa: ARG001 - a factory's shape
    """Return the backend that is registered as "null"."""
    return NullBackend()
