"""Errors of redis-py become errors of the cache, and no others do."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import AskError, MovedError, RedisError, ResponseError

from jobcache.backends.redis.cache_errors import as_cache_error
from jobcache.errors import CacheUnavailable, UnreadableCell


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ResponseError("WRONGTYPE Operation against a key"), UnreadableCell),
        (RedisError("no answer"), CacheUnavailable),
        (ConnectionResetError("reset"), CacheUnavailable),
        (asyncio.CancelledError(), CacheUnavailable),
    ],
)
def test_an_error_of_the_store_is_the_cause(error: BaseException, kind: type[Exception]) -> None:
    made = as_cache_error(error)
    assert type(made) is kind
    assert made.__cause__ is error


@pytest.mark.parametrize("error", [AskError("1 127.0.0.1:7000"), MovedError("1 127.0.0.1:7000")])
def test_a_redirection_outside_of_a_cluster_names_the_setting(error: AskError) -> None:
    made = as_cache_error(error)
    assert isinstance(made, CacheUnavailable)
    assert "redis+cluster://" in str(made)


def test_other_errors_are_not_hidden() -> None:
    defect, known = ZeroDivisionError(), CacheUnavailable("away")
    assert as_cache_error(defect) is defect
    assert as_cache_error(known) is known
    with pytest.raises(KeyboardInterrupt):
        as_cache_error(KeyboardInterrupt())
