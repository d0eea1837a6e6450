"""The asynchronous client that waits for any URL."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self, Unpack

from jobcache.client import _httpx
from jobcache.client._async_runner import AsyncRunner
from jobcache.client.core.intervals import DEFAULT_INTERVAL
from jobcache.client.core.messages import CONNECTIONS, LARGEST_BODY
from jobcache.client.core.operations import WaitOptions, follow, follow_all
from jobcache.client.core.rules import Rules

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping

    import httpx

    from jobcache.client.core.messages import Completed, Counts
    from jobcache.client.core.snapshots import Snapshot


class AsyncPoller:
    """Waits for any URL, for any number of tasks of one event loop.

    It understands `ETag`, `Retry-After`, `Prefer: wait`, redirects and 202 with `Location`,
    operations of Google's AIP-151, and operations of Azure.

    Args:
        key: sent as `Authorization: Bearer`; None if the service needs none.
        headers: sent with each request. They, the key, and whatever `http` adds by itself are sent
            only to the origin (scheme, host and port) of the URL that the caller waits for.
        http: sends the requests, and stays open when this client is closed.
        largest_body: the most bytes of a response's body.
        rules: with another clock or random numbers, for tests.
        sleep: for tests, too.
    """

    def __init__(
        self,
        key: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        http: httpx.AsyncClient | None = None,
        largest_body: int = LARGEST_BODY,
        rules: Rules | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        own = {**({} if headers is None else headers), **_httpx.bearer(key)}
        self._runner = AsyncRunner(http, "", own, sleep)
        self._rules = Rules() if rules is None else rules
        self._largest_body = largest_body

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._runner.aclose()

    @property
    def counts(self) -> Counts:
        """What this client has done so far."""
        return self._rules.counts

    async def wait_for(
        self,
        source: str | httpx.URL | httpx.Response,
        *,
        until: Callable[[Snapshot], object] | None = None,
        on_progress: Callable[[Snapshot], object] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - requests get what is left of it
        wait: int = 25,
        interval: float = DEFAULT_INTERVAL,
    ) -> Snapshot:
        """Wait until an operation has ended, through lost connections and restarts.

        An operation ends when its document says so: `done` of AIP-151, or the status `Succeeded`,
        `Failed` or `Canceled` of Azure. If the document has no such field, the operation ends with
        the first successful response that has no `Retry-After`. A failed operation is returned,
        too: see `Snapshot.error`.

        Args:
            source: an absolute URL; or the response of the request that has begun the operation,
                such as a 202 to a POST.
            until: True for a snapshot ends the wait, too. It replaces the rule of `Retry-After`
                for a server that never sends this header. Its exceptions end the wait.
            on_progress: called with the first snapshot that has a body and with each changed one.
                It may be asynchronous, and is awaited before the next request. Its exceptions end
                the wait.
            timeout: seconds for all of it, or None for no limit.
            wait: seconds for which the server is asked to hold each request, up to 60; 0 does not
                ask for it. Choose less than the idle limit of every proxy before the server.
            interval: seconds between polls if the server sends no `Retry-After`.

        Returns:
            The last snapshot.

        Raises:
            Refused: the server refuses to show the operation: `NotFound`, `Gone` and so on.
            WaitTimeout: the time is over, or will be before the server may be polled again.
            BadLocation: a response leads to a URL that is not followed, or to none.
            BodyTooLarge: a body exceeds `largest_body`; the error has its URL.
            ValueError: an argument is out of range, or the URL is not an absolute one.
        """
        steps = follow(
            self._rules,
            _httpx.start(source),
            until=until,
            timeout=timeout,
            wait=wait,
            interval=interval,
            largest_body=self._largest_body,
        )
        return await self._runner.run(steps, on_progress)

    def as_completed(
        self,
        sources: Iterable[str | httpx.URL | httpx.Response],
        *,
        until: Callable[[Snapshot], object] | None = None,
        on_progress: Callable[[Snapshot], object] | None = None,
        timeout: float | None = None,
        wait: int = 25,
        interval: float = DEFAULT_INTERVAL,
        connections: int = CONNECTIONS,
    ) -> AsyncGenerator[Completed[Snapshot]]:
        """Wait for many operations, and yield each as it ends, a failed wait too.

        Args:
            sources: as for `wait_for`, and so are the other arguments.
            until: True for a snapshot ends the wait for its source.
            on_progress: `Snapshot.source` tells which of the operations has changed.
            timeout: seconds for all of them.
            wait: for servers that hold requests. If there are more sources than connections,
                requests are never held.
            interval: seconds between polls of one source.
            connections: the most requests at a time.

        Yields:
            `Completed`, whose `result()` returns the last snapshot or raises the error.

        Raises:
            ValueError: an argument is out of range, or a URL is not an absolute one.
        """
        scheduler = follow_all(
            self._rules,
            [(source, _httpx.start(source)) for source in sources],
            until=until,
            timeout=timeout,
            wait=wait,
            interval=interval,
            largest_body=self._largest_body,
            connections=connections,
        )
        return self._runner.as_completed(scheduler, on_progress)

    async def wait_all(
        self, sources: Iterable[str | httpx.URL | httpx.Response], **options: Unpack[WaitOptions]
    ) -> list[Snapshot]:
        """Wait until all operations have ended; return their last snapshots in the given order.

        Takes the arguments of `as_completed`. The first error of a wait ends the others and is
        raised: use `as_completed` to get the results of the others.
        """
        return await self._runner.collect(self.as_completed(sources, **options))

    async def wait_any(
        self, sources: Iterable[str | httpx.URL | httpx.Response], **options: Unpack[WaitOptions]
    ) -> Snapshot:
        """Wait until one operation has ended; return its last snapshot, and leave the others.

        Takes the arguments of `as_completed`. Waits that fail do not count while another goes on.

        Raises:
            WaitTimeout: the time is over.
            AllFailed: all waits have failed; if there was only one, its error.
        """
        return await self._runner.first(self.as_completed(sources, **options))
