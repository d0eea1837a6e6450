"""A lock on a database that tells whether this process is the only one that uses it.

The operating system or the server releases it when the process ends, however that happens, so the
next process need not wait. A process that is stopped (SIGSTOP) keeps it.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection


class Hold(Enum):
    """How a process holds the lock."""

    NONE = "none"
    SHARED = "shared"
    ALONE = "alone"


class ProcessLock(Protocol):
    """A lock on a database, shared by several processes or held by one alone."""

    async def try_alone(self) -> Hold:
        """Try to hold the lock alone, and return how it is held now.

        Raises:
            DatabaseUnavailable: it is not held any more.
        """

    async def share(self, seconds: float) -> Hold:
        """Share the lock, however it is held now.

        If another process holds it alone, ask that process for a share, and wait up to `seconds`.

        Raises:
            DatabaseUnavailable: as for `try_alone`.
        """

    async def check(self) -> bool:
        """Find out whether the lock is still held, and return whether a process asks for a share.

        Raises:
            DatabaseUnavailable: as for `try_alone`.
        """

    async def join(self, connection: AsyncConnection) -> None:
        """Hold the lock within a transaction, if the process itself cannot hold it."""

    async def aclose(self) -> None:
        """Release the lock."""
