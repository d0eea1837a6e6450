"""Publishes committed versions to a backend. A failure is counted and never raised."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from jobcache._concurrency.batching import gather_all
from jobcache._concurrency.tasks import ShieldedTasks
from jobcache.errors import CacheError
from jobcache.protocol.backend import PublishResult
from jobcache.protocol.capabilities import SupportsVersionHint
from jobcache.protocol.entry import UNVERSIONED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jobcache._engine.cell_changes import CellChanges
    from jobcache.observability.statistics import Statistics
    from jobcache.protocol.backend import CacheBackend
    from jobcache.protocol.capabilities import SupportsNotifications
    from jobcache.protocol.entry import Entry

logger = logging.getLogger("jobcache")

_NOT_STORED = frozenset({PublishResult.NOTHING, PublishResult.REMOVED})

_UNVERSIONED_HINT = "hint"
"""One token for all: if the store is away, a guard repeats one hint of a key and not each."""


class Publisher:
    """Publishes the versions of one `JobCache`.

    A failure is counted. A guarded backend repeats what failed once the store is back.

    Args:
        backend: the backend.
        statistics: counted into.
        changes: wakes the reads that wait for a publish.
        token: makes unique tokens.
    """

    def __init__(
        self,
        backend: CacheBackend,
        statistics: Statistics,
        changes: CellChanges,
        token: Callable[[], str],
    ) -> None:
        self._backend = backend
        self._statistics = statistics
        self._changes = changes
        self._token = token
        self._shielded = ShieldedTasks()

    async def publish(self, token: str, entries: Mapping[str, Entry | None]) -> None:
        """Publish each entry under `token`; None withdraws the lease or the fence."""
        await gather_all([self._publish(key, token, entry) for key, entry in entries.items()])

    async def publish_shielded(self, token: str, entries: Mapping[str, Entry | None]) -> None:
        """Publish, even if the caller is cancelled meanwhile."""
        await self._shielded.run(self.publish(token, entries))

    async def abandon_shielded(
        self, backend: SupportsNotifications, token: str, keys: Sequence[str]
    ) -> None:
        """End a write of unknown result, even if the caller is cancelled meanwhile."""
        await self._shielded.run(gather_all([self._abandon(backend, token, key) for key in keys]))

    async def _abandon(self, backend: SupportsNotifications, token: str, key: str) -> None:
        try:
            await backend.abandon(key, token)
        except CacheError as error:
            self._statistics.errors += 1
            _log(key, None, "failed", error)
        self._changes.changed((key,))

    async def hint(self, entries: Mapping[str, Entry]) -> None:
        """Report versions that were loaded while the store could not be read.

        They invalidate older entries, and must not be stored: a lease that the reader asked for may
        arrive late, when another writer has committed. So another token is used, and no body.

        An unversioned entry removes whatever the store holds, so the store is asked again. A guard
        that only noted it would keep the key of a busy document pending for ever:

            R is refused, loads; the store is back, the key is readable; R notes that it is not
        """
        if isinstance(self._backend, SupportsVersionHint):
            for key, entry in entries.items():
                if entry.version != UNVERSIONED:
                    self._backend.remember(key, entry.version)  # without waiting for the store
            entries = {key: it for key, it in entries.items() if it.version == UNVERSIONED}
            token = _UNVERSIONED_HINT
        else:
            token = self._token()
        await self.publish(token, {key: version_only(it) for key, it in entries.items()})

    async def join(self) -> None:
        """Wait until every `publish_shielded` has ended."""
        await self._shielded.join()

    async def _publish(self, key: str, token: str, entry: Entry | None) -> None:
        began = time.perf_counter_ns()
        if entry is not None and entry.keep_ms == 0:
            entry = version_only(entry)  # not stored, so its body need not be sent
        try:
            done = await self._backend.publish(key, token, entry)
        except CacheError as error:
            self._statistics.errors += 1
            _log(key, entry, "failed", error)
        else:
            _log(key, entry, done.name.lower())
            self._statistics.publish.record(time.perf_counter_ns() - began)
            if entry is not None and entry.keep_ms and done in _NOT_STORED:
                self._statistics.not_stored += 1
        self._changes.changed((key,))


def _log(key: str, entry: Entry | None, result: str, error: CacheError | None = None) -> None:
    if not logger.isEnabledFor(logging.DEBUG):
        return
    if entry is None:
        what = "withdraw"
    elif entry.keep_ms == 0:
        what = f"publish only version {entry.version} of"
    else:
        what = f"publish version {entry.version} of"
    fields = {"key": key, "result": result, "version": None if entry is None else entry.version}
    logger.debug("%s %r: %s", what, key, result if error is None else error, extra=fields)


def version_only(entry: Entry) -> Entry:
    """Return an entry that removes what may be older and is not stored itself."""
    return replace(entry, encoded_body=b"", encoding="identity", keep_ms=0)
