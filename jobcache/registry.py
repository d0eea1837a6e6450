"""From settings, by name, to a backend.

Backends are found under an entry-point group: each name leads to a factory that takes
`CacheSettings`. A backend that can be pinged, so whose store can be away, is put behind a guard.
"""

from __future__ import annotations

import logging
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol

from jobcache.backends.null import NullBackend
from jobcache.errors import SettingsError
from jobcache.guard import Guard
from jobcache.protocol import Ping
from jobcache.settings import GROUP, backend_names

if TYPE_CHECKING:
    from jobcache.protocol import CacheBackend
    from jobcache.settings import CacheSettings

logger = logging.getLogger("jobcache")


class Factory(Protocol):
    """What an entry point of the group must lead to."""

    def __call__(self, settings: CacheSettings) -> CacheBackend:
        """A backend, not yet connected. Raises `SettingsError` where it cannot be set up."""


def make_backend(settings: CacheSettings) -> CacheBackend:
    """The backend that `settings` name. Connects to nothing yet.

    If the library it needs is not installed, this says so once in the log, and what is returned
    keeps nothing: every read is answered from its source.

    Raises:
        SettingsError: no backend has that name, or it cannot be set up so.
    """
    for point in entry_points(group=GROUP, name=settings.backend):
        try:
            factory: Factory = point.load()
        except ImportError as error:
            reason = f"{error}; pip install 'jobcache[{settings.backend}]' brings it"
            logger.warning("there is no %s cache: %s", settings.backend, reason)
            return NullBackend(instead_of=settings.backend, because=reason)
        backend = factory(settings)
        return Guard(backend) if isinstance(backend, Ping) else backend
    raise SettingsError(
        "JOBCACHE_BACKEND", settings.backend, f"one of {', '.join(backend_names())}"
    )
