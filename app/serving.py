"""What a server process needs to hold requests: connections, few pauses, and an end to them.

uvicorn ends in this order: it tells each connection to shut down, waits until all answers under way
are complete, and only then tells the application. Requests that are held open would have it wait
for nothing, until they were cut off. So the first connection that is told passes it on.

Rejected: a `uvicorn.Server` of our own. uvicorn's workers make theirs themselves.
"""

from __future__ import annotations

import gc
import logging
import sys
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

logger = logging.getLogger("app")

DRAIN = "drain"
"""What the application's way to let go of held requests is called in the state of its lifespan."""
POLLS = "polls"
"""The same, of what knows plain polls: see `HotPolls`."""

# By generation: net allocations, then collections of the younger. The first is small because what
# is given back counts against it: among requests that come and go it would not be reached for
# minutes, and then find all of them young, which took 25 to 120 ms.
_COLLECT_AFTER = 200, 20, 1_000
_OTHER_FILES = 1000  # connections that are not held, the database's and Redis', videos


def drain(state: Mapping[str, Any]) -> None:
    """Have the application let go of what it holds. Safe to call again."""
    let_go = state.get(DRAIN)
    if let_go is not None:
        let_go()


class DrainingH11(H11Protocol):
    """uvicorn's protocol for where httptools is missing."""

    def shutdown(self) -> None:
        """See uvicorn."""
        drain(self.app_state)
        super().shutdown()


def protocol() -> type[asyncio.Protocol]:
    """How HTTP is spoken."""
    try:
        from app.wire import HotWire  # noqa: PLC0415 - needs what may be missing
    except ImportError:  # where there is no httptools
        return DrainingH11
    return HotWire


def allow_connections(held: int) -> None:
    """Raise this process's limit on open files, and so its workers', as far as it needs and may."""
    if sys.platform == "win32":
        return  # there is no such limit
    import resource  # noqa: PLC0415 - Unix only

    needed = held + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < needed:
        logger.warning(
            "only %d files may be open, too few to hold %d requests (JOBCACHE_HELD)", most, held
        )


def space_out_collections() -> None:
    """Have Python look for garbage cycles less often; to be called when all is imported.

    A full collection walks through every object there is, and nothing else runs meanwhile. What
    thousands of held requests keep alive makes that long, and what comes and goes with them makes
    it often, by default; yet they leave no cycles behind. So the young are looked at while they are
    few, the old after many more allocations, and what the process began with not any more.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)
