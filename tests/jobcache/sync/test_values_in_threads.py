"""Values without a version, from threads."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from jobcache import CacheSettings, SourceUnavailable
from jobcache.sync import JobCache
from tests.jobcache.sync.sync_bench import MEMORY


@pytest.fixture(params=["memory", "redis"])
def cache(request: pytest.FixtureRequest) -> Any:
    settings = MEMORY
    if request.param == "redis":
        url = request.getfixturevalue("redis_url")
        settings = CacheSettings(backend="redis", redis_url=url, prefix=f"{request.node.name}:")
    with JobCache(settings) as made:
        made.invalidate_all()
        yield made


def test_a_value_is_loaded_in_the_callers_thread_and_invalidated(cache: JobCache) -> None:
    loads: list[threading.Thread] = []

    def load() -> dict[str, int]:
        loads.append(threading.current_thread())
        return {"loads": len(loads)}

    for _ in range(2):
        assert cache.get_or_load("k", load, ttl=60, tags=["t"]) == {"loads": 1}
    assert loads == [threading.current_thread()]
    cache.invalidate("k")
    assert cache.get_or_load("k", load, ttl=60, tags=["t"]) == {"loads": 2}
    cache.invalidate_tags("t")
    assert cache.get_or_load("k", load, ttl=60, tags=["t"]) == {"loads": 3}
    assert cache.get_or_load("k", load, ttl=60, tags=["t"], bypass=True) == {"loads": 4}
    assert cache.get_or_load("k", load, ttl=60, tags=["t"]) == {"loads": 5}


def test_a_function_and_a_method_are_cached(cache: JobCache) -> None:
    calls: list[int] = []

    @cache.cached("f:{number}", ttl=60, tags=["of:{number}"], ignore=["factor"])
    def function(number: int, *, factor: int = 1) -> int:
        calls.append(number)
        return number

    class Reports:
        @cache.cached("m:{number}", ttl=60)
        def load(self, number: int) -> list[int]:
            calls.append(number)
            return [number]

    assert [function(1), function(number=1), function(2)] == [1, 1, 2]
    assert function.invalidate(1) is True
    assert function.key(1) == "f:1"
    assert [function(1), function.bypass(1)] == [1, 1]
    assert calls == [1, 2, 1, 1]
    cache.invalidate_tags("of:2")
    assert [function(2), function(2)] == [2, 2]
    reports = Reports()
    assert reports.load(7) == reports.load(number=7) == [7]
    assert reports.load.invalidate(7)
    assert reports.load.key(7) == "m:7"
    assert Reports.load(reports, 7) == [7]
    assert calls == [1, 2, 1, 1, 2, 7, 7]


def test_an_async_function_is_refused(cache: JobCache) -> None:
    async def function(number: int) -> int:
        return number

    with pytest.raises(TypeError, match=r"jobcache\.JobCache\.cached"):
        cache.cached("f:{number}", ttl=60)(function)


def test_threads_share_a_load_and_errors_are_theirs(cache: JobCache) -> None:
    lock, loads = threading.Lock(), []

    def load() -> int:
        with lock:
            loads.append(1)
        return 7

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: cache.get_or_load("k", load, ttl=60), range(32)))
    assert found == [7] * 32
    assert 1 <= len(loads) <= 2

    def fail() -> int:
        raise SourceUnavailable("away")

    with pytest.raises(SourceUnavailable):
        cache.get_or_load("other", fail, ttl=60)


def test_a_value_can_be_pickled_like_any_other() -> None:
    with JobCache(MEMORY) as cache:
        value = cache.get_or_load("k", lambda: {"list": [1]}, ttl=60)
    assert type(pickle.loads(pickle.dumps(value))) is dict  # noqa: S301 - our own
