"""File descriptors: a connection takes one, and some have to stay free.

The database, Redis, the file of keys and videos need descriptors too. A process that has given all
of them to clients can neither answer these nor learn which keys have been revoked.
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
"""What is asked for beside connections."""
_AT_LEAST = 128
"""What is kept free where that much is not to be had, or half of all."""


def allow_connections(wanted: int) -> None:
    """Raise this process's limit on open files, and so its workers', as far as it needs and may."""
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
    """A descriptor that is held for the moment when all others are taken."""

    def __init__(self) -> None:
        self._held: int | None = os.open(os.devnull, os.O_RDONLY)

    @contextmanager
    def given_up(self) -> Iterator[None]:
        """Have it free while the block runs."""
        self.close()
        try:
            yield
        finally:
            try:
                self._held = os.open(os.devnull, os.O_RDONLY)
            except OSError:  # somebody was quicker; the next block does without
                self._held = None

    def close(self) -> None:
        """Give it back."""
        held, self._held = self._held, None
        if held is not None:
            os.close(held)
