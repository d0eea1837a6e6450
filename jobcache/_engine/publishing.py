"""Handing committed versions over to a backend, in a way that costs nobody an answer."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from jobcache._concurrency.batching import gather_all
from jobcache._concurrency.tasks import ShieldedTasks
from jobcache.errors import CacheError
from jobcache.protocol.backend import Entry, PublishResult, SupportsVersionHint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jobcache.observability.statistics import Statistics
    from jobcache.protocol.backend import CacheBackend

_NOT_STORED = frozenset({PublishResult.NOTHING, PublishResult.REMOVED})


class Publisher:
    """Publishes of one `JobCache`. What fails is counted, and is the backend's to repeat.

    Args:
        backend: what to publish to.
        statistics: counted into.
        token: makes unique tokens.
    """

    def __init__(
        self, backend: CacheBackend, statistics: Statistics, token: Callable[[], str]
    ) -> None:
        self._backend = backend
        self._statistics = statistics
        self._token = token
        self._shielded = ShieldedTasks()

    async def publish(self, token: str, entries: Mapping[str, Entry | None]) -> None:
        """Publish each entry under `token`; None withdraws it."""
        await gather_all([self._publish(key, token, entry) for key, entry in entries.items()])

    async def publish_shielded(self, token: str, entries: Mapping[str, Entry | None]) -> None:
        """As `make`, to its end even if the caller is cancelled meanwhile."""
        await self._shielded.run(self.publish(token, entries))

    async def hint(self, entries: Mapping[str, Entry]) -> None:
        """Tell of versions that were loaded although the store could not be asked.

        They are not to be stored: there may be a lease of the reader's that has gone stale on its
        way. Another token, and only the version, cannot be stored by it.
        """
        if isinstance(self._backend, SupportsVersionHint):
            for key, entry in entries.items():
                self._backend.remember(key, entry.version)  # to wait again would help nobody
        else:
            await self.publish(self._token(), {key: version_only(e) for key, e in entries.items()})

    async def join(self) -> None:
        """Wait until what has to be made surely has been made."""
        await self._shielded.join()

    async def _publish(self, key: str, token: str, entry: Entry | None) -> None:
        began = time.perf_counter_ns()
        if entry is not None and entry.keep_ms == 0:
            entry = version_only(entry)  # its body, which may be large, need not travel
        try:
            done = await self._backend.publish(key, token, entry)
        except CacheError:
            self._statistics.errors += 1
        else:
            self._statistics.publish.record(time.perf_counter_ns() - began)
            if entry is not None and entry.keep_ms and done in _NOT_STORED:
                self._statistics.not_stored += 1


def version_only(entry: Entry) -> Entry:
    """The same version, not to be stored: only what is older than it is removed."""
    return replace(entry, encoded_body=b"", encoding="identity", keep_ms=0)
