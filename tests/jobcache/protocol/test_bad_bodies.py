"""Bodies that cannot be read, or are too large to be stored: the source answers."""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import cache as remember
from typing import Any

import pytest
import redis as redis_client

from jobcache import CacheOutcome, CacheSettings, Document, JobCache
from jobcache.backends.registry import make_backend
from jobcache.errors import UnreadableCell
from jobcache.protocol.codec import Decoder, encode_entry, identity_body
from jobcache.protocol.entry import Entry
from jobcache.testing import conformance
from tests.jobcache.bench import Bench
from tests.subjects import BACKENDS

GOOD = json.dumps({"numbers": list(range(1000))}).encode()
LONG = json.dumps([time.time_ns() * n**7 % 10**12 for n in range(3000)]).encode()
PACKED, LONG_PACKED = gzip.compress(GOOD), gzip.compress(LONG)
MIB = 1024 * 1024


@remember
def bomb() -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return packer.compress(bytes(65 * MIB)) + packer.flush()


BODIES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "no gzip": ("gzip", lambda: b"rubbish"),
    "no gzip, long": ("gzip", lambda: b"rubbish" * 5000),
    "empty gzip": ("gzip", lambda: b""),
    "gzip cut short": ("gzip", lambda: PACKED[:-9]),
    "gzip without its end": ("gzip", lambda: LONG_PACKED[:-1]),
    "gzip of other bytes": ("gzip", lambda: PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:]),
    "gzip and more": ("gzip", lambda: PACKED + b"more"),
    "gzip of too much": ("gzip", bomb),
    "no JSON": ("identity", lambda: b"rubbish"),
    "JSON cut short": ("gzip", lambda: gzip.compress(GOOD[:-1])),
    "no JSON, long": ("identity", lambda: b"[1" * 10_000),
    "no UTF-8": ("identity", lambda: b'"\xff"'),
}


@pytest.fixture(params=["redis", "tiered"])
async def cache(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[JobCache]:
    """A cache whose bodies are JSON, with entries on an empty server."""
    with redis_client.Redis.from_url(redis_url) as raw:
        raw.flushall()
    backend = make_backend(CacheSettings(backend=request.param, redis_url=redis_url))
    cache = JobCache(backend, check_body=lambda _, body: json.loads(body))
    await cache.start()
    yield cache
    await cache.aclose()


async def load() -> Document:
    return Document(9, "acme", GOOD, "moving", 2)


async def load_many(keys: Sequence[str]) -> Mapping[str, Document]:
    return dict.fromkeys(keys, await load())


def spoil(url: str, key: str, encoding: str, body: bytes) -> None:
    """Replace the cell's body, and let all else be in order."""
    with redis_client.Redis.from_url(url) as raw:
        cell = raw.get(key)
        assert isinstance(cell, bytes)
        header = cell[: cell.index(b"\n")].split(b"|")
        header[6], header[7] = encoding.encode(), b"%08x" % zlib.crc32(body)
        raw.set(key, b"|".join(header) + b"\n" + body, px=60_000)


@pytest.mark.parametrize("bad", BODIES)
@pytest.mark.parametrize("way", ["read", "read_many", "wait_for_newer"])
async def test_a_body_that_cannot_be_read_is_loaded_again(
    cache: JobCache, redis_url: str, bad: str, way: str
) -> None:
    async def read() -> Any:
        if way == "read_many":
            return (await cache.read_many(["k", "l"], load_many))["k"]
        if way == "wait_for_newer":
            return await cache.wait_for_newer("k", load, 0, 1)
        return await cache.read("k", load)

    await read()
    encoding, make = BODIES[bad]
    spoil(redis_url, "k", encoding, make())
    cache.backend.clock_set_back(0)  # type: ignore[attr-defined] # the local tier forgets it
    outcomes = []
    for _ in range(4):
        answer = await read()
        assert answer.body == GOOD
        outcomes.append(answer.outcome)
    assert outcomes[0] is not CacheOutcome.HIT
    assert outcomes[2:] == [CacheOutcome.HIT] * 2
    reading = cache.reads.read_future("k", load)
    assert reading is None or await reading is not None
    assert cache.info().health.available


def entry(body: bytes, encoding: str = "identity", version: int = 1) -> Entry:
    now_ms = 1_700_000_000_000
    return Entry(version, "acme", "moving", 2, body, encoding, now_ms, 30_000, 60_000)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [10, 100_000], ids=["small", "large"])
def test_a_body_is_checked_once(size: int) -> None:
    checked: list[tuple[str, bytes]] = []
    decoder = Decoder(len("prefix:"))
    decoder.check = lambda key, body: checked.append((key, body))
    body = b"%d" % time.time_ns() + bytes(range(256)) * (size // 256)
    cell = encode_entry(entry(body), "life")
    for _ in range(3):
        assert decoder.decode("prefix:k", cell, "life") == entry(body)
    assert checked == [("k", body)]
    other = encode_entry(entry(body, version=2), "life")
    decoder.decode("prefix:k", other, "life")
    decoder.decode("prefix:l", cell, "life")
    assert [key for key, _ in checked] == ["k", "k", "l"]


@pytest.mark.parametrize("size", [10, 100_000], ids=["small", "large"])
def test_a_decoder_keeps_a_limited_number_of_cells(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("jobcache.protocol.codec._KNOWN", 2)
    checked: list[str] = []
    decoder = Decoder()
    decoder.check = lambda key, _: checked.append(key)
    cell = encode_entry(entry(bytes(size)), "life")
    for name in ("a", "b", "b", "c", "c", "a"):
        assert decoder.decode(name, cell, "life") == entry(bytes(size))
    assert checked == ["a", "b", "c", "a"], "the third cell takes the place of both"


def test_missing_documents_and_large_bodies_are_not_checked() -> None:
    def refuse(key: str, body: bytes) -> None:
        raise ZeroDivisionError(key, body)

    decoder = Decoder()
    decoder.check = refuse
    decoder.decode("k", encode_entry(entry(b"", version=0), "life"), "life")
    decoder.decode("k", encode_entry(entry(bytes(MIB + 1)), "life"), "life")
    rubbish = encode_entry(entry(b"rubbish" * MIB, "gzip"), "life")
    decoder.decode("k", rubbish, "life")  # not even decompressed, because that would take long
    with pytest.raises(UnreadableCell, match="is not valid: ZeroDivisionError"):
        decoder.decode("k", encode_entry(entry(b"x"), "life"), "life")


def test_a_body_that_just_fits_can_be_read_again() -> None:
    for size, fits in ((64 * MIB, True), (64 * MIB + 1, False)):
        packed = entry(gzip.compress(bytes(size), 1), "gzip")
        if fits:
            assert len(identity_body(packed)) == size
        else:
            with pytest.raises(UnreadableCell, match="too large"):
                identity_body(packed)


@pytest.mark.parametrize("subject", BACKENDS, indirect=True)
async def test_a_document_that_is_too_large_to_be_stored_is_served(
    subject: conformance.Subject,
) -> None:
    bench = Bench(subject)
    body = bytes(65 * MIB)
    version = 1

    async def load() -> Document:
        return Document(version, "acme", body, "moving", 2)

    for _ in range(2):
        answer = await bench.cache.read("k", load)
        assert answer.outcome is CacheOutcome.MISS
        assert answer.body == body
    many = await bench.cache.read_many(["k"], lambda _: _many(load))
    assert len(many["k"].body) == len(body)
    bench.source.versions["k"] = version
    transaction_version = await bench.write("k")
    version = transaction_version + 1
    answer = await bench.cache.read("k", load, min_version=version)
    assert answer.entry.version == version
    assert bench.cache.statistics.errors == 0
    await bench.cache.aclose()


async def _many(load: Callable[[], Any]) -> Mapping[str, Document]:
    return {"k": await load()}
