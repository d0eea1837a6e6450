"""The backend `postgres`, with notes of what it does, and without the rule that is removed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from typing import TYPE_CHECKING, Any

from jobcache.backends.postgres.backend import PostgresBackend
from loadtests.freshness.trace import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jobcache.protocol.backend import LeaseResult, PublishResult
    from jobcache.protocol.entry import Entry
    from loadtests.freshness.switches import Switches
    from loadtests.freshness.trace import Trace

_LATE = 0.02  # seconds, at most, by which a broken publish comes later: races become likelier


class FaultyPostgres(PostgresBackend):
    """The backend, which may die between a commit and its publish.

    It is a subclass because it must have every ability of the backend, present and future.
    """

    def __init__(self, switches: Switches, trace: Trace, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - its
        super().__init__(*arguments, **options)
        self._switches = switches
        self._trace = trace
        self._writes: set[tuple[str, str]] = set()

    async def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """Read, and note what each key had."""
        found = await super().get_many(keys)
        for key in keys:
            self._trace.note(f"got {shown(found.get(key))}", key)
        return found

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:
        """Take a lease, and note the result."""
        found = await super().lease(key, token)
        self._trace.note(f"lease {token}: {shown(found)}, feed live: {self._feed.live}", key)
        return found

    def announce(self, key: str, token: str) -> None:
        """Begin a write that notifies, and note it."""
        self._trace.note(f"write {token} begins, which notifies", key)
        self._writes.add((key, token))
        super().announce(key, token)

    async def fence(self, key: str, token: str) -> None:
        """Begin a write that does not notify, and note it."""
        self._trace.note(f"write {token} begins", key)
        self._writes.add((key, token))
        await super().fence(key, token)

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:
        """Publish, unless the process dies first or a rule is removed."""
        writes = (key, token) in self._writes
        self._writes.discard((key, token))
        if writes and entry is not None and self._switches.dies_at_publish:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._switches.broken == "lease" and entry is not None and not writes:
            await asyncio.sleep(random.uniform(0, _LATE))  # noqa: S311 - no secret
            self._local.drop((key,))
            await self._local.lease(key, token)
        self._trace.note(f"publish {token} {shown(entry)}", key)
        result = await super().publish(key, token, entry)
        self._trace.note(f"published {token}: {result}", key)
        return result

    async def abandon(self, key: str, token: str) -> None:
        """End a write whose commit failed, and note it."""
        self._writes.discard((key, token))
        self._trace.note(f"write {token} has an unknown end", key)
        await super().abandon(key, token)

    def drop(self, keys: Sequence[str]) -> int:
        """Empty cells of this process, and note it."""
        for key in keys:
            self._trace.note("dropped", key)
        return super().drop(keys)

    # --- reports of the feed ---

    def changed(self, keys: Sequence[str]) -> None:
        """Note what has changed, and empty its cells unless this rule is removed."""
        self._trace.changed(keys)
        if self._switches.broken != "report":
            super().changed(keys)

    def interrupted(self) -> None:
        """Note it, and trust no entry any more unless this rule is removed."""
        self._trace.interrupted()
        if self._switches.broken != "interruption":
            super().interrupted()

    def resumed(self) -> None:
        """Note it, and empty the local tier unless this rule is removed."""
        self._trace.resumed()
        if self._switches.broken != "interruption":
            super().resumed()
