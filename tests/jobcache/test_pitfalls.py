"""What other caches have got wrong, where no other file of these tests is about it."""

from __future__ import annotations

import ast
import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

import app
import jobcache
from app.devservers import RedisServer, free_port
from jobcache import CacheOutcome, CacheUnavailable, Document, JobCache, Lifetimes
from jobcache.backends.redis.backend import RedisBackend
from jobcache.resilience.guarded_backend import GuardedBackend
from jobcache.testing.conformance import Subject
from tests.jobcache.bench import Source, Transaction, document
from tests.subjects import BACKENDS, KEEPING, by_the_pool


@pytest.mark.parametrize("subject", BACKENDS, indirect=True)
async def test_clocks_that_are_hours_apart_cost_loads_and_never_freshness(subject: Subject) -> None:
    source = Source()
    hours = 3_600_000
    caches = [
        JobCache(subject.backend, lifetimes=Lifetimes(), clock_ms=lambda skew=skew: now_ms + skew)  # type: ignore[misc]
        for skew in (0, -3 * hours, 5 * hours, 1)
    ]
    now_ms = 1_700_000_000_000
    for number in range(40):
        writer = caches[number % 4]
        async with writer.write(Transaction(source, "k"), "k") as write:
            write.publish("k", document(write.transaction.version))
        for reader in caches:
            answer = await reader.read("k", lambda: source.load("k"))
            assert answer.entry.version == number + 1
        now_ms += 100


@pytest.mark.parametrize("subject", KEEPING, indirect=True)
@pytest.mark.parametrize("body", [b"", b"{}", b"0", b"null", b"false", b"[]"])
async def test_falsy_bodies_are_hits(subject: Subject, body: bytes) -> None:
    cache = JobCache(subject.backend)

    async def load() -> Document:
        return Document(1, "", body)

    assert (await cache.read("k", load)).outcome is CacheOutcome.MISS
    answer = await cache.read("k", load)
    assert (answer.outcome, answer.body) == (CacheOutcome.HIT, body)


@pytest.mark.usual_limits
async def test_a_redis_that_hangs_does_not_block_the_event_loop() -> None:
    with RedisServer() as server:
        guard = GuardedBackend(RedisBackend(server.url))
        await guard.get("k")
        server.pause()
        waiting = asyncio.create_task(guard.get("k"))
        turns = 0
        while not waiting.done():
            await asyncio.sleep(0)
            turns += 1
        assert isinstance(waiting.exception(), CacheUnavailable)
        assert turns > 500
        server.resume()
        await guard.aclose()


async def test_a_connection_that_is_closed_at_once_is_tried_twice_and_no_more() -> None:
    """redis-py's own default is ten times, with seconds in between."""
    accepted = 0

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        writer.close()

    port = free_port()
    async with await asyncio.start_server(close, "127.0.0.1", port):
        backend = RedisBackend(f"redis://127.0.0.1:{port}/0")
        with pytest.raises(CacheUnavailable):
            await backend.get("k")
        assert 1 <= accepted <= 2
        await backend.aclose()


@pytest.mark.parametrize("prepare", [by_the_pool, lambda backend: backend])
async def test_connections_recover_after_time_outs(
    prepare: Callable[[RedisBackend], RedisBackend],
) -> None:
    with RedisServer() as server, redis.Redis(port=server.port) as raw:
        backend = prepare(RedisBackend(server.url, socket_limit=0.05, connections=4))

        async def failures() -> list[BaseException]:
            asked = [backend.lease(f"k{number}", "r") for number in range(200)]
            results = await asyncio.gather(*asked, return_exceptions=True)
            return [result for result in results if isinstance(result, BaseException)]

        async def all_are_answered() -> None:
            async with asyncio.timeout(60):
                while await failures():
                    pass  # on a busy machine replies can be later than the short limit

        for _ in range(3):
            await all_are_answered()
            server.pause()
            failed = await failures()
            assert [type(error) for error in failed] == [CacheUnavailable] * 200
            server.resume()
        await all_are_answered()
        deadline = time.monotonic() + 60
        while raw.info("clients")["connected_clients"] > 4 + 1:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        await backend.aclose()


def test_nothing_is_ever_unpickled_or_evaluated() -> None:
    """Otherwise anybody who can write to Redis could run code here."""
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "jsonpickle"}
    found = []
    for package in (jobcache, app):
        for path in Path(package.__path__[0]).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                names: set[str] = set()
                if isinstance(node, ast.Import):
                    names = {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    names = {(node.module or "").split(".")[0]}
                elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    names = {node.func.id} & {"eval", "exec"}
                found += [(path.name, name) for name in names & (forbidden | {"eval", "exec"})]
    assert found == []
