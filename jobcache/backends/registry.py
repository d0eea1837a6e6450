"""From settings, by name, to a backend.

Backends are found under an entry-point group: each name leads to a factory that takes
`CacheSettings`. A backend that can be pinged has a store that can be away, so it is put behind a
guard.
"""

from __future__ import annotations

import asyncio
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol

from jobcache.backends import memory
from jobcache.backends.tiered import TieredBackend
from jobcache.errors import CacheError, NamespaceConflict, SettingsError
from jobcache.protocol.capabilities import SupportsPing
from jobcache.resilience.guarded_backend import GuardedBackend
from jobcache.settings import GROUP, backend_names

if TYPE_CHECKING:
    from jobcache.protocol.backend import CacheBackend
    from jobcache.settings import CacheSettings

REMOTE = frozenset({"redis", "tiered"})
"""The backends whose store several services can share."""
_PATIENCE = 1.0  # seconds
_EXTRAS = {
    "memcached": "memcached",
    "postgres": "postgres",
    "redis": "redis",
    "tiered": "redis",
}


class Factory(Protocol):
    """A function that an entry point of the group names."""

    def __call__(self, settings: CacheSettings) -> CacheBackend:
        """Return a backend that is not connected yet.

        Raises:
            SettingsError: the settings cannot be used.
        """


def make_backend(settings: CacheSettings) -> CacheBackend:
    """Return the backend that `settings` name. It is not connected yet.

    Raises:
        SettingsError: no backend has that name, its settings cannot be used, or the library that it
            needs is not installed.
    """
    name = settings.backend
    for point in entry_points(group=GROUP, name=name):
        try:
            factory: Factory = point.load()
            backend = factory(settings)
        except ImportError as error:
            allowed = f"its library is missing ({error})"
            if name in _EXTRAS and "pip install" not in allowed:
                allowed += f"; pip install 'jobcache[{_EXTRAS[name]}]'"
            raise SettingsError("JOBCACHE_BACKEND", name, allowed) from error
        return GuardedBackend(backend) if isinstance(backend, SupportsPing) else backend
    raise SettingsError("JOBCACHE_BACKEND", name, f"one of {', '.join(backend_names())}")


async def check_namespace(settings: CacheSettings) -> None:
    """Find out whether the store of "redis" or "tiered" belongs to another source.

    Says nothing of a store that is away: the backend will, when it is used.

    Raises:
        NamespaceConflict: it does.
        SettingsError: the URL of Redis cannot be used.
    """
    try:
        from jobcache.backends.redis.backend import from_settings  # noqa: PLC0415 - as below
    except ImportError:
        return
    backend = from_settings(settings)
    try:
        async with asyncio.timeout(_PATIENCE):
            await backend.ping()
    except NamespaceConflict:
        raise
    except (CacheError, TimeoutError):
        pass
    finally:
        await backend.aclose()


def tiered(settings: CacheSettings) -> CacheBackend:
    """Return the backend "tiered": `memory` before `redis`.

    This factory is here and not in `tiered.py`, because no backend imports another.

    Raises:
        SettingsError: the URL of Redis cannot be used.
    """
    from jobcache.backends.redis.backend import from_settings  # noqa: PLC0415 - needs what may be missing

    remote = from_settings(settings)
    return TieredBackend(memory.from_settings(settings), GuardedBackend(remote), remote.feed())


def postgres(settings: CacheSettings) -> CacheBackend:
    """Return the backend "postgres": `memory`, and PostgreSQL's notifications as the change feed.

    It sends its own notifications on two connections of its own.

    Raises:
        SettingsError: there is no URL of a PostgreSQL database.
    """
    from jobcache.backends.postgres.factory import from_url  # noqa: PLC0415 - needs what may be missing

    return from_url(
        memory.from_settings(settings),
        settings.postgres_url,
        settings.postgres_direct_url,
        settings.prefix,
    )
