"""Log lines at DEBUG: each hit, miss, load, fence and publish.

A cache decides when it is made whether its reads are logged: a hit that is not must not pay for the
question. Keys are logged with `repr`, so that none can look like another line.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

from jobcache._engine.reading import Reads
from jobcache._engine.storing import ABSENT
from jobcache._engine.values import Values
from jobcache.models import CacheOutcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobcache._engine.storing import Absent, Storing
    from jobcache._engine.values import Answered
    from jobcache.models import Load, ReadResult
    from jobcache.protocol.entry import Entry

T = TypeVar("T")
logger = logging.getLogger("jobcache")


def reads_are_logged() -> bool:
    """Return True if a cache that is made now is to log its reads."""
    return logger.isEnabledFor(logging.DEBUG)


def _log(key: str, outcome: CacheOutcome, tier: str, version: int, *, coalesced: bool) -> None:
    shared = ", by the load of another reader" if coalesced else ""
    fields = {"key": key, "outcome": outcome.value, "tier": tier, "version": version}
    logger.debug(
        "%s %r on %s, version %d%s", outcome.value, key, tier, version, shared, extra=fields
    )


def _log_result(key: str, it: ReadResult) -> None:
    _log(key, it.outcome, it.tier, it.entry.version, coalesced=it.coalesced)


class LoggedReads(Reads):
    """`Reads` with a line for each."""

    def peek(self, key: str, load: Load, min_version: int = 0) -> ReadResult | None:
        """Return what `Reads.peek` returns."""
        result = super().peek(key, load, min_version)
        if result is not None:
            _log_result(key, result)
        return result

    def _hit(
        self, key: str, load: Load, min_version: int, began: int, entry: Entry | None
    ) -> ReadResult | None:
        result = super()._hit(key, load, min_version, began, entry)
        if result is not None:
            _log_result(key, result)
        return result

    def _result(
        self,
        key: str,
        began: int,
        entry: Entry,
        outcome: CacheOutcome,
        *,
        coalesced: bool = False,
    ) -> ReadResult:
        result = super()._result(key, began, entry, outcome, coalesced=coalesced)
        _log_result(key, result)
        return result


class LoggedValues(Values):
    """`Values` with a line for each read."""

    def peek(self, key: str, storing: Storing[T]) -> T | Absent:
        """Return what `Values.peek` returns."""
        found = super().peek(key, storing)
        if found is not ABSENT:
            _log(key, CacheOutcome.HIT, self._local, 0, coalesced=False)
        return found

    async def _answer(self, key: str, read: Callable[[], Awaitable[Answered[T]]]) -> T:
        async def logged() -> Answered[T]:
            answered = await read()
            _log(key, answered[1], self._tier, 0, coalesced=answered[2])
            return answered

        return await super()._answer(key, logged)
