"""`jobcache.sync`: the same library, from threads that wait."""

from __future__ import annotations

import inspect
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis as redis_client
from sqlalchemy import create_engine, text

import jobcache
from jobcache import (
    CacheOutcome,
    CacheSettings,
    Document,
    Lifetimes,
    SettingsError,
    SourceUnavailable,
)
from jobcache._engine.options import CacheOptions
from jobcache._engine.watchers import PollIntervals
from jobcache.backends.memory import MemoryBackend
from jobcache.backends.null import NullBackend
from jobcache.errors import InvalidKey, WriteMisuse
from jobcache.sync import CacheClosed, JobCache, Write
from tests.jobcache.bench import document
from tests.jobcache.sync.sync_bench import MEMORY, Source, read, write


@pytest.fixture(params=["memory", "redis"])
def cache(request: pytest.FixtureRequest) -> Iterator[JobCache]:
    settings = MEMORY
    if request.param == "redis":
        url = request.getfixturevalue("redis_url")
        with redis_client.Redis.from_url(url) as raw:
            raw.flushall()
        settings = CacheSettings(backend="redis", redis_url=url)
    with JobCache(settings) as made:
        yield made


@pytest.fixture
def memory() -> Iterator[JobCache]:
    with JobCache(MEMORY) as made:
        yield made


# --- the same as the asynchronous one ---


def shape(method: Any) -> list[tuple[str, Any, Any]]:
    parameters = inspect.signature(method).parameters.values()
    return [(each.name, each.kind, each.default) for each in parameters]


@pytest.mark.parametrize(
    ("ours", "theirs"), [(JobCache, jobcache.JobCache), (Write, jobcache.Write)]
)
def test_methods_parameters_and_documentation_are_the_asynchronous_ones(
    ours: type, theirs: type
) -> None:
    def public(kind: type) -> dict[str, Any]:
        found = inspect.getmembers(kind, inspect.isfunction)
        return {name.replace("aclose", "close"): it for name, it in found if name[0] != "_"}

    mine, asynchronous = public(ours), public(theirs)
    asynchronous.pop("peek", None)  # it saves a task; here there is none
    assert mine.keys() == asynchronous.keys()
    for name, method in mine.items():
        assert shape(method) == shape(asynchronous[name]), name
        text = re.sub(r"\b(async|await) ", "", inspect.getdoc(asynchronous[name]) or "")
        assert name == "close" or text in (inspect.getdoc(method) or ""), name
        assert not inspect.iscoroutinefunction(method)


def test_options_are_the_asynchronous_ones() -> None:
    options = inspect.signature(jobcache.JobCache).parameters.keys() - {"backend"}
    assert options == CacheOptions.__annotations__.keys()
    with JobCache(MEMORY, lifetimes=Lifetimes(default=7, jitter=0)) as cache:
        assert cache.read("k", Source(k=1).load).entry.fresh_ms == 7000
        assert cache.lifetimes.default == 7


def test_reads_and_writes_mean_the_same(cache: JobCache) -> None:
    source = Source(k=1, other=4)
    cache.start()
    assert read(cache, source) == (1, CacheOutcome.MISS)
    assert read(cache, source) == (1, CacheOutcome.HIT)
    write(cache, source)
    assert read(cache, source) == (2, CacheOutcome.HIT)
    many = cache.read_many(
        iter(["k", "other", "none"]),
        lambda keys: {key: document(4) for key in keys if key != "none"},
    )
    assert [answer.entry.version for answer in many.values()] == [2, 4, 0]
    assert cache.read("k", source.load, min_version=3).entry.version == 2
    assert cache.invalidate("k", "nothing") == 1
    assert read(cache, source) == (2, CacheOutcome.MISS)
    assert cache.invalidate_all() == 3
    assert cache.info().health.available
    assert cache.statistics.hits >= 2
    assert cache.info().size in {None, (0, 0)}
    assert source.threads == {threading.get_ident()}


def test_what_a_block_does_not_finish_is_rolled_back(cache: JobCache) -> None:
    source = Source(k=1)
    write(cache, source)
    with pytest.raises(LookupError), cache.write(source.transaction(), "k"):
        raise LookupError
    with pytest.raises(StopIteration), cache.write(source.transaction(), "k"):
        raise StopIteration
    with (
        pytest.raises(WriteMisuse, match="never published: k"),
        cache.write(source.transaction()) as w,
    ):
        w.fence("k")
    with pytest.raises(WriteMisuse, match="never fenced"), cache.write(source.transaction()) as w:
        w.publish("k", document(3))
    with pytest.raises(KeyboardInterrupt), cache.write(source.transaction(), "k"):
        raise KeyboardInterrupt
    assert source.threads == {threading.get_ident()}
    assert source.ends[1:] == [
        LookupError,
        StopIteration,
        WriteMisuse,
        WriteMisuse,
        KeyboardInterrupt,
    ]
    assert read(cache, source) == (2, CacheOutcome.MISS)
    with cache.write(source.transaction()) as w:
        w.fence("k")
        w.outdate("k", 3)
    assert read(cache, source) == (3, CacheOutcome.MISS)


def test_a_delete_and_a_refused_batch_mean_the_same(cache: JobCache) -> None:
    source = Source(k=1)
    assert read(cache, source) == (1, CacheOutcome.MISS)
    with cache.write("k") as writing:
        del source.versions["k"]
        writing.delete("k")
    assert read(cache, source) == (0, CacheOutcome.MISS)
    with pytest.raises(TypeError, match="several keys"):
        cache.read_many("export:7", lambda _: {})


def test_a_write_without_a_transaction_means_the_same(cache: JobCache) -> None:
    source = Source(k=1)
    read(cache, source)
    with cache.write("k") as writing:
        assert writing.transaction is None
        assert read(cache, source) == (1, CacheOutcome.BYPASS)
        source.versions["k"] = 2
        writing.publish("k", document(2))
    assert read(cache, source) == (2, CacheOutcome.HIT)
    with cache.write() as writing:
        writing.fence("k")
        source.versions["k"] = 3
        writing.outdate("k", 3)
    assert read(cache, source) == (3, CacheOutcome.MISS)
    with pytest.raises(InvalidKey), cache.write("k", "k" * 5000):
        raise AssertionError
    assert read(cache, source) == (3, CacheOutcome.MISS), "it did not begin, so no fence is left"
    with pytest.raises(LookupError), cache.write("k"):
        raise LookupError
    assert read(cache, source) == (3, CacheOutcome.BYPASS), "it may have committed"
    with pytest.raises(WriteMisuse, match="never published: j"), cache.write("j"):
        pass


def test_a_transaction_may_swallow_what_its_block_raises(memory: JobCache) -> None:
    class Swallows:
        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> bool:
            return True

    with memory.write(Swallows(), "k"):
        raise LookupError
    assert read(memory, Source(k=1)) == (1, CacheOutcome.MISS)


def test_a_transaction_that_cannot_begin_or_commit_says_why(memory: JobCache) -> None:
    source = Source(k=1)

    @contextmanager
    def broken(*, begins: bool) -> Iterator[None]:
        if not begins:
            raise ConnectionError("begin")
        yield
        raise ConnectionError("commit")

    with pytest.raises(ConnectionError, match="begin"), memory.write(broken(begins=False), "k"):
        pass
    assert read(memory, source) == (1, CacheOutcome.MISS)
    with (
        pytest.raises(ConnectionError, match="commit"),
        memory.write(broken(begins=True), "k") as w,
    ):
        w.publish("k", document(2))
    assert read(memory, source) == (1, CacheOutcome.BYPASS), "nobody knows, so the fence stays"


def test_drivers_that_are_tied_to_a_thread_and_those_of_sqlalchemy(
    memory: JobCache, tmp_path: Path
) -> None:
    database = sqlite3.connect(tmp_path / "jobs.db")  # refuses other threads
    database.execute("CREATE TABLE jobs (version)")
    database.execute("INSERT INTO jobs VALUES (1)")
    database.commit()
    raises = "UPDATE jobs SET version = version + 1 RETURNING version"

    def load() -> Document:
        return document(database.execute("SELECT version FROM jobs").fetchone()[0])

    assert memory.read("k", load).entry.version == 1
    with memory.write(database, "k") as writing:
        writing.publish("k", document(writing.transaction.execute(raises).fetchone()[0]))
    with pytest.raises(WriteMisuse), memory.write(database, "other") as writing:
        writing.transaction.execute(raises)
    engine = create_engine(f"sqlite:///{tmp_path / 'jobs.db'}")
    with memory.write(engine.begin()) as through:
        version = through.transaction.execute(text(raises)).scalar_one()
        through.fence("k")
        through.publish("k", document(version))
    answer = memory.read("k", load)
    assert (answer.outcome, answer.entry.version, load().version) == (CacheOutcome.HIT, 3, 3)
    engine.dispose()
    database.close()


def test_what_a_load_raises_is_raised(memory: JobCache) -> None:
    def fail() -> Document:
        raise LookupError("a bug")

    def away() -> Document:
        raise SourceUnavailable("away")

    with pytest.raises(LookupError, match="a bug"):
        memory.read("k", fail)
    with pytest.raises(SourceUnavailable):
        memory.read("k", away)
    assert memory.read("k", lambda: None).entry.gone


def test_a_load_may_use_the_cache(memory: JobCache) -> None:
    source = Source(k=1, inner=5)
    version = memory.read("k", lambda: document(read(memory, source, "inner")[0])).entry.version
    assert version == 5


def test_a_factory_that_fails_is_called_again() -> None:
    tries = iter([SettingsError("REDIS_URL", "x", "y"), None])

    def make() -> MemoryBackend:
        error = next(tries)
        if error is not None:
            raise error
        return MemoryBackend()

    with JobCache(make) as cache:
        with pytest.raises(SettingsError):
            cache.start()
        assert read(cache, Source(k=1)) == (1, CacheOutcome.MISS)


def test_hits_are_compared_in_a_thread_of_their_own() -> None:
    source, compared = Source(k=1), threading.Event()

    def load() -> Document | None:
        if source.loads:
            compared.set()
        return source.load()

    with JobCache(CacheSettings(backend="memory", shadow_rate=1)) as cache:
        assert cache.read("k", load).outcome is CacheOutcome.MISS
        assert cache.read("k", load).outcome is CacheOutcome.HIT
        assert compared.wait(60)
    assert len(source.threads) == 2


# --- threads ---


def test_equal_reads_of_many_threads_cost_two_loads_at_most(memory: JobCache) -> None:
    source, all_in = Source(k=1), threading.Barrier(20)

    def poll(_: int) -> int:
        all_in.wait(60)
        return read(memory, source)[0]

    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(poll, range(20))) == {1}
    assert source.loads <= 2
    assert memory.statistics.hits + memory.statistics.misses == 20


def test_readers_and_writers_in_threads_never_see_an_older_version(cache: JobCache) -> None:
    source, turn = Source(k=1), threading.Lock()
    over = threading.Event()

    def poll() -> int:
        seen = reads = 0
        while not over.is_set() or reads < 10:
            min_version = source.versions["k"]
            version, _ = read(cache, source)
            assert version >= max(seen, min_version)
            seen, reads = version, reads + 1
        return seen

    with ThreadPoolExecutor(4) as pool:
        polls = [pool.submit(poll) for _ in range(3)]
        try:
            for _ in range(60):
                with turn:
                    write(cache, source)
        finally:
            over.set()
        for each in polls:
            assert each.result(10) <= 61
    assert read(cache, source)[0] == 61


# --- waiting ---


def test_a_waiter_is_woken_by_a_write_in_another_thread(cache: JobCache) -> None:
    source = Source(k=1)
    assert cache.wait_for_newer("k", source.load, 0, timeout=60) is not None, "newer already"
    assert cache.wait_for_newer("k", source.load, 1, timeout=0) is None
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(cache.wait_for_newer, "k", source.load, 1, timeout=60)
        while cache.info().waiting != (1, 1):
            time.sleep(0.001)
        write(cache, source)
        result = waiting.result(10)
    assert result is not None
    assert result.entry.version == 2


def test_a_waiter_loads_itself_when_the_loading_caller_has_left() -> None:
    """Two callers wait for one key: the reads use the load of the last one."""
    source = Source(k=1)
    threads = set[int]()
    often = PollIntervals(with_feed=0.02, without_feed=0.02)
    with JobCache(NullBackend, poll_intervals=often) as cache, ThreadPoolExecutor(1) as pool:

        def wait() -> int:
            threads.add(threading.get_ident())
            answer = cache.wait_for_newer("k", source.load, 1, timeout=60)
            return 0 if answer is None else answer.entry.version

        staying = pool.submit(wait)
        while cache.info().waiting != (1, 1):
            time.sleep(0.001)
        assert cache.wait_for_newer("k", source.load, 1, timeout=0.05) is None
        source.versions["k"] = 2
        assert staying.result(10) == 2
    assert source.threads == {threading.get_ident(), *threads}


def test_waiters_are_answered_when_waiting_is_cancelled(memory: JobCache) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(memory.wait_for_newer, "k", Source(k=1).load, 1, timeout=60)
        while memory.info().waiting != (1, 1):
            time.sleep(0.001)
        memory.cancel_waiters()
        assert waiting.result(10) is None


# --- the end ---


def test_a_closed_cache_raises_cache_closed_to_present_and_later_callers() -> None:
    cache, source = JobCache(MEMORY), Source(k=1)
    loading, may_go_on = threading.Event(), threading.Event()

    def slow() -> Document | None:
        loading.set()
        assert may_go_on.wait(60)
        return source.load()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.read, "k", slow)
        assert loading.wait(60)
        second = pool.submit(cache.read, "k", source.load)
        with cache.write(source.transaction("j"), "j") as writing:
            writing.publish("j", document(1))
            cache.close()
        assert source.ends == [None], "it costs nobody a commit"
        with pytest.raises(CacheClosed):
            second.result(5)
        may_go_on.set()
        with pytest.raises(CacheClosed):
            first.result(5)
    with pytest.raises(CacheClosed):
        cache.read("k", source.load)
    cache.close()
    JobCache(MEMORY).close()
    assert not [each for each in threading.enumerate() if each.name == "jobcache"]
