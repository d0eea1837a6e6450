"""The synchronous client that waits for any URL."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self, Unpack

from jobcache.client import _httpx
from jobcache.client._sync_runner import SyncRunner
from jobcache.client.core.intervals import DEFAULT_INTERVAL
from jobcache.client.core.messages import CONNECTIONS, LARGEST_BODY
from jobcache.client.core.operations import WaitOptions, follow, follow_all
from jobcache.client.core.rules import Rules

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    import httpx

    from jobcache.client.core.messages import Completed, Counts
    from jobcache.client.core.snapshots import Snapshot


class Poller:
    """Waits for any URL, for any number of threads. `AsyncPoller` explains the methods.

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
        http: httpx.Client | None = None,
        largest_body: int = LARGEST_BODY,
        rules: Rules | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        own = {**({} if headers is None else headers), **_httpx.bearer(key)}
        self._runner = SyncRunner(http, "", own, sleep)
        self._rules = Rules() if rules is None else rules
        self._largest_body = largest_body

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._runner.close()

    @property
    def counts(self) -> Counts:
        """What this client has done so far."""
        return self._rules.counts

    def wait_for(
        self,
        source: str | httpx.URL | httpx.Response,
        *,
        until: Callable[[Snapshot], object] | None = None,
        on_progress: Callable[[Snapshot], object] | None = None,
        timeout: float | None = None,
        wait: int = 25,
        interval: float = DEFAULT_INTERVAL,
    ) -> Snapshot:
        """Wait until an operation has ended, as `AsyncPoller.wait_for` does."""
        steps = follow(
            self._rules,
            _httpx.start(source),
            until=until,
            timeout=timeout,
            wait=wait,
            interval=interval,
            largest_body=self._largest_body,
        )
        return self._runner.run(steps, on_progress)

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
    ) -> Generator[Completed[Snapshot]]:
        """Wait for many operations, and yield each as it ends, as `AsyncPoller` does.

        `on_progress` is called in the caller's thread.
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

    def wait_all(
        self, sources: Iterable[str | httpx.URL | httpx.Response], **options: Unpack[WaitOptions]
    ) -> list[Snapshot]:
        """Wait until all operations have ended, as `AsyncPoller.wait_all` does."""
        return self._runner.collect(self.as_completed(sources, **options))

    def wait_any(
        self, sources: Iterable[str | httpx.URL | httpx.Response], **options: Unpack[WaitOptions]
    ) -> Snapshot:
        """Wait until one operation has ended, as `AsyncPoller.wait_any` does."""
        return self._runner.first(self.as_completed(sources, **options))
