"""The keyword arguments of `JobCache`, as types."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from jobcache.settings import StoreOptions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobcache._engine.watchers import CallLater, PollIntervals
    from jobcache.lifetimes import Lifetimes
    from jobcache.observability.instrumentation import Instrumentation
    from jobcache.observability.statistics import Statistics


class CacheOptions(TypedDict, total=False):
    """The arguments of `JobCache`, except its backend."""

    lifetimes: Lifetimes | None
    statistics: Statistics | None
    load_timeout: float | None
    check_body: Callable[[str, bytes], object] | None
    shadow_rate: float
    clock_ms: Callable[[], int] | None
    token: Callable[[], str]
    sleep: Callable[[float], Awaitable[object]]
    poll_intervals: PollIntervals | None
    later: CallLater | None
    instrumentation: Instrumentation | None


class URLOptions(CacheOptions, StoreOptions, total=False):
    """The arguments of `JobCache.from_url`, except the URL."""


def split(options: URLOptions) -> tuple[StoreOptions, CacheOptions]:
    """Return the options of the store, and those of the cache."""
    store: StoreOptions = {}
    cache: CacheOptions = {}
    for name, value in options.items():
        chosen = store if name in StoreOptions.__annotations__ else cache
        chosen[name] = value  # type: ignore[literal-required]
    return store, cache
