"""`jobcache.sync` in processes that fork: each has a loop, a backend and connections of its own."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import pytest
import redis as redis_client

import jobcache
from jobcache import CacheOutcome, CacheSettings, Document
from jobcache.errors import WriteMisuse
from jobcache.sync import JobCache, Write
from tests.jobcache.bench import document
from tests.jobcache.sync.sync_bench import MEMORY, Source, read, write


@pytest.fixture
def memory() -> Iterator[JobCache]:
    with JobCache(MEMORY) as made:
        yield made


forking = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


class Child:
    """A fork of this process that runs one function, and what came of it."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.write(writing, json.dumps(function()).encode())
                status = 0
            except BaseException as error:  # noqa: BLE001 - reported to the parent
                os.write(writing, json.dumps(repr(error)).encode())
            finally:
                os._exit(status)
        os.close(writing)

    def result(self) -> Any:
        output = b""
        try:
            while select.select([self._reading], [], [], 15)[0]:
                part = os.read(self._reading, 65536)
                if not part:
                    break
                output += part
            else:
                os.kill(self.pid, signal.SIGKILL)
        finally:
            os.close(self._reading)
            _, status = os.waitpid(self.pid, 0)
        assert status == 0, output
        return json.loads(output)


def connections(cache: JobCache) -> set[int]:
    """The ids of this process's connections, by asking on them."""

    async def ask(inner: jobcache.JobCache, _: object) -> set[int]:
        (server,) = inner.backend._backend._topology.servers()  # type: ignore[attr-defined]
        ways = (server._reads, server._scripted)
        asked = (server._trips.exchange(way, lambda _: [("CLIENT", "ID")]) for way in ways)
        return {number for (number,), _ in await asyncio.gather(*asked)}

    return cache._here().call(ask)


@forking
def test_parent_and_children_read_and_write_at_once_on_their_own_connections(
    redis_url: str,
) -> None:
    with redis_client.Redis.from_url(redis_url) as raw:
        raw.flushall()
    settings = CacheSettings(backend="redis", redis_url=redis_url)
    source, over = Source(k=1, shared=7), threading.Event()

    def polls() -> int:
        reads = 0
        while not over.is_set() or reads < 20:
            assert read(cache, source)[0] == 1
            reads += 1
        return reads

    def child(name: str) -> Callable[[], list[int]]:
        def work() -> list[int]:
            for version in range(1, 30):
                write(cache, source, name)
                assert read(cache, source, name) == (version, CacheOutcome.HIT)
                assert read(cache, source, "shared")[0] == 7
                assert read(cache, source)[0] == 1
            ids = sorted(connections(cache))
            cache.close()
            return ids

        return work

    with JobCache(settings) as cache, ThreadPoolExecutor(3) as pool:
        before = connections(cache)
        polling = [pool.submit(polls) for _ in range(2)]
        children = [Child(child(f"child{number}")) for number in range(3)]
        try:
            parents = set[int]()
            for version in range(1, 30):
                write(cache, source, "parent")
                assert read(cache, source, "parent") == (version, CacheOutcome.HIT)
                parents |= connections(cache)
            owned = [set(each.result()) for each in children]
        finally:
            over.set()
        assert all(poll.result(10) >= 20 for poll in polling)
        for number in range(3):
            assert read(cache, Source(), f"child{number}") == (29, CacheOutcome.HIT)
        assert cache.statistics.errors == 0
        everybody = [before | parents, *owned]
        assert len(set.union(*everybody)) == sum(map(len, everybody)), "no connection is shared"
        with redis_client.Redis.from_url(redis_url) as raw:
            alive = {int(each["id"]) for each in raw.client_list()}
        assert before <= alive, "and the parent has kept its own"


@forking
def test_in_a_child_memory_is_empty_and_its_own(memory: JobCache) -> None:
    source = Source(k=1)
    read(memory, source)
    grandchild = Child(
        lambda: (
            read(memory, source)[1].value,
            Child(lambda: read(memory, source)[1].value).result(),
        )
    )
    assert grandchild.result() == ["miss", "miss"]
    assert read(memory, source) == (1, CacheOutcome.HIT)


@forking
def test_a_fork_while_other_threads_are_at_every_kind_of_work_does_not_hang() -> None:
    """Whatever lock they hold is held in the child for ever."""
    over = threading.Event()
    source = Source(k=1)

    def busy() -> None:
        while not over.is_set():
            with JobCache(MEMORY) as short:
                read(short, Source(k=1))
            read(cache, source)

    with JobCache(MEMORY) as cache, ThreadPoolExecutor(3) as pool:
        working = [pool.submit(busy) for _ in range(3)]
        try:
            for _ in range(20):
                assert Child(lambda: read(cache, source)[0]).result() == 1
        finally:
            over.set()
        for each in working:
            each.result(10)


@forking
@pytest.mark.parametrize("around", ["a transaction", "nothing"])
def test_a_write_is_the_parents_when_its_block_forks(memory: JobCache, around: str) -> None:
    source = Source(k=1)

    def leaves_the_block(how: BaseException | None) -> list[Any]:
        try:
            if how is not None:
                raise how
            with pytest.raises(RuntimeError, match="before a fork"):
                writing.fence("j")
            manager.__exit__(None, None, None)
        except WriteMisuse as error:
            return [str(error), source.ends]
        except LookupError:
            return [manager.__exit__(*sys.exc_info()), source.ends]
        raise AssertionError

    manager: AbstractContextManager[Write[Any]] = (
        memory.write("k") if around == "nothing" else memory.write(source.transaction(), "k")
    )
    with manager as writing:
        assert Child(lambda: leaves_the_block(None)).result() == [
            "a fork within the block left with two processes at its end",
            [],
        ]
        assert Child(lambda: leaves_the_block(LookupError())).result() == [False, []]
        writing.publish("k", document(2))
    assert read(memory, source) == (2, CacheOutcome.HIT)


@forking
def test_a_load_that_forks_may_come_to_an_end_in_both_processes(memory: JobCache) -> None:
    children: list[int] = []

    def load() -> Document:
        child = os.fork()
        if child:
            children.append(child)
        return document(1)

    try:
        assert memory.read("k", load).entry.version == 1
    except RuntimeError:
        os._exit(7 if not children else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 7


EXITS = """
import os, sys
from jobcache import CacheSettings, Document
from jobcache.sync import JobCache

def load():
    return Document(1, "acme", b"")

cache = JobCache(CacheSettings(backend="redis", redis_url=sys.argv[1]))
cache.read("k", load)
child = os.fork()
if child:
    os.waitpid(child, 0)
print(cache.read("k", load).entry.version, flush=True)
"""


@forking
def test_a_child_may_exit_as_any_program_does(redis_url: str) -> None:
    """Inherited objects are not collected at its exit, with warnings about open sockets."""
    with redis_client.Redis.from_url(redis_url) as raw:
        raw.flushall()
    result = subprocess.run(
        [
            sys.executable,
            "-W",
            "default",
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            EXITS,
            redis_url,
        ],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert (result.stdout, result.stderr) == ("1\n1\n", "")
