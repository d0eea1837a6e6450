"""The lifespan state of ASGI: what the application gives to the server's connections.

uvicorn copies this state to each connection. uvicorn stops in this order: it tells each connection
to shut down, waits until all answers under way are complete, and only then notifies the
application. Held requests would keep it waiting until they were cut off. So the first connection
that shuts down ends them, with the function that the application has put here.

Rejected: a subclass of `uvicorn.Server`. uvicorn's workers create their servers themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

DRAIN = "drain"
"""The key of the function that ends held requests."""
FAST_PATH = "fast_path"
"""The key of the object that answers polls; absent where the fast protocol is disabled."""
LIMITS = "limits"
"""The key of the `ConnectionLimits`."""


def drain(state: Mapping[str, Any]) -> None:
    """End the requests that the application holds. Safe to call again."""
    end_held_requests = state.get(DRAIN)
    if end_held_requests is not None:
        end_held_requests()
