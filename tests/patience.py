"""Limits that a busy machine keeps, for caches of tests and of the programs that tests start."""

from __future__ import annotations

from collections.abc import Iterator

from jobcache.backends.redis.backend import RedisBackend
from jobcache.resilience.guarded_backend import GuardedBackend

_SECONDS = 30.0
_LIMITS = {
    GuardedBackend: ("deadline", "fence_deadline", "probe_limit"),
    RedisBackend: ("pool_wait", "socket_limit"),
}


def longer_limits() -> Iterator[tuple[dict[str, object], str, float]]:
    """Yield the default arguments to change, as a dictionary, a name in it and seconds.

    They are the limits of operations on a store. The usual ones are too short for a busy machine:
    a read that misses one is answered from the source, which most tests do not expect.
    """
    for owner, names in _LIMITS.items():
        defaults: dict[str, object] | None = owner.__init__.__kwdefaults__
        assert defaults is not None
        for name in names:
            assert name in defaults
            yield defaults, name, _SECONDS
