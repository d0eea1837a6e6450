"""A backend that keeps nothing: every read is a load. The baseline, and the way to switch off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobcache.protocol.backend import Entry, LeaseResult, PublishResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobcache.settings import CacheSettings


class NullBackend:
    """Always misses, and accepts everything."""

    name = "null"

    async def get(self, key: str) -> Entry | None:  # noqa: ARG002 - the contract's names
        """Nothing."""
        return None

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:  # noqa: ARG002
        """Nothing."""
        return {}

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:  # noqa: ARG002
        """Granted to everyone: what is published under it is not kept."""
        return LeaseResult.ACQUIRED

    async def fence(self, key: str, token: str) -> None:
        """There is nothing to keep from being served."""

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:  # noqa: ARG002
        """Not kept."""
        return PublishResult.NOTHING

    async def purge(self, keys: Sequence[str]) -> int:  # noqa: ARG002
        """There is nothing to drop."""
        return 0

    async def purge_all(self) -> int:
        """There is nothing to drop."""
        return 0

    async def aclose(self) -> None:
        """There is nothing to let go of."""


def from_settings(settings: CacheSettings) -> NullBackend:  # noqa: ARG001 - a factory's shape
    """The factory behind the name "null"."""
    return NullBackend()
