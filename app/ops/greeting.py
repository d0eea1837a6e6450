"""The log line of a start: where the service listens, its pages, its backend and its database."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

from app.db.url import scheme_and_host
from app.http.listening import shown
from jobcache.backends.registry import REMOTE
from jobcache.errors import redacted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.settings import Settings

_PAGES = {"page": "/", "API": "/docs", "statistics": "/api/v2/cache/stats"}


def greeting(chosen: Settings, sockets: Sequence[socket.socket]) -> str:
    """Return the line of `python -m app serve`."""
    processes = "1 worker" if chosen.workers == 1 else f"{chosen.workers} workers"
    pages = _pages(_base_url(sockets[0]))
    return f"listening on {shown(sockets)}: {pages}; {_stores(chosen)}, {processes}"


def greeting_elsewhere(chosen: Settings) -> str:
    """Return the line for another server, which itself chooses addresses and workers."""
    return f"serving {_pages('')}; {_stores(chosen)}"


def _stores(chosen: Settings) -> str:
    backend = chosen.cache.backend
    if backend in REMOTE:
        backend += f" ({redacted(chosen.cache.redis_url)})"
    elif backend == "memcached":
        backend += f" ({redacted(chosen.cache.memcached_url)})"
    return f"backend {backend}, database {scheme_and_host(chosen.database_url)}"


def _pages(base: str) -> str:
    return ", ".join(f"{name} {base}{path}" for name, path in _PAGES.items())


def _base_url(listener: socket.socket) -> str:
    """Return the beginning of a URL that can be opened on this machine."""
    if listener.family not in {socket.AF_INET, socket.AF_INET6}:
        return "http://localhost"  # a client of a Unix socket may name any host
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.is_unspecified:  # all addresses, loopback among them
        host = "127.0.0.1" if address.version == 4 else "::1"  # noqa: PLR2004 - IPv4
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
