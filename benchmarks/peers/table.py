"""The table of peers, and which of them are installed here."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module, metadata
from typing import TYPE_CHECKING

from benchmarks.results import Missing

if TYPE_CHECKING:
    from benchmarks.results import Kind, Series

MODULES = {
    "aiocache": "aiocache",
    "cachebox": "cachebox",
    "cachetools": "cachetools",
    "cashews": "cashews",
    "diskcache": "diskcache",
    "dogpile.cache": "dogpile.cache",
    "fastapi-cache2": "fastapi_cache",
    "valkey-glide": "glide",
}
"""What to import, by package."""


@dataclass(frozen=True)
class Route:
    """A peer's cached answer in a FastAPI route.

    Attributes:
        package: of the peer.
        store: where it keeps answers: "memory", "disk" or "redis".
        kind: see `benchmarks.results.Series`.
        how: see `benchmarks.results.Series`.
    """

    package: str
    store: str
    kind: Kind
    how: str


_DECORATED = "its decorator on the route, which returns a dictionary"
_BYTES = "the body's bytes cached, and sent as they are"
_BY_HAND = "get, or load and set, in the route, which returns a dictionary"
_THREAD = f"{_BY_HAND}; in a thread, for it blocks"

ROUTES = {
    "fastapi-cache2, memory": Route("fastapi-cache2", "memory", "peer", _DECORATED),
    "cashews, memory": Route("cashews", "memory", "peer", _DECORATED),
    "aiocache, memory": Route("aiocache", "memory", "peer", _DECORATED),
    "cachebox": Route("cachebox", "memory", "peer", _DECORATED),
    "cachetools": Route("cachetools", "memory", "peer", _BY_HAND),
    "dogpile.cache, memory": Route("dogpile.cache", "memory", "peer", _BY_HAND),
    "diskcache": Route("diskcache", "disk", "peer", _THREAD),
    "cashews, memory, bytes": Route("cashews", "memory", "tuned peer", _BYTES),
    "aiocache, memory, bytes": Route("aiocache", "memory", "tuned peer", _BYTES),
    "cachetools, bytes": Route("cachetools", "memory", "tuned peer", _BYTES),
    "fastapi-cache2, Redis": Route("fastapi-cache2", "redis", "peer", _DECORATED),
    "cashews, Redis": Route("cashews", "redis", "peer", _DECORATED),
    "aiocache, Redis": Route("aiocache", "redis", "peer", _DECORATED),
    "dogpile.cache, Redis": Route("dogpile.cache", "redis", "peer", _THREAD),
    "cashews, Redis, bytes": Route("cashews", "redis", "tuned peer", _BYTES),
    "aiocache, Redis, bytes": Route("aiocache", "redis", "tuned peer", _BYTES),
}
"""By name. What each does is in `benchmarks.peers.routes`."""


def is_peer(one: Series) -> bool:
    """Return True for a peer that is set up as its documentation recommends."""
    return one.kind == "peer"


def is_peer_on_redis(one: Series) -> bool:
    """Return True for such a peer if its route keeps answers in Redis."""
    route = ROUTES.get(one.subject)
    return is_peer(one) and route is not None and route.store == "redis"


def absent() -> list[Missing]:
    """Return the peers that cannot be imported here, and the reasons."""
    found = []
    for package, module in MODULES.items():
        try:
            import_module(module)
        except Exception as error:  # noqa: BLE001 - a peer may raise what it likes; it is named
            found.append(Missing(package, f"{type(error).__name__}: {error}".splitlines()[0]))
    return found


def versions(*others: str) -> dict[str, str]:
    """The versions of those of the peers and of the other packages that are installed."""
    found = {}
    for package in sorted([*MODULES, *others]):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
