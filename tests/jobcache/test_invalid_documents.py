"""Documents and keys that cannot be cached are refused with one error, on every backend."""

from __future__ import annotations

import asyncio
import enum
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from jobcache import CacheOutcome, Document, InvalidDocument, JobCache, JobCacheError
from jobcache.errors import InvalidKey
from jobcache.protocol.codec import identity_body
from jobcache.protocol.document import VERSION_LIMIT
from jobcache.protocol.key import LONGEST_KEY
from jobcache.testing import conformance
from tests.jobcache.bench import Bench, Transaction, document
from tests.subjects import BACKENDS

everywhere = pytest.mark.parametrize("subject", BACKENDS, indirect=True)


class Number(int):
    """What a driver may return for a number."""


class Status(str, enum.Enum):  # noqa: UP042 - the older form, which is written otherwise
    MOVING = "moving"


WRONG: list[dict[str, object]] = [
    *(
        {"version": version}
        for version in (
            *(-1, VERSION_LIMIT, 2**64, True, False, 1.0, 0.5, float("nan"), "3", b"3", None),
            *(Decimal(3), Fraction(3), Number(3), uuid.UUID(int=3), [3]),
        )
    ),
    *(
        {"poll_after": seconds}
        for seconds in (-1, 0.5, 2.0, True, VERSION_LIMIT, Decimal(2), "2", float("inf"))
    ),
    *({"owner": owner} for owner in (None, 7, uuid.UUID(int=7), b"acme", "a\ud800", "\udfff")),
    *({"status": status} for status in (None, 7, b"moving", "\ud800")),
    *({"body": body} for body in ("text", None, {"a": 1}, [1], 7, range(3))),
]
WRONG_KEYS: list[Any] = [
    "k\ud800",
    "\udc80",
    "k" * (LONGEST_KEY + 1),
    "ü" * LONGEST_KEY,
    b"k",
    7,
    None,
]


def fields(**changed: object) -> dict[str, Any]:
    plain = {"version": 1, "owner": "acme", "body": b"{}", "status": "moving", "poll_after": 2}
    return {**plain, **changed}


@pytest.fixture
async def bench(subject: conformance.Subject) -> AsyncIterator[Bench]:
    bench = Bench(subject)
    bench.source.versions |= {"k": 1, "l": 1}
    yield bench
    await bench.cache.aclose()


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_document_that_cannot_be_cached_is_never_made(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidDocument) as caught:
        Document(**fields(**wrong))
    assert next(iter(wrong)) in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, JobCacheError)
    assert len(str(caught.value)) < 200


ODD = [
    fields(version=VERSION_LIMIT - 1, poll_after=0),
    fields(version=0, body=b"", owner=""),
    fields(owner="größe | \n\r\x00\t % 漢字 🚀", status="|\n\x00,%7C"),
    fields(owner="|" * 5000, status=""),
    fields(status=Status.MOVING, owner=Status.MOVING),
    fields(body=b""),
    fields(body=bytearray(b"xyz")),
    fields(body=memoryview(b"abcxyz")[3:]),
    fields(body=bytes(range(256)) * 100, poll_after=None),
]


@everywhere
@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
async def test_what_is_odd_comes_back_as_it_was(bench: Bench, odd: dict[str, Any]) -> None:
    made = Document(**odd)
    assert type(made.body) is bytes
    assert type(made.status) is type(made.owner) is str
    key = "|\n\x00 größe 漢字 🚀" + "k" * 1000

    async def load() -> Document:
        return made

    for _ in range(2):
        entry = (await bench.cache.read(key, load)).entry
        body = identity_body(entry)
        assert (entry.version, entry.owner, body) == (odd["version"], odd["owner"], odd["body"])
        assert (entry.status, entry.poll_after) == (odd["status"], odd["poll_after"])
    assert bench.cache.statistics.errors == 0


@everywhere
@pytest.mark.parametrize("wrong", WRONG_KEYS, ids=lambda key: repr(key)[:20])
async def test_a_key_that_cannot_be_used_is_refused(bench: Bench, wrong: Any) -> None:
    cache: JobCache = bench.cache

    async def never() -> Document:
        raise AssertionError("nothing is loaded")

    with pytest.raises(InvalidKey):
        await cache.read(wrong, never)
    with pytest.raises(InvalidKey):
        await cache.wait_for_newer(wrong, never, 0, 1)
    with pytest.raises(InvalidKey):
        await cache.invalidate("k", wrong)
    with pytest.raises(InvalidKey):
        async with cache.write(Transaction(bench.source, "k"), wrong):
            raise AssertionError("it is not entered")
    assert bench.source.versions["k"] == 1
    assert cache.statistics.errors == 0


@everywhere
async def test_a_wrong_key_does_not_affect_the_others_of_its_batch(bench: Bench) -> None:
    cache = bench.cache
    await bench.read("k")  # or it would not be asked for with others

    def load(key: str) -> Any:
        return lambda: bench.source.load(key)

    for _ in range(2):
        reads = [
            cache.read(key, load(key)) for key in ("k", "x\ud800", "l", "y" * (LONGEST_KEY + 1))
        ]
        good, bad, other, long = await asyncio.gather(*reads, return_exceptions=True)
        assert isinstance(bad, InvalidKey)
        assert isinstance(long, InvalidKey)
        for answer in (good, other):
            assert not isinstance(answer, BaseException), answer
            assert answer.entry.version == 1
    for key in ("k", "x\ud800"):
        reading = cache.reads.read_future(key, load(key))
        assert reading is None or await reading is not None
    assert cache.statistics.errors == 0
    assert cache.statistics.read_errors == 4


@everywhere
async def test_one_wrong_key_among_many_does_not_affect_the_others(bench: Bench) -> None:
    for _ in range(2):
        answers = await bench.cache.read_many(["k", "x\ud800", "l"], bench.source.load_many)
        assert {key: answer.entry.version for key, answer in answers.items()} == {"k": 1, "l": 1}
        assert list(answers.errors) == ["x\ud800"]
        with pytest.raises(InvalidKey, match="cannot be encoded in UTF-8"):
            answers["x\ud800"]
        with pytest.raises(KeyError):
            answers["what was not asked for"]
    assert bench.cache.statistics.read_errors == 2


NO_DOCUMENTS: list[Any] = [{"version": 1}, "text", 7, b"{}", (1, "acme", b"{}"), range(3)]


@everywhere
@pytest.mark.parametrize("wrong", NO_DOCUMENTS, ids=lambda wrong: type(wrong).__name__)
async def test_a_loader_that_returns_no_document_is_an_error(bench: Bench, wrong: Any) -> None:
    async def load() -> Any:
        return wrong

    with pytest.raises(InvalidDocument, match="the loader of 'k' returned a"):
        await bench.cache.read("k", load)
    assert await bench.read("k") == (1, CacheOutcome.MISS)  # and at once: no lease is left
    if bench.cache.backend.name != "null":
        assert await bench.read("k") == (1, CacheOutcome.HIT)


@everywhere
async def test_one_wrong_document_among_many_does_not_affect_the_others(bench: Bench) -> None:
    async def load_many(keys: Sequence[str]) -> Mapping[str, Any]:
        wrong: dict[str, Any] = {"dict": {"version": 1}, "body": Document(0, "acme", b"{}")}
        return {"k": document(1), "nothing": None, **wrong}

    keys = ["k", "dict", "body", "nothing", "left out"]
    answers = await bench.cache.read_many(keys, load_many)
    assert list(answers) == ["k", "nothing", "left out"]
    assert answers["k"].entry.version == 1
    assert answers["nothing"].entry.gone
    assert answers["left out"].entry.gone
    for key in ("dict", "body"):
        with pytest.raises(InvalidDocument, match=f"the loader of '{key}' returned a"):
            answers[key]
    if bench.cache.backend.name != "null":
        assert await bench.read("k") == (1, CacheOutcome.HIT)
    bench.source.versions["dict"] = 1
    assert await bench.read("dict") == (1, CacheOutcome.MISS)

    async def no_mapping(keys: Sequence[str]) -> Any:
        return [document(1) for _ in keys]

    with pytest.raises(InvalidDocument, match="a loader of many returned a list"):
        await bench.cache.read_many(["m"], no_mapping)


@everywhere
@pytest.mark.parametrize("wrong", [b"{}", "text", {}, 1.0, Decimal(2), True, None], ids=str)
async def test_a_write_publishes_documents_only(bench: Bench, wrong: Any) -> None:
    for publish in ("publish", "outdate"):
        with pytest.raises(InvalidDocument, match="k is published as a"):
            async with bench.cache.write(Transaction(bench.source, "k"), "k") as write:
                getattr(write, publish)("k", wrong)
    assert bench.source.versions["k"] == 1, "nothing is committed"
    assert (await bench.read("k"))[0] == 1
