"""What one service process did with its cache, to explain a violation afterwards.

    GET /freshness/trace?key=job:7:progress    the last events of this key, and of the whole cache

Times are those of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse
from starlette.routing import Route

from jobcache.protocol.entry import Entry
from jobcache.resilience.circuit_breaker import Breaker
from jobcache.resilience.confirmation import Confirmation
from jobcache.resilience.guarded_backend import GuardedBackend

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from jobcache.protocol.backend import LeaseResult, PublishResult

PATH = "/freshness/trace"

_MOST = 50_000  # events


class Trace:
    """The last events of this process."""

    def __init__(self) -> None:
        self._events: deque[tuple[float, str, str]] = deque(maxlen=_MOST)

    def note(self, event: str, key: str = "") -> None:
        """Note an event of a key, or of the whole cache."""
        self._events.append((time.monotonic(), key, event))

    @property
    def route(self) -> Route:
        """Return the route that shows the events."""
        return Route(PATH, self._respond)

    async def _respond(self, request: Request) -> Response:
        key = request.query_params["key"]
        return JSONResponse([(at, event) for at, of, event in self._events if of in {"", key}])

    # --- reports of the change feed ---

    def changed(self, keys: Sequence[str]) -> None:
        """Note which keys have changed."""
        for key in keys:
            self.note("the feed reports a change", key)

    def interrupted(self) -> None:
        """Note that the feed was interrupted."""
        self.note("the feed is interrupted")

    def resumed(self) -> None:
        """Note that the feed is live again."""
        self.note("the feed is live")


class TracedBreaker(Breaker):
    """A breaker that notes each change of its state."""

    def __init__(self, trace: Trace, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - its
        super().__init__(*arguments, **options)
        self._trace = trace

    def succeeded(self) -> None:
        """Note the first answer after an overdue one."""
        if self.unresponsive:
            self._trace.note("the store answers again")
        super().succeeded()

    def went_unanswered(self, number: int) -> None:
        """Note an overdue operation."""
        super().went_unanswered(number)
        self._trace.note(f"an operation is overdue; unresponsive: {self.unresponsive}")

    def trip(self, reason: str) -> None:
        """Note that the circuit opens."""
        if not self.open:
            self._trace.note(f"the circuit opens: {reason}")
        super().trip(reason)

    def close(self) -> None:
        """Note that the circuit closes."""
        if self.open:
            self._trace.note("the circuit closes")
        super().close()


class TracedConfirmation(Confirmation):
    """A confirmation that notes the end of an outage."""

    def __init__(self, trace: Trace, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - its
        super().__init__(*arguments, **options)
        self._trace = trace

    def outage_ended(self) -> None:
        """Note it."""
        super().outage_ended()
        self._trace.note("entries from before are confirmed from now on")


class TracedGuard(GuardedBackend):
    """A guard that notes when each operation began and how it ended."""

    def __init__(self, trace: Trace, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - its
        super().__init__(*arguments, **options)
        self._trace = trace

    def get_many_future(self, keys: Sequence[str]) -> asyncio.Future[Mapping[str, Entry]]:
        """Read, and note what each key had."""
        for key in keys:
            self._trace.note("get", key)
        reading = super().get_many_future(keys)
        reading.add_done_callback(partial(self._read, tuple(keys)))
        return reading

    def _read(self, keys: Sequence[str], reading: asyncio.Future[Mapping[str, Entry]]) -> None:
        if reading.cancelled() or reading.exception() is not None:
            for key in keys:
                self._trace.note(f"get failed: {reading}", key)
            return
        found = reading.result()
        for key in keys:
            self._trace.note(f"got {shown(found.get(key))}", key)

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:
        """Take a lease, and note the result."""
        self._trace.note(f"lease {token}", key)
        try:
            found = await super().lease(key, token)
        except BaseException as error:
            self._trace.note(f"lease {token} failed: {error!r}", key)
            raise
        self._trace.note(f"leased {token}: {shown(found)}", key)
        return found

    async def fence(self, key: str, token: str) -> None:
        """Fence, and note the result."""
        self._trace.note(f"fence {token}", key)
        try:
            await super().fence(key, token)
        except BaseException as error:
            self._trace.note(f"fence {token} failed: {error!r}", key)
            raise
        self._trace.note(f"fenced {token}", key)

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:
        """Publish, and note the result."""
        self._trace.note(f"publish {token} {shown(entry)}", key)
        try:
            result = await super().publish(key, token, entry)
        except BaseException as error:
            self._trace.note(f"publish {token} failed: {error!r}", key)
            raise
        self._trace.note(f"published {token}: {result}", key)
        return result

    def remember(self, key: str, version: int) -> None:
        """Note a version that was loaded past the store."""
        self._trace.note(f"remember version {version}", key)
        super().remember(key, version)

    async def purge(self, keys: Sequence[str]) -> int:
        """Purge, and note the result."""
        try:
            purged = await super().purge(keys)
        except BaseException as error:
            for key in keys:
                self._trace.note(f"purge failed: {error!r}", key)
            raise
        for key in keys:
            self._trace.note("purged", key)
        return purged


def shown(found: Entry | LeaseResult | None) -> str:
    """Return what a backend has answered, in words."""
    if isinstance(found, Entry):
        return f"version {found.version} of {found.stored_at_ms}, fresh {found.fresh_ms}"
    return str(found)
