"""Limits that a busy machine keeps, for caches of tests and of the programs that tests start."""

from __future__ import annotations

from collections.abc import Iterator

from jobcache.backends.memcached import MemcachedBackend
from jobcache.backends.postgres.feed import PostgresFeed
from jobcache.backends.redis.backend import RedisBackend
from jobcache.resilience.guarded_backend import GuardedBackend

_SECONDS = 30.0
_LIMITS = {
    GuardedBackend: ("deadline", "fence_deadline", "probe_limit"),
    MemcachedBackend: ("socket_limit",),
    PostgresFeed: ("own_report", "silence"),
    RedisBackend: ("pool_wait", "socket_limit"),
}


def _defaults(owner: type) -> dict[str, object]:
    found: dict[str, object] | None = owner.__init__.__kwdefaults__  # type: ignore[misc]
    assert found is not None
    return found


_USUAL = {
    (owner, name): _defaults(owner)[name] for owner, names in _LIMITS.items() for name in names
}


def limits(*, usual: bool = False) -> Iterator[tuple[dict[str, object], str, object]]:
    """Yield the default arguments to set, as a dictionary, a name in it and seconds.

    They are the limits of operations on a store. The usual ones are too short for a busy machine:
    a read that misses one is answered from the source, which most tests do not expect.
    """
    for (owner, name), seconds in _USUAL.items():
        yield _defaults(owner), name, seconds if usual else _SECONDS
