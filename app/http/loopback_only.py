"""Restriction of a service without API keys to this machine, whatever address it listens on.

`python -m app serve` refuses to listen on other addresses. Other servers have their own options,
and `fastapi run` listens on all addresses by default.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import TYPE_CHECKING

from app.http.common_headers import NOSNIFF
from app.http.problems import problem

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

_REFUSED = (
    "Without API keys this service answers on loopback only: set JOBCACHE_API_KEYS,"
    " or JOBCACHE_INSECURE=1 to answer everybody."
)


def is_local(server: tuple[str, int | None] | None) -> bool:
    """Return False for a connection to an address of this machine that others may reach.

    Args:
        server: the local address of the connection, as `scope["server"]` of ASGI has it.
    """
    return server is None or _is_local(server[0])


@lru_cache(maxsize=64)  # addresses of this machine
def _is_local(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a Unix socket, or no socket at all
        return True
    mapped = getattr(address, "ipv4_mapped", None)
    return (address if mapped is None else mapped).is_loopback


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a request that came to an address of which this service answers nothing."""
    if scope["type"] == "http":
        refusal = problem(403, _REFUSED, instance=scope["path"])
        refusal.raw_headers.append(NOSNIFF)
        await refusal(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 1008})
