"""File descriptors: each connection uses one, and some have to stay free.

The database, Redis, the key file and videos need descriptors too. A process whose descriptors are
all used by clients can neither answer them nor read which keys have been revoked.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("app")

_OTHERS = 1000
"""Descriptors that are requested in addition to those of connections."""
_AT_LEAST = 128
"""Descriptors that are kept free if so many are not available, or half of all."""


def allow_connections(wanted: int) -> None:
    """Raise the limit on open files of this process and its workers, if needed and allowed."""
    if sys.platform == "win32":
        return  # there is no such limit
    import resource  # noqa: PLC0415 - Unix only

    needed = wanted + _OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < needed:
        logger.warning(
            "only %d files may be open: %d connections are accepted, not %d"
            " (JOBCACHE_MAX_CONNECTIONS)",
            most,
            affordable_connections(wanted),
            wanted,
        )


def affordable_connections(wanted: int) -> int:
    """Return how many of the wanted connections leave enough descriptors free."""
    if sys.platform == "win32":
        return wanted
    import resource  # noqa: PLC0415 - Unix only

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    free = min(_AT_LEAST, soft // 2)
    return max(1, min(wanted, soft - free))


class SpareDescriptor:
    """A descriptor that is kept for the moment when all others are in use."""

    def __init__(self) -> None:
        self._held: int | None = os.open(os.devnull, os.O_RDONLY)

    @contextmanager
    def given_up(self) -> Iterator[None]:
        """Release the descriptor while the block runs."""
        self.close()
        try:
            yield
        finally:
            try:
                self._held = os.open(os.devnull, os.O_RDONLY)
            except OSError:  # another thread was faster; the next block does without
                self._held = None

    def close(self) -> None:
        """Release the descriptor."""
        held, self._held = self._held, None
        if held is not None:
            os.close(held)
