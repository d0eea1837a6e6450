"""A program that uses `jobcache.sync` in greenlets; started by `test_gevent.py`.

python greenlets.py early|late {"thread": false, …} memory|redis|tiered REDIS_URL

It patches the process before or after it imports jobcache, with these arguments.
"""

# ruff: noqa: E402, PLC0415 - the order of imports is tested

from __future__ import annotations

import json
import sys

WHEN, PATCHED, BACKEND, URL = sys.argv[1:]


def patch() -> None:
    from gevent import monkey

    monkey.patch_all(**json.loads(PATCHED))


if WHEN == "early":
    patch()

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from jobcache import CacheOutcome, CacheSettings, Document
from jobcache.sync import JobCache, Throttle

if WHEN == "late":
    patch()

import gevent
import gevent.event

SETTINGS = CacheSettings(backend=BACKEND, redis_url=URL)


def document(version: int) -> Document:
    return Document(version, "acme", b"v%d" % version)


def load(version: int) -> Document:
    """Load as Django's ORM does: it refuses to run where an event loop runs."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return document(version)
    raise AssertionError("the loop runs in the caller's thread")


@contextmanager
def transaction() -> Iterator[None]:
    gevent.sleep(0)
    yield
    gevent.sleep(0)


def write(cache: JobCache, key: str, version: int) -> None:
    with cache.write(transaction(), key) as writing:
        writing.publish(key, document(version))


def until(condition: object) -> None:
    assert callable(condition)
    with gevent.Timeout(20):
        while not condition():
            gevent.sleep(0.005)


def reads_and_writes(cache: JobCache) -> None:
    first = cache.read("k", lambda: load(1))
    assert (first.entry.version, first.outcome) == (1, CacheOutcome.MISS)
    write(cache, "k", 2)
    answer = cache.read("k", lambda: load(2))
    assert (answer.entry.version, answer.outcome) == (2, CacheOutcome.HIT)
    assert cache.info().health.available


def greenlets_run_while_one_waits(cache: JobCache) -> None:
    waiting = gevent.spawn(cache.wait_for_newer, "k", lambda: load(2), 2, 60)
    until(lambda: cache.info().waiting == (1, 1))
    write(cache, "k", 3)
    assert waiting.get(timeout=20).entry.version == 3
    # A load that only another greenlet can bring to its end.
    may_end = gevent.event.Event()

    def slow() -> Document:
        may_end.wait()
        return load(1)

    reading = [gevent.spawn(cache.read, "slow", slow) for _ in range(30)]
    gevent.sleep(0)
    may_end.set()
    assert {each.get(timeout=20).entry.version for each in reading} == {1}


def interrupted_calls_leave_nothing(cache: JobCache) -> None:
    interrupted = False
    try:
        with gevent.Timeout(0.02):
            cache.wait_for_newer("k", lambda: load(3), 3, 60)
    except gevent.Timeout:
        interrupted = True
    assert interrupted
    waiting = gevent.spawn(cache.wait_for_newer, "k", lambda: load(3), 3, 60)
    until(lambda: cache.info().waiting == (1, 1))
    waiting.kill(timeout=20)
    assert waiting.dead
    until(lambda: cache.info().waiting == (0, 0))


def asyncio_belongs_to_the_program(cache: JobCache) -> None:
    assert asyncio.run(asyncio.sleep(0, 7)) == 7
    assert gevent.spawn(asyncio.run, asyncio.sleep(0, 8)).get(timeout=20) == 8


def native_threads_share_the_cache(cache: JobCache) -> None:
    pool = gevent.get_hub().threadpool
    assert pool.apply(lambda: cache.read("k", lambda: load(3)).entry.version) == 3


def a_child_has_a_cache_of_its_own(cache: JobCache) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            reading = [gevent.spawn(cache.read, "k", lambda: load(3)) for _ in range(5)]
            assert {each.get(timeout=20).entry.version for each in reading} == {3}
            cache.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert cache.read("k", lambda: load(3)).entry.version == 3


def a_throttle_commits(cache: JobCache) -> None:
    def commit(version: int) -> None:
        write(cache, "throttled", version)

    with Throttle(commit, interval=0.005) as throttle:
        for version in range(1, 10):
            throttle.report(version)
            gevent.sleep(0.001)
        throttle.finish(10)
    assert cache.read("throttled", lambda: load(10)).entry.version == 10


def a_second_cache_works(cache: JobCache) -> None:
    compared = threading.Event()
    loads: list[int] = []

    def counted() -> Document:
        loads.append(1)
        if len(loads) > 1:
            compared.set()
        return load(1)

    with JobCache(CacheSettings(backend="memory", shadow_rate=1)) as second:
        assert second.read("k", counted).outcome is CacheOutcome.MISS
        assert second.read("k", counted).outcome is CacheOutcome.HIT
        until(compared.is_set)


def main() -> None:
    from tests.patience import limits  # which imports redis: not before it is patched

    for defaults, name, seconds in limits():
        defaults[name] = seconds
    cache = JobCache(SETTINGS)
    for step in (
        reads_and_writes,
        greenlets_run_while_one_waits,
        interrupted_calls_leave_nothing,
        asyncio_belongs_to_the_program,
        native_threads_share_the_cache,
        a_child_has_a_cache_of_its_own,
        a_throttle_commits,
        a_second_cache_works,
    ):
        with gevent.Timeout(30, AssertionError(f"{step.__name__} hangs")):
            step(cache)
    gevent.spawn(cache.close).get(timeout=20)
    left_open = JobCache(SETTINGS)  # for the interpreter's exit to close
    assert left_open.read("new", lambda: load(1)).entry.version == 1
    sys.stdout.write("all is well\n")


if __name__ == "__main__":
    main()
