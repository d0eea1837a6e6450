"""Damaged cells: what Python makes of them, and that the scripts on a server make the same of them.

`cells` begins with a cell as it should be and damages it where it hurts: fields, separators,
digits, bodies, ends.
"""

from __future__ import annotations

import asyncio
import gzip
import pickle
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jobcache.backends.redis.backend import RedisBackend
from jobcache.errors import UnreadableCell
from jobcache.protocol import cell as table
from jobcache.protocol.backend import LeaseResult, PublishResult
from jobcache.protocol.cell import Cell, CellStep, Effect, Fence, Lease
from jobcache.protocol.codec import decode, encode_entry, identity_body
from jobcache.protocol.document import VERSION_LIMIT
from jobcache.protocol.entry import Entry
from jobcache.testing.scenarios import entry_of, unversioned_entry_of
from tests.subjects import REDIS_SERVERS

# --- the format of a cell: what changes with it changes here, and nowhere below ---


def lead(incarnation_id: bytes) -> list[bytes]:
    """The fields after the kind that all cells have."""
    return [incarnation_id]


def read(cell: bytes, incarnation_id: bytes) -> Cell:
    """What Python makes of it."""
    return decode(cell, incarnation_id.decode())


def write(entry: Entry, incarnation_id: bytes) -> bytes:
    """The cell that Python makes of it."""
    return encode_entry(entry, incarnation_id.decode())


async def incarnation_of(backend: RedisBackend) -> bytes:
    """What that backend has cells begin with."""
    await backend.ping()
    [server] = backend._topology.servers()
    assert server.identity.current.incarnation_id is not None
    return server.identity.current.incarnation_id.encode()


# --- cells as they should be, and damage ---


def _fired() -> None:
    Armed.fired = True


class Armed:
    """Its unpickling would be noticed."""

    fired = False

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _fired, ()


ENTRY, UNVERSIONED_ENTRY = entry_of(1), unversioned_entry_of("r")
TOKENS = ["r", "w", "w1"]
TAGS = ["t", "", "a,b=c|d\n", "ü"]
PICKLE = pickle.dumps(Armed())
PACKED = gzip.compress(b"[" * 3000, mtime=0)
BODIES = [b"", b"{}", b"a\n|b", PICKLE, PACKED, PACKED[:-1], PACKED + b"x", gzip.compress(PACKED)]
NUMBERS = [
    *(b"", b"-", b"-1", b"+1", b" 1", b"1 ", b"1_0", b"0x1", b"1e3", b"1.0", b"nan", b"00", b"007"),
    *("\u0661".encode(), "\u00b2".encode(), "\uff11".encode(), b"1\x00", b"1\r"),
    *(b"%d" % (VERSION_LIMIT + offset) for offset in (-1, 0, 1)),
    *(b"9" * length for length in (16, 17, 19, 25, 400)),
]
WORDS = [
    *(b"identity", b"gzip", b"GZIP", b"br", b"00000000", b"%00", b"%ff", b"%zz", b"%", b"%0A%7C"),
    *(b"\xff", "\u00e9".encode(), b"\x00", b"\t", b"a b", b"|", b"\n", b",", PICKLE),
    *(b",r,", b",r,w,", b",w,w,", b",,", b",", b"r,w", b",r", b"r,", b",r,,w,", b",,r,", b",r\n,"),
]
LONG_MS = 1_000_000_000
"""Longer than any lifetime that an operation starts."""
versions = st.integers(0, 6) | st.sampled_from([10, 99, 12_345, VERSION_LIMIT - 1])
nasty = st.sampled_from(NUMBERS + WORDS) | st.binary(max_size=6)


@st.composite
def cells(draw: st.DrawFn, incarnation_id: bytes) -> bytes:
    """A cell, damaged in up to three places; none: as it should be, but for tokens that repeat."""
    begin, token = lead(incarnation_id), st.sampled_from(TOKENS)
    kind = draw(st.sampled_from([b"E1", b"E2", b"L1", b"F1"]))
    body: bytes | None = None
    if kind in {b"E1", b"E2"}:
        whole = replace(
            ENTRY,
            version=draw(versions),
            encoded_body=draw(st.sampled_from(BODIES) | st.binary(max_size=20)),
            encoding=draw(st.sampled_from(["identity", "gzip"])),
            poll_after=draw(st.none() | st.integers(0, 9)),
        )
        if kind == b"E2":
            tags = draw(st.lists(st.tuples(st.sampled_from(TAGS), token), max_size=2))
            whole = replace(
                UNVERSIONED_ENTRY,
                token=draw(token),
                encoded_body=whole.encoded_body,
                encoding=whole.encoding,
                tags=tuple(tags),
            )
        header, _, body = write(whole, incarnation_id).partition(b"\n")
        fields = header.split(b"|")
    elif kind == b"L1":
        fields = [kind, *begin, draw(token).encode()]
    else:
        names = draw(st.lists(token, min_size=1, max_size=3))
        fields = [kind, *begin, b"%d" % draw(versions), f",{','.join(names)},".encode()]
    for _ in range(draw(st.sampled_from([0, 0, 1, 2, 3]))):
        draw(st.sampled_from([_replace, _swap, _drop, _insert, _exchange_kind]))(draw, fields)
    cell = b"|".join(fields) if body is None else b"|".join(fields) + b"\n" + body
    for _ in range(draw(st.sampled_from([0, 0, 1]))):
        cell = draw(st.sampled_from([_cut, _add, _put_in, _whatever]))(draw, cell)
    return cell


def _at(draw: st.DrawFn, fields: list[bytes]) -> int:
    return draw(st.integers(0, max(0, len(fields) - 1)))


def _replace(draw: st.DrawFn, fields: list[bytes]) -> None:
    at = _at(draw, fields)
    fields[at : at + 1] = [draw(nasty)]


def _swap(draw: st.DrawFn, fields: list[bytes]) -> None:
    at = _at(draw, fields)
    fields[at : at + 2] = fields[at : at + 2][::-1]


def _drop(draw: st.DrawFn, fields: list[bytes]) -> None:
    at = _at(draw, fields)
    del fields[at : at + 1]


def _insert(draw: st.DrawFn, fields: list[bytes]) -> None:
    fields.insert(_at(draw, fields), draw(nasty))


def _exchange_kind(draw: st.DrawFn, fields: list[bytes]) -> None:
    fields[:1] = [
        draw(st.sampled_from([b"E1", b"L1", b"F1", b"E2", b"E3", b"F", b"e1", b"E\xb2", b""]))
    ]


def _cut(draw: st.DrawFn, cell: bytes) -> bytes:
    return cell[: draw(st.integers(0, len(cell)))]


def _add(draw: st.DrawFn, cell: bytes) -> bytes:
    return cell + draw(nasty)


def _put_in(draw: st.DrawFn, cell: bytes) -> bytes:
    at = draw(st.integers(0, len(cell)))
    return cell[:at] + draw(nasty) + cell[at + draw(st.integers(0, 1)) :]


def _whatever(draw: st.DrawFn, cell: bytes) -> bytes:
    return draw(st.binary(max_size=60))


# --- Python ---


def remade(cell: Cell, incarnation_id: bytes) -> bytes:
    """The cell written anew."""
    match cell:
        case Lease():
            return b"|".join([b"L1", *lead(incarnation_id), cell.token.encode()])
        case Fence():
            tokens = f",{','.join(sorted(cell.tokens))},".encode()
            return b"|".join([b"F1", *lead(incarnation_id), b"%d" % cell.fence_version, tokens])
        case Entry():
            return write(cell, incarnation_id)
        case _:
            return b""


def test_a_damaged_cell_is_read_correctly_or_not_at_all(*, long: bool) -> None:
    @settings(max_examples=1000 if long else 400, deadline=None)
    @given(cell=cells(b"a1"))
    @example(cell=PICKLE)
    @example(cell=b"E1|" + PICKLE)
    def each(cell: bytes) -> None:
        read_right_or_not_at_all(cell)

    each()


def read_right_or_not_at_all(cell: bytes) -> None:
    try:
        found = read(cell, b"a1")
    except UnreadableCell:
        return
    finally:
        assert not Armed.fired
    assert found is None or read(remade(found, b"a1"), b"a1") == found
    if isinstance(found, Entry):
        try:
            assert isinstance(identity_body(found), bytes)
        except UnreadableCell:
            assert found.encoding == "gzip"
    elif found is not None:
        # each lease and fence has one spelling but for the order of tokens and zeros in front
        assert sorted(remade(found, b"a1").replace(b"0", b"")) == sorted(cell.replace(b"0", b""))


@pytest.mark.parametrize("kind", [b"E1", b"L1", b"F1", b"E2", b"E3"])
@pytest.mark.parametrize("filling", [b"|", b",", b"9", b"%41", b"ab,", b"\n", b"\x00", b"[", b"1|"])
def test_a_cell_takes_memory_by_its_size_however_it_is_filled(kind: bytes, filling: bytes) -> None:
    start = b"|".join([kind, *lead(b"a1"), b""])
    for cell in (start + filling * 100_000, start + b"1|," + filling * 100_000 + b","):
        tracemalloc.start()
        try:
            said = _said_of(cell)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert len(said) < 300, "nor does the log"
        assert peak < 100 * len(cell)


def _said_of(cell: bytes) -> str:
    try:
        read(cell, b"a1")
    except UnreadableCell as error:
        return str(error)
    return ""


def test_a_bomb_among_cells_costs_what_the_limit_says() -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    mebibyte = bytes(1024 * 1024)
    bomb = b"".join([packer.compress(mebibyte) for _ in range(160)]) + packer.flush()
    cell = write(replace(entry_of(1), encoded_body=bomb, encoding="gzip"), b"a1")
    tracemalloc.start()
    try:
        found = read(cell, b"a1")
        assert isinstance(found, Entry)
        with pytest.raises(UnreadableCell, match="too large"):
            identity_body(found)
        assert tracemalloc.get_traced_memory()[1] < 140 * len(mebibyte)
    finally:
        tracemalloc.stop()


# --- the scripts ---


@pytest.fixture(params=REDIS_SERVERS)
def url(request: pytest.FixtureRequest, redis_urls: dict[str, str]) -> str:
    return redis_urls[request.param]


@pytest.fixture
def raw(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as client:
        client.flushall()
        yield client


operations = st.builds(
    lambda token, version, made_by: [
        ("lease", token),
        ("fence", token),
        ("withdraw", token),
        ("publish", token, version),
        ("publish", token, made_by),
        ("purge",),
    ],
    st.sampled_from(TOKENS),
    versions,
    st.sampled_from(TOKENS),
)


def expected(cell: Cell, operation: tuple[object, ...]) -> CellStep[Any]:
    """What the transition table makes of a cell."""
    match operation:
        case ("lease", str(token)):
            return table.lease(cell, token)
        case ("fence", str(token)):
            return table.fence(cell, token)
        case ("withdraw", str(token)):
            return table.publish(cell, token, None)
        case ("publish", str(token), int(version)):
            return table.publish(cell, token, entry_of(version))
        case ("publish", str(token), str(made_by)):
            return table.publish(cell, token, unversioned_entry_of(made_by))
    return table.purge(cell)


async def done(backend: RedisBackend, operation: tuple[object, ...]) -> object:
    match operation:
        case ("lease", str(token)):
            return await backend.lease("k", token)
        case ("fence", str(token)):
            return await backend.fence("k", token)
        case ("withdraw", str(token)):
            return await backend.publish("k", token, None)
        case ("publish", str(token), int(version)):
            return await backend.publish("k", token, entry_of(version))
        case ("publish", str(token), str(made_by)):
            return await backend.publish("k", token, unversioned_entry_of(made_by))
    return await backend.purge(["k"])


def test_the_scripts_treat_a_cell_as_python_reads_it(
    url: str, raw: redis.Redis, *, long: bool
) -> None:
    """The scripts may accept a cell that Python cannot read, but it is never served.

    The scripts check no checksums, and accept numbers that no version can have. So a damaged entry
    may set a fence's version, or stay until it expires. A read afterwards returns nothing, or the
    entry that the operation wrote.
    """
    with asyncio.Runner() as runner:
        backend = RedisBackend(url)
        incarnation_id = runner.run(incarnation_of(backend))

        def after() -> Cell:
            cell = raw.get("k")
            return None if cell is None else read(cell, incarnation_id)

        examples = 300 if long else 120

        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
        @given(cell=cells(incarnation_id), operations=operations)
        def agree(cell: bytes, operations: list[tuple[object, ...]]) -> None:
            for operation in operations:
                raw.set("k", cell, px=LONG_MS)
                try:
                    found = read(cell, incarnation_id)
                except UnreadableCell:
                    unreadable(operation)
                    continue
                step = expected(found, operation)
                assert runner.run(done(backend, operation)) == step.result, operation
                assert after() == step.cell, operation
                if step.cell is not None:
                    kept = raw.pttl("k") > LONG_MS / 2
                    assert kept is (step.effect is not Effect.NEW_DEADLINE), operation

        def unreadable(operation: tuple[object, ...]) -> None:
            if operation[0] == "lease":
                with pytest.raises(UnreadableCell):
                    runner.run(done(backend, operation))
                return
            answer = runner.run(done(backend, operation))
            assert answer not in {PublishResult.NOTHING, LeaseResult.ACQUIRED}
            try:
                left = after()
            except UnreadableCell:
                return
            if operation[0] == "fence":
                assert isinstance(left, Fence)
                assert operation[1] in left.tokens
            else:
                assert left is None or answer in {
                    PublishResult.STORED,
                    PublishResult.PROLONGED,
                    PublishResult.FENCED,
                }

        try:
            agree()
        finally:
            runner.run(backend.aclose())
