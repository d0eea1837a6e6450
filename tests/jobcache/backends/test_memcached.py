"""memcached has its own problems: restarts, odd keys, limits, and a client in threads."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import replace

import pytest
import pytest_asyncio

from app.devservers import MemcachedServer
from app.devservers.programs import memcached_program
from jobcache import (
    CacheOutcome,
    CacheSettings,
    CacheUnavailable,
    Document,
    JobCache,
    SettingsError,
)
from jobcache.backends.compare_and_set import CellTooLarge
from jobcache.backends.memcached import MemcachedBackend
from jobcache.backends.registry import make_backend
from jobcache.protocol.backend import LeaseResult, PublishResult
from jobcache.protocol.key import LONGEST_KEY
from jobcache.testing.simulation import entry_of
from tests.installed import require_program
from tests.subjects import PATIENCE, MemcachedSubject


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    require_program(memcached_program)


@pytest_asyncio.fixture
async def subject(memcached_server: MemcachedServer) -> AsyncIterator[MemcachedSubject]:
    made = MemcachedSubject(memcached_server.url)
    yield made
    await made.aclose()


@pytest_asyncio.fixture
async def backend(subject: MemcachedSubject) -> MemcachedBackend:
    return subject.backend


# --- tokens ---


async def test_a_token_from_before_a_restart_is_refused() -> None:
    """Though the restarted server counts its tokens from 1 again."""
    with MemcachedServer() as server:
        async with aclosing(MemcachedBackend(server.url, socket_limit=PATIENCE)) as backend:
            await backend.compare_and_set("k", b"lease", None, 60)
            before = await backend.read("k")
            assert before is not None
            server.kill()
            server.start()
            added = False
            while not added:
                with suppress(CacheUnavailable):  # of the first command to a process that is gone
                    added = await backend.compare_and_set("k", b"fence", None, 60)
            now = await backend.read("k")
            assert now is not None
            assert before[1].number == now[1].number, "or this test shows nothing"
            assert not await backend.compare_and_set("k", b"entry", before[1], 60)
            assert not await backend.delete("k", before[1])
            assert await backend.read("k") == now
            assert await backend.delete("k", now[1])


async def test_one_thread_notices_for_all_that_the_server_was_restarted() -> None:
    """Each has a connection, and one that opens its first after the restart does not fail."""
    with (
        MemcachedServer() as server,
        ThreadPoolExecutor(1) as first,
        ThreadPoolExecutor(1) as second,
    ):
        async with aclosing(MemcachedBackend(server.url, socket_limit=PATIENCE)) as backend:
            backend._threads.shutdown()
            backend._threads = first
            await backend.compare_and_set("k", b"1", None, 60)
            server.kill()
            server.start()
            backend._threads = second
            assert await backend.compare_and_set("k", b"2", None, 60)
            backend._threads = first
            found = await backend.read("k")
            assert found is not None
            assert found[0] == b"2"


async def test_what_was_deleted_by_its_token_is_gone_and_can_be_added(
    backend: MemcachedBackend,
) -> None:
    await backend.compare_and_set("k", b"1", None, 60)
    found = await backend.read("k")
    assert found is not None
    assert await backend.delete("k", found[1])
    assert await backend.read("k") is None
    assert not await backend.delete("k", found[1])
    assert not await backend.compare_and_set("k", b"2", found[1], 60)
    assert await backend.compare_and_set("k", b"2", None, 60)
    assert not await backend.compare_and_set("k", b"3", None, 60)


# --- keys ---

ODD_KEYS = [
    "with space",
    "with\nline",
    "with\0null",
    "ünï:cödé",
    "~" + hashlib.sha256(b"with space").hexdigest(),
    "k" * 246,
    "k" * LONGEST_KEY,
    "",
    "{tag}",
    "\x7f",
]


async def test_keys_that_memcached_refuses_are_kept_apart(backend: MemcachedBackend) -> None:
    for version, key in enumerate(ODD_KEYS, start=1):
        assert await backend.lease(key, "r") is LeaseResult.ACQUIRED, key
        assert await backend.publish(key, "r", entry_of(version)) is PublishResult.STORED
    found = await backend.get_many([*ODD_KEYS, "k" * 245])
    assert found == {key: entry_of(number) for number, key in enumerate(ODD_KEYS, start=1)}


async def test_a_plain_key_is_stored_under_its_own_name(subject: MemcachedSubject) -> None:
    await subject.backend.lease("job:7:progress", "r")
    assert b"L1|" in subject.raw.get("test:job:7:progress")


async def test_services_with_other_sources_do_not_see_each_other(
    memcached_server: MemcachedServer,
) -> None:
    one, two, three = (
        MemcachedBackend(memcached_server.url, source_id=source, socket_limit=PATIENCE)
        for source in ("one", "two", "")
    )
    three.identify("one")
    await one.lease("shared", "r")
    await one.publish("shared", "r", entry_of(1))
    assert await two.lease("shared", "s") is LeaseResult.ACQUIRED
    assert await three.get("shared") == entry_of(1)
    for each in (one, two, three):
        await each.aclose()


# --- limits ---


async def test_a_lifetime_of_months_is_no_date_in_the_past(backend: MemcachedBackend) -> None:
    await backend.lease("k", "r")
    long = replace(entry_of(1), keep_ms=100 * 24 * 3600 * 1000)
    await backend.publish("k", "r", long)
    assert await backend.get("k") == long


async def test_an_item_above_the_servers_limit_is_not_kept_and_breaks_nothing() -> None:
    with MemcachedServer(arguments=["-I", "1m"]) as server:
        backend = MemcachedBackend(server.url, socket_limit=PATIENCE)
        large = replace(entry_of(2), encoded_body=bytes(2 * 1024 * 1024))
        with pytest.raises(CellTooLarge):
            await backend.compare_and_set("k", large.encoded_body, None, 60)
        await backend.fence("k", "w")
        published = await backend.publish("k", "w", large)
        assert published in {PublishResult.REMOVED, PublishResult.NOTHING}
        assert await backend.lease("k", "r") is LeaseResult.ACQUIRED
        assert await backend.publish("k", "r", entry_of(3)) is PublishResult.STORED
        await backend.aclose()


# --- a server that is away, and callers that leave ---


async def test_after_a_restart_one_failure_renews_every_connection() -> None:
    with MemcachedServer() as server:
        backend = MemcachedBackend(server.url, connections=4, socket_limit=PATIENCE)
        await asyncio.gather(*(backend.lease(f"k{number}", "r") for number in range(40)))
        server.kill()
        with pytest.raises(CacheUnavailable, match="memcached: "):
            await backend.get("k1")
        server.start()
        with suppress(CacheUnavailable):  # may be the first command of another thread
            await backend.ping()
        found = [await backend.lease(f"k{number}", "s") for number in range(40)]
        assert found == [LeaseResult.ACQUIRED] * 40, "it is empty"
        await backend.aclose()


async def test_a_server_that_hangs_is_given_up_and_holds_up_nothing_afterwards() -> None:
    with MemcachedServer() as server:
        backend = MemcachedBackend(server.url, connections=2, socket_limit=0.05)
        with suppress(CacheUnavailable):  # on a busy machine it is slow to connect
            await backend.ping()
        server.pause()
        gets = [backend.get(f"k{number}") for number in range(20)]
        failed = await asyncio.gather(*gets, return_exceptions=True)
        assert {type(each) for each in failed} == {CacheUnavailable}
        assert any("waiting for it" in str(each) for each in failed), "most did not wait in turn"
        server.resume()
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(CacheUnavailable):
                    await backend.ping()
                    break
        await backend.aclose()


async def test_the_reply_of_a_cancelled_caller_goes_to_no_other_caller(
    backend: MemcachedBackend,
) -> None:
    for number in range(20):
        await backend.lease(f"k{number}", "r")
        await backend.publish(f"k{number}", "r", entry_of(number + 1))
    for turn in range(10):
        gone = [asyncio.create_task(backend.get(f"k{number}")) for number in range(20)]
        for _ in range(turn % 4):
            await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        asked = await asyncio.gather(*(backend.get(f"k{number}") for number in range(20)))
        assert asked == [entry_of(number + 1) for number in range(20)]
        await asyncio.gather(*gone, return_exceptions=True)


async def test_a_server_that_is_no_memcached_is_unavailable() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"VALUE nonsense\r\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    backend = MemcachedBackend(f"memcached://127.0.0.1:{port}", socket_limit=PATIENCE)
    with pytest.raises(CacheUnavailable, match="memcached: "):
        await backend.ping()
    await backend.aclose()
    server.close()
    await server.wait_closed()


async def test_a_closed_backend_leaves_neither_threads_nor_sockets(
    memcached_server: MemcachedServer,
) -> None:
    backend = MemcachedBackend(memcached_server.url, socket_limit=PATIENCE)
    asked = [asyncio.create_task(backend.get(f"k{number}")) for number in range(50)]
    await asyncio.sleep(0)
    await backend.aclose()
    await asyncio.gather(*asked, return_exceptions=True)
    with pytest.raises(CacheUnavailable, match="is closed"):
        await backend.get("k")
    async with asyncio.timeout(PATIENCE):
        while any(each.name.startswith("jobcache-memcached") for each in threading.enumerate()):
            await asyncio.sleep(0.001)
    del backend
    gc.collect()  # an open socket would be a warning, and so a failure


# --- in a program ---


async def test_a_cache_is_made_from_its_url(memcached_server: MemcachedServer) -> None:
    async def load() -> Document:
        return Document(version=1, owner="acme", body=b'{"percent": 50}')

    async with JobCache.from_url(memcached_server.url, prefix="from-url:") as cache:
        async with asyncio.timeout(PATIENCE):  # on a busy machine a deadline may pass
            while (await cache.read("k", load)).outcome is not CacheOutcome.HIT:
                pass
        assert cache.info().backend == "memcached"


def test_greenlets_and_forks_share_it(memcached_server: MemcachedServer) -> None:
    """Its threads may be greenlets, and a fork has connections of its own."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GREENLETS, memcached_server.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.stdout == "hit\nhit in a fork\n", result.stderr


GREENLETS = """
from gevent import monkey
monkey.patch_all()
import os, sys
import gevent
from jobcache import Document
from jobcache.sync import JobCache

def load():
    return Document(version=1, owner="a", body=b"{}")

with JobCache.from_url(sys.argv[1], prefix="greenlets:") as cache:
    found = set()
    while found != {"hit"}:
        jobs = [gevent.spawn(cache.read, str(number % 5), load) for number in range(50)]
        gevent.joinall(jobs, raise_error=True)
        found = {job.value.outcome.value for job in jobs}
    print("hit", flush=True)
    if os.fork() == 0:
        while cache.read("1", load).outcome.value != "hit":
            pass
        print("hit in a fork", flush=True)
        os._exit(0)
    os.wait()
"""


# --- settings ---


@pytest.mark.parametrize(
    "url",
    [
        "memcached://cache.example.com:11211",
        "memcached://cache.example.com",
        "memcached://[::1]:11211/",
        "memcached:///run/memcached.sock",
    ],
)
async def test_urls_that_can_be_used(url: str) -> None:
    settings = CacheSettings.from_environment(
        {"JOBCACHE_BACKEND": "memcached", "MEMCACHED_URL": url, "JOBCACHE_PREFIX": "video:"}
    )
    backend = make_backend(settings)
    assert backend.name == "memcached"
    assert backend.condition().available, "it is behind a guard"  # type: ignore[attr-defined]
    await backend.aclose()


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:11211",
        "memcached:/",
        "memcached://host:port",
        "memcached://host/0",
        "memcached://name:secret@host",
        "memcached://host?timeout=1",
        "redis://host",
    ],
)
def test_urls_that_cannot_be_used_are_named_without_their_secrets(url: str) -> None:
    with pytest.raises(SettingsError, match="MEMCACHED_URL=") as failure:
        CacheSettings.from_environment({"MEMCACHED_URL": url})
    assert "memcached://host:port" in str(failure.value)
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize(
    "url",
    ["memcached://host:99999", "memcached://host/0", "memcached:/", "redis://host"],
)
def test_a_url_that_was_set_in_code_is_checked_too(url: str) -> None:
    settings = CacheSettings(backend="memcached", memcached_url=url)
    with pytest.raises(SettingsError, match=f"MEMCACHED_URL={url}: "):
        make_backend(settings)


async def test_a_unix_socket_is_reached(tmp_path_factory: pytest.TempPathFactory) -> None:
    with MemcachedServer() as server:

        async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            passing.append(asyncio.current_task())
            there, back = await asyncio.open_connection("127.0.0.1", server.port)

            async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
                while part := await source.read(65536):
                    sink.write(part)
                sink.close()
                await sink.wait_closed()

            await asyncio.gather(copy(reader, back), copy(there, writer))

        passing: list[asyncio.Task[None] | None] = []
        path = tmp_path_factory.mktemp("s") / "memcached.sock"
        relay = await asyncio.start_unix_server(pass_on, path)
        backend = MemcachedBackend(f"memcached://{path}", socket_limit=PATIENCE, connections=1)
        await backend.ping()
        await backend.aclose()
        await asyncio.gather(*filter(None, passing))
        relay.close()
        await relay.wait_closed()
