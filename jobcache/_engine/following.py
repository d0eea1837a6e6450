"""Reads and writes with an instrumentation. Without one, nothing of this module is called."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

    from jobcache.models import Load, ReadResult
    from jobcache.observability.instrumentation import Attributes, Instrumentation, Operation

T = TypeVar("T")


class Read(Protocol):
    """`JobCache.read`."""

    def __call__(
        self, key: str, load: Load, *, min_version: int = 0
    ) -> Coroutine[Any, Any, ReadResult]:
        """Return the document at `key`."""


async def follow(
    instrumentation: Instrumentation,
    operation: Operation,
    key: str,
    work: Callable[[], Awaitable[T]],
    describe: Callable[[T], Attributes],
) -> T:
    """Return the result of `work`, which is followed as one operation."""
    span = instrumentation.begin(operation, key)
    try:
        with span.active():
            result = await work()
    except BaseException as error:
        span.end({}, error)
        raise
    span.end(describe(result) if span.followed else {})
    return result


def described(tier: str, result: str, *, coalesced: bool) -> Attributes:
    """Return the attributes of a read."""
    return {
        "jobcache.tier": tier,
        "jobcache.result": result,
        "jobcache.coalesced": coalesced,
    }


def _of_read(result: ReadResult) -> Attributes:
    return described(result.tier, result.outcome.value, coalesced=result.coalesced)


def followed_read(instrumentation: Instrumentation, read: Read) -> Read:
    """Return `JobCache.read`, followed."""

    async def followed(key: str, load: Load, *, min_version: int = 0) -> ReadResult:
        return await follow(
            instrumentation, "read", key, lambda: read(key, load, min_version=min_version), _of_read
        )

    return followed


@asynccontextmanager
async def followed_write(
    instrumentation: Instrumentation, writing: AbstractAsyncContextManager[T]
) -> AsyncIterator[T]:
    """Enter a write, which is followed until it is published."""
    span = instrumentation.begin("write")
    try:
        with span.active():
            async with writing as write:
                yield write
    except BaseException as error:
        span.end({"jobcache.result": "failed"}, error)
        raise
    span.end({"jobcache.result": "published"})
