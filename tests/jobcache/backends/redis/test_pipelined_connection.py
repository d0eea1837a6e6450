"""All commands of a kind on one connection: whose answer is whose, and when it is given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from app.devservers import RedisServer
from jobcache.backends.redis.backend import RedisBackend
from jobcache.backends.redis.pipelined_connection import PipelinedConnection
from jobcache.backends.redis.server import Server
from jobcache.errors import CacheUnavailable
from jobcache.protocol.backend import LeaseResult
from jobcache.protocol.entry import Entry
from jobcache.testing.simulation import entry_of
from tests.subjects import by_the_pool

KEYS = [f"k{number}" for number in range(30)]
LIMIT_MS = 300


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    """One that may be paused, and whose clients may be killed."""
    with RedisServer() as server:
        yield server


@pytest.fixture
async def backend(redis_server: RedisServer) -> AsyncIterator[RedisBackend]:
    backend = RedisBackend(redis_server.url, prefix="pipelined:", socket_limit=LIMIT_MS / 1000)
    for number, key in enumerate(KEYS, 1):
        await backend.lease(key, "t")
        await backend.publish(key, "t", entry_of(number))
    yield backend
    await backend.aclose()
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()


def server_of(backend: RedisBackend) -> Server:
    (server,) = backend._topology.servers()
    return server


async def connection_of(backend: RedisBackend) -> PipelinedConnection:
    await backend.get(KEYS[0])
    pipelined = server_of(backend)._reads._connection
    assert pipelined is not None
    return pipelined


async def read_in_turns(backend: RedisBackend) -> list[asyncio.Task[Entry | None]]:
    """A get of every key, each in a turn of its own, before any of them can be answered."""
    tasks = []
    for key in KEYS:
        tasks.append(asyncio.create_task(backend.get(key)))
        await asyncio.sleep(0)
    return tasks


def pause(server: RedisServer, milliseconds: int) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.client_pause(milliseconds)


def versions(entries: list[Entry | None]) -> list[int]:
    return [0 if entry is None else entry.version for entry in entries]


async def test_reads_follow_each_other_on_one_connection(
    backend: RedisBackend, redis_server: RedisServer
) -> None:
    pipelined = await connection_of(backend)
    entries = await asyncio.gather(*await read_in_turns(backend))
    assert versions(entries) == list(range(1, len(KEYS) + 1))
    assert server_of(backend)._reads._connection is pipelined
    with redis.Redis.from_url(redis_server.url) as client:
        asked_last = [each["cmd"] for each in client.client_list()]
    assert asked_last.count("mget") == 1


async def test_cancelled_callers_do_not_shift_the_replies_of_others(
    backend: RedisBackend,
) -> None:
    await connection_of(backend)
    tasks = await read_in_turns(backend)
    for task in tasks[::3]:
        task.cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    for number, (task, entry) in enumerate(zip(tasks, found, strict=True), 1):
        if task.cancelled():
            assert number % 3 == 1
        else:
            assert isinstance(entry, Entry)
            assert entry.version == number


async def test_an_overdue_answer_closes_it_and_the_next_ask_on_another(
    backend: RedisBackend, redis_server: RedisServer
) -> None:
    pipelined = await connection_of(backend)
    pause(redis_server, 2 * LIMIT_MS)
    found = await asyncio.gather(*await read_in_turns(backend), return_exceptions=True)
    assert {type(each) for each in found} == {CacheUnavailable}
    assert pipelined.is_closing()
    with redis.Redis.from_url(redis_server.url) as client:
        client.ping()  # answered when it is over
    entries = await asyncio.gather(*await read_in_turns(backend))
    assert versions(entries) == list(range(1, len(KEYS) + 1))


async def test_commands_on_a_lost_connection_are_sent_again(
    backend: RedisBackend, redis_server: RedisServer
) -> None:
    pipelined = await connection_of(backend)
    pause(redis_server, LIMIT_MS // 3)
    tasks = await read_in_turns(backend)
    pipelined._transport.abort()
    assert versions(await asyncio.gather(*tasks)) == list(range(1, len(KEYS) + 1))
    assert pipelined.is_closing()


async def test_a_push_of_the_server_is_no_reply_to_a_command(
    backend: RedisBackend, redis_server: RedisServer
) -> None:
    pipelined = await connection_of(backend)
    await pipelined.request([("CLIENT", "TRACKING", "ON", "BCAST")])
    with redis.Redis.from_url(redis_server.url) as client:
        for number in range(20):
            client.set(f"other{number}", "1")
            entries = await asyncio.gather(*(backend.get(key) for key in KEYS))
            assert versions(entries) == list(range(1, len(KEYS) + 1))
    assert server_of(backend)._reads._connection is pipelined


async def test_after_an_unexpected_reply_the_connection_is_closed(backend: RedisBackend) -> None:
    pipelined = await connection_of(backend)
    pipelined.data_received(b"$1\r\nx\r\n")
    assert pipelined.is_closing()
    assert versions([await backend.get(KEYS[4])]) == [5]


async def test_with_another_parser_all_goes_by_the_pool(
    backend: RedisBackend, redis_server: RedisServer
) -> None:
    without = by_the_pool(RedisBackend(redis_server.url, prefix="pipelined:"))
    entries = await asyncio.gather(*await read_in_turns(without))
    assert versions(entries) == list(range(1, len(KEYS) + 1))
    await without.fence(KEYS[0], "w")
    assert await backend.lease(KEYS[0], "r") is LeaseResult.FENCED
    await without.publish(KEYS[0], "w", None)
    server = server_of(without)
    assert (server._reads._connection, server._scripted._connection) == (None, None)
    await without.aclose()


async def test_a_server_that_is_let_go_answers_what_it_has_been_asked(
    backend: RedisBackend, redis_server: RedisServer
) -> None:
    pipelined = await connection_of(backend)
    pause(redis_server, LIMIT_MS // 3)
    tasks = await read_in_turns(backend)
    await server_of(backend).retire()
    assert not pipelined.is_closing()
    assert versions(await asyncio.gather(*tasks)) == list(range(1, len(KEYS) + 1))
    assert pipelined.is_closing()
    assert versions([await backend.get(KEYS[4])]) == [5], "by the pool, for who still knows it"


async def test_a_read_needs_no_task_once_there_is_a_connection(backend: RedisBackend) -> None:
    await connection_of(backend)
    reading = backend.get_many_future(KEYS)
    assert not isinstance(reading, asyncio.Task)
    assert await reading == {key: entry_of(number) for number, key in enumerate(KEYS, 1)}


async def test_a_read_survives_a_lost_connection(
    backend: RedisBackend, redis_server: RedisServer
) -> None:
    pipelined = await connection_of(backend)
    pause(redis_server, LIMIT_MS // 3)
    reading = backend.get_many_future(KEYS)
    pipelined._transport.abort()
    async with asyncio.timeout(60):
        assert await reading == {key: entry_of(number) for number, key in enumerate(KEYS, 1)}


async def test_a_read_raises_what_went_wrong(backend: RedisBackend) -> None:
    with RedisServer() as server:
        single_server = RedisBackend(server.url, socket_limit=LIMIT_MS / 1000)
        await single_server.get("k")
        server.pause()
        with pytest.raises(CacheUnavailable, match="overdue"):
            await single_server.get_many_future(["k"])
        server.resume()
        await single_server.get("k")
        server.pause()
        reading = single_server.get_many_future(["k"])
        server.kill()
        with pytest.raises(CacheUnavailable):
            await reading
        await single_server.aclose()
    assert await backend.get(KEYS[0]) == entry_of(1)


@pytest.mark.parametrize("lost", [False, True])
async def test_a_read_under_way_ends_when_the_backend_closes(
    redis_server: RedisServer, *, lost: bool
) -> None:
    backend = RedisBackend(redis_server.url)
    pipelined = await connection_of(backend)
    pause(redis_server, LIMIT_MS // 3)
    reading = backend.get_many_future(["k"])
    if lost:
        pipelined.connection_lost(None)
    await backend.aclose()
    async with asyncio.timeout(60):
        await asyncio.wait({reading})
    assert reading.cancelled() or isinstance(reading.exception(), CacheUnavailable)


async def test_a_command_lost_while_closing_is_not_sent_again(redis_server: RedisServer) -> None:
    backend = RedisBackend(redis_server.url, prefix="closing:")
    await backend.fence("k", "first")
    server, pipelined = server_of(backend), server_of(backend)._scripted._connection
    assert pipelined is not None
    pause(redis_server, LIMIT_MS // 3)
    fencing = asyncio.create_task(backend.fence("other", "w"))
    wondering = server._verification = asyncio.create_task(slow_to_end())
    await asyncio.sleep(0.005)
    closing = asyncio.create_task(backend.aclose())
    await asyncio.sleep(0)
    pipelined._transport.abort()
    await closing
    assert wondering.cancelled()
    await asyncio.wait({fencing}, timeout=60)
    assert isinstance(fencing.exception(), CacheUnavailable)
    with redis.Redis.from_url(redis_server.url) as client:
        assert not client.exists("closing:other"), "once it is resumed"


async def test_a_closed_backend_opens_no_connection(redis_server: RedisServer) -> None:
    """A writer that goes on while its cache is closed would leave the connection open."""
    backend = RedisBackend(redis_server.url, prefix="closed:")
    await backend.fence("k", "w")
    await backend.aclose()
    before = asyncio.all_tasks()
    for operation in (backend.fence("k", "w"), backend.publish("k", "w", None), backend.get("k")):
        with pytest.raises(CacheUnavailable, match="closed"):
            await operation
    assert asyncio.all_tasks() == before
    assert server_of(backend)._fallback._pool._available_connections == []


async def slow_to_end() -> None:
    try:
        await asyncio.sleep(10)
    finally:
        await asyncio.sleep(0.02)


async def test_concurrent_callers_share_one_attempt_to_connect_and_its_failure() -> None:
    attempts = 0

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        await reader.read()  # until the other side hangs up
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    backend = RedisBackend(f"redis://127.0.0.1:{port}/0", socket_limit=0.1)
    fencing = []
    for number in range(20):
        fencing.append(asyncio.create_task(backend.fence(f"k{number}", "w")))
        await asyncio.sleep(0.001)
    await asyncio.wait(fencing)
    assert {type(task.exception()) for task in fencing} == {CacheUnavailable}
    assert 1 <= attempts <= 2
    await backend.aclose()
    silent.close()
    await silent.wait_closed()
    await asyncio.sleep(0.01)


async def test_commands_that_cannot_be_sent_fail_their_own_batch_only(
    backend: RedisBackend,
) -> None:
    await backend.lease("k", "r")
    bad = asyncio.create_task(backend.lease("bad \ud800", "r"))
    good = asyncio.create_task(backend.lease("good", "r"))
    await asyncio.wait({bad, good}, timeout=60)
    assert isinstance(bad.exception(), UnicodeEncodeError)
    assert good.done()
    assert await backend.lease("better", "r") is LeaseResult.ACQUIRED
    await backend.purge(["k", "good", "better"])


async def test_a_script_that_cannot_be_sent_fails_its_future(backend: RedisBackend) -> None:
    await backend.lease("k", "r")
    fencing = backend.fence_future("bad \ud800", "w")
    with pytest.raises(UnicodeEncodeError):
        await fencing
    await backend.purge(["k"])


async def test_a_script_is_sent_in_the_turn_in_which_it_is_called(
    backend: RedisBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    await backend.lease("k", "r")
    connection = server_of(backend)._scripted._connection
    assert connection is not None
    written: list[bytes] = []
    monkeypatch.setattr(connection._transport, "write", written.append)
    fencing = backend.fence_future("k", "w")
    assert len(written) == 1
    fencing.cancel()


async def test_further_scripts_of_a_turn_are_sent_together(
    backend: RedisBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"together-{number}" for number in range(10)]
    await backend.fence(keys[0], "w")  # the server knows the script now
    connection = server_of(backend)._scripted._connection
    assert connection is not None
    transport, written = connection._transport, []
    write = transport.write
    monkeypatch.setattr(transport, "write", lambda data: [written.append(data), write(data)])
    for _ in range(2):
        written.clear()
        await asyncio.gather(*(backend.fence_future(key, "w") for key in keys))
        assert [data.count(b"EVALSHA") for data in written] == [1, 9]
    await asyncio.gather(*(backend.publish(key, "w", None) for key in keys))


async def test_a_get_of_an_empty_cell_is_sent_once(
    backend: RedisBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    await backend.get("nothing")
    slot, sent = server_of(backend)._reads, []
    send, exchange = slot.send, slot.exchange
    monkeypatch.setattr(slot, "send", lambda *each: [sent.append(each), send(*each)])
    monkeypatch.setattr(slot, "exchange", lambda make: [sent.append(make), exchange(make)][1])
    assert await backend.get("nothing") is None
    assert len(sent) == 1


async def test_closing_ends_the_connection_and_its_callers(
    backend: RedisBackend, redis_server: RedisServer
) -> None:
    pipelined = await connection_of(backend)
    pause(redis_server, LIMIT_MS // 3)
    tasks = await read_in_turns(backend)
    await server_of(backend).aclose()
    await asyncio.wait(tasks)
    assert all(task.cancelled() or isinstance(task.exception(), CacheUnavailable) for task in tasks)
    assert pipelined.is_closing()
