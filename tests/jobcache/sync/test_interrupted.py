"""`jobcache.sync`, interrupted by signals: nothing is torn, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from types import FrameType

import pytest

from jobcache import CacheOutcome, Document, Entry
from jobcache.backends.memory import MemoryBackend
from jobcache.backends.null import NullBackend
from jobcache.protocol.backend import CacheBackend, LeaseResult, PublishResult
from jobcache.sync import JobCache
from tests.jobcache.bench import document
from tests.jobcache.sync.sync_bench import MEMORY, Source, read, write


@pytest.fixture
def memory() -> Iterator[JobCache]:
    with JobCache(MEMORY) as made:
        yield made


class Alarm(BaseException):
    pass


class Tripwire(MemoryBackend):
    """Signals the main thread from within its operations."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.trips: set[int] = set()

    def step(self) -> None:
        self.operations += 1
        if self.operations in self.trips:
            interrupt()

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:
        self.step()
        return await super().lease(key, token)

    async def fence(self, key: str, token: str) -> None:
        self.step()
        await super().fence(key, token)

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:
        self.step()
        return await super().publish(key, token, entry)


def interrupt() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


@contextmanager
def interrupted_soon() -> Iterator[None]:
    """Interrupt the block, when it has most likely come to its wait."""
    due = threading.Event()

    def strike() -> None:
        if due.wait(60):
            time.sleep(0.02)
            interrupt()

    striking = threading.Thread(target=strike)
    striking.start()
    try:
        due.set()
        yield
    finally:
        striking.join(60)


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    def raise_it(*_: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGUSR1, raise_it)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("trip", [1, 2, 3, 4, 5])
def test_a_write_interrupted_at_any_wait_is_whole_or_nothing(trip: int) -> None:
    backend, source = Tripwire(), Source(k=1, j=1)
    with JobCache(lambda: backend) as cache:
        backend.trips = {trip}
        interrupted = False
        try:
            with cache.write(source.transaction("k"), "k", "j") as writing:
                writing.fence("i")
                for key in "kji":
                    writing.publish(key, document(writing.transaction))
        except Alarm:
            interrupted = True
        assert interrupted == (trip <= backend.operations)
        assert source.open == 0
        assert source.ends == ([Alarm] if trip <= 3 else [None])
        version = source.versions["k"]
        expected = CacheOutcome.MISS if trip <= 3 else CacheOutcome.HIT
        assert read(cache, source) == (version, expected), "no fence is left behind"


def test_a_commit_that_is_interrupted_leaves_the_fence() -> None:
    source = Source(k=1)

    @contextmanager
    def transaction() -> Iterator[None]:
        yield
        interrupt()

    with JobCache(MEMORY) as cache:
        with pytest.raises(Alarm), cache.write(transaction(), "k") as writing:
            writing.publish("k", document(2))
        assert read(cache, source) == (1, CacheOutcome.BYPASS)


def test_a_write_that_waits_for_a_store_that_hangs_can_be_interrupted() -> None:
    class Hangs(MemoryBackend):
        async def fence(self, key: str, token: str) -> None:
            interrupt()
            await asyncio.Event().wait()

    source = Source(k=1)
    with JobCache(Hangs) as cache:
        with pytest.raises(Alarm), cache.write(source.transaction(), "k"):
            pass
        assert source.ends == [Alarm]


def test_an_interrupted_waiter_leaves_the_load_of_another_alone(memory: JobCache) -> None:
    source, loading, may_go_on = Source(k=1), threading.Event(), threading.Event()

    def slow() -> Document | None:
        loading.set()
        assert may_go_on.wait(60)
        return source.load()

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(memory.read, "k", slow)
        assert loading.wait(60)
        with pytest.raises(Alarm), interrupted_soon():
            memory.read("k", source.load)
        may_go_on.set()
        assert other.result(5).entry.version == 1
    assert read(memory, source) == (1, CacheOutcome.HIT)


def test_a_load_that_is_interrupted_is_replaced_by_that_of_another_who_waits() -> None:
    """The other shares a call whose thread is gone, and has a load of its own."""
    source, asked = Source(k=1), threading.Event()

    class Late(MemoryBackend):
        async def lease(self, key: str, token: str) -> Entry | LeaseResult:
            if not asked.is_set():
                interrupt()  # which finds the first still waiting, and the other with it
                asked.set()
                await asyncio.sleep(0.05)
            return await super().lease(key, token)

    with JobCache(Late) as cache, ThreadPoolExecutor(2) as pool:
        both_in = threading.Barrier(2)

        def ask() -> tuple[int, CacheOutcome]:
            both_in.wait(60)
            return read(cache, source)

        other = pool.submit(ask)
        both_in.wait(60)
        with pytest.raises(Alarm):
            cache.read("k", source.load)
        assert other.result(5) == (1, CacheOutcome.MISS)
        assert threading.get_ident() not in source.threads


class Strike:
    """Raises in this thread, at the given place of those it comes by in the given files.

    Places are where CPython calls the handlers of signals: at the beginning of a function, and
    after the return of one that is written in C.
    """

    def __init__(self, place: int, files: tuple[str, ...]) -> None:
        self.left = place
        self.files = files

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event in {"call", "c_return"} and frame.f_code.co_filename.endswith(self.files):
            self.left -= 1
            if self.left == 0:
                raise Alarm

    def __enter__(self) -> None:
        sys.setprofile(self)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


@pytest.mark.parametrize(("touch", "backend"), [(write, MemoryBackend), (read, NullBackend)])
def test_a_call_may_be_struck_at_every_place_it_comes_by(
    touch: Callable[[JobCache, Source], object], backend: Callable[[], CacheBackend]
) -> None:
    """Lines of the library and `contextlib`; work that others wait for is done or given up."""
    files = ("jobcache/sync/cache.py", "jobcache/sync/_loop_thread.py", "contextlib.py")
    source = Source(k=1)
    struck = 0
    # None waits: a fence may be left, which would hold up all that follow.
    with JobCache(backend, sleep=lambda _: asyncio.sleep(0)) as cache:
        write(cache, source)
        while True:
            try:
                with Strike(struck + 1, files):
                    touch(cache, source)
            except Alarm:
                struck += 1
            else:
                break
            assert source.open == 0, struck
            assert read(cache, source)[0] == source.versions["k"], struck
    assert struck > 5
    assert source.threads == {threading.get_ident()}


# What a handler raises within a finalizer is lost, in any program.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_signals_at_any_moment_tear_nothing() -> None:
    """Real ones, which strike somewhere in a write or a read."""
    source, struck, fuse = Source(k=1), 0, SimpleQueue[float | None]()

    def strike() -> None:
        while (after := fuse.get()) is not None:
            time.sleep(after)
            interrupt()

    striking = threading.Thread(target=strike)
    striking.start()
    with JobCache(MEMORY, sleep=lambda _: asyncio.sleep(0)) as cache:
        write(cache, source)
        for number in range(150):
            within = True
            try:
                fuse.put(number * 5e-6)
                write(cache, source)
                read(cache, source)
                within = False
                time.sleep(0.1)  # until it strikes
            except Alarm:
                struck += within
            assert source.open == 0
            assert read(cache, source)[0] == source.versions["k"]
    fuse.put(None)
    striking.join(5)
    assert struck > 10
    assert source.threads == {threading.get_ident()}


def test_a_wait_for_a_newer_version_can_be_interrupted() -> None:
    with JobCache(MEMORY) as cache, pytest.raises(Alarm), interrupted_soon():
        cache.wait_for_newer("k", Source(k=1).load, 1, timeout=60)


LEAVES = """
import asyncio, signal, threading
from jobcache import Document
from jobcache.backends.memory import MemoryBackend
from jobcache.sync import JobCache

class Slow(MemoryBackend):
    async def publish(self, key, token, entry):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        await asyncio.sleep(0.1)
        print("published", entry.version)
        return await super().publish(key, token, entry)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
cache = JobCache(Slow)
try:
    with cache.write("k") as write:
        write.publish("k", Document(1, "acme", b""))
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interpreter_that_exits_loses_no_publish_and_does_not_hang() -> None:
    result = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", LEAVES],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert (result.stdout, result.stderr) == ("interrupted\npublished 1\n", "")
