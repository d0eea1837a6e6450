"""Translate the errors of redis-py to the errors that a backend may raise."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from redis.exceptions import AskError, RedisError, ResponseError

from jobcache.backends.redis.refused_commands import cluster_node
from jobcache.errors import CacheError, CacheUnavailable, UnreadableCell

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def translated() -> Iterator[None]:
    """Raise the errors of redis-py, and lost connections, as `CacheError`."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise as_cache_error(error) from error


def as_cache_error(error: BaseException) -> Exception:
    """Return the error to raise in place of one of redis-py's, which becomes its cause."""
    if isinstance(error, CacheError):
        return error
    made: Exception
    if isinstance(error, asyncio.CancelledError):
        made = CacheUnavailable("it is being closed")
    elif isinstance(error, ResponseError) and "WRONGTYPE" in str(error):
        made = UnreadableCell(str(error))
    elif isinstance(error, RedisError | OSError):
        if isinstance(error, AskError):
            error = cluster_node(error)
        made = CacheUnavailable(f"{type(error).__name__}: {error}")
    elif isinstance(error, Exception):
        return error  # a defect, which must not be hidden
    else:
        raise error
    made.__cause__ = error
    return made
