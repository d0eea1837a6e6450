"""Cells as bytes: they are decoded as they were encoded, and foreign bytes are refused."""

from __future__ import annotations

import re
import zlib
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobcache.errors import UnreadableCell
from jobcache.protocol.cell import Fence, Lease
from jobcache.protocol.codec import compress, decode, encode_entry, identity_body
from jobcache.protocol.document import VERSION_LIMIT
from jobcache.protocol.entry import UNVERSIONED, Entry
from jobcache.testing.scenarios import entry_of, unversioned_entry_of

INCARNATION_ID = "s"
numbers = st.integers(0, VERSION_LIMIT - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
entries = st.builds(
    Entry,
    version=numbers,
    owner=texts,
    status=texts,
    poll_after=st.none() | numbers,
    encoded_body=st.binary(max_size=300),
    encoding=st.sampled_from(["identity", "gzip"]),
    stored_at_ms=numbers,
    fresh_ms=numbers,
    keep_ms=numbers,
)

unversioned = st.builds(
    Entry,
    version=st.just(UNVERSIONED),
    owner=st.just(""),
    status=st.just(""),
    poll_after=st.none(),
    encoded_body=st.binary(max_size=300),
    encoding=st.sampled_from(["identity", "gzip"]),
    stored_at_ms=numbers,
    fresh_ms=numbers,
    keep_ms=numbers,
    token=st.sampled_from(["r", "a1b2"]),
    tags=st.lists(st.tuples(texts, st.sampled_from(["g", "0f"])), max_size=3).map(tuple),
)


@given(entries | unversioned)
def test_an_entry_comes_back_as_it_went(entry: Entry) -> None:
    assert decode(encode_entry(entry, INCARNATION_ID), INCARNATION_ID) == entry


@given(
    st.binary(max_size=200)
    | st.builds(
        lambda kind, rest: kind + rest,
        st.sampled_from([b"E1|s|", b"L1|s|", b"F1|s|", b"E2|s|", b"E1|other|", b"F1|s|0|,", b"E1"]),
        st.binary(max_size=100),
    )
)
@example(b"")
@example(b"E1|s|1|2|3|4|identity|00000000|-||")
@example(b"E1|s|+1|2|3|4|identity|00000000|-||\n")
@example(b"E1|s|1_0|2|3|4|identity|00000000|-||\n")
@example(b"E1|s|9007199254740992|2|3|4|identity|00000000|-||\n")
@example(b"E1|s|1|2|3|4|identity|00000000|9007199254740992||\n")
@example(b"E1|s|1|2|3|4|brotli|00000000|-||\n")
@example(b"E1|s|1|2|3|4|identity|00000000|-||%ff\n")
@example("E1|s|\u0661|2|3|4|identity|00000000|-||\n".encode())
@example(b"E2|s|r|1|2|3|identity|00000000|\n")
@example(b"E2|s|r|1|2|9007199254740992|identity|00000000|\n")
@example(b"E2|s|r|1|2|3|identity|00000000|tag\n")
@example(b"E2|s|r|1|2|3|identity|00000000|%ff=g\n")
@example(b"E2|s||1|2|3|identity|00000000|\n")
@example(b"F1|s||,a,")
@example(b"F1|s|0|,,")
@example(b"F1|s|9007199254740992|,a,")
@example(b"L1|s|")
def test_bytes_are_a_cell_or_unreadable_and_nothing_else(cell: bytes) -> None:
    try:
        found = decode(cell, INCARNATION_ID)
    except UnreadableCell:
        return
    if isinstance(found, Entry):
        assert decode(encode_entry(found, INCARNATION_ID), INCARNATION_ID) == found


@given(entries | unversioned, st.data())
def test_a_damaged_entry_never_raises_anything_but_unreadable(
    entry: Entry, data: st.DataObject
) -> None:
    cell = bytearray(encode_entry(entry, INCARNATION_ID))
    at = data.draw(st.integers(0, len(cell) - 1))
    cell[at] = data.draw(st.integers(0, 255))
    try:
        found = decode(bytes(cell[: data.draw(st.integers(0, len(cell)))]), INCARNATION_ID)
        if isinstance(found, Entry):
            identity_body(found)
    except UnreadableCell:
        pass


@pytest.mark.parametrize(
    "cell",
    [
        b"E1|s|%d|2|3|4|identity|00000000|-||\n",
        b"E1|s|1|2|3|4|identity|00000000|%d||\n",
        b"E2|s|r|1|2|%d|identity|00000000|\n",
        b"F1|s|%d|,a,",
    ],
)
def test_a_number_above_the_limit_is_unreadable(cell: bytes) -> None:
    decode(cell % (VERSION_LIMIT - 1), INCARNATION_ID)
    with pytest.raises(UnreadableCell):
        decode(cell % VERSION_LIMIT, INCARNATION_ID)


def test_leases_and_fences_are_told_apart() -> None:
    assert decode(b"L1|s|abc123", INCARNATION_ID) == Lease("abc123")
    assert decode(b"F1|s|7|,a,b,", INCARNATION_ID) == Fence(7, frozenset({"a", "b"}))


@given(entries)
def test_a_cell_of_another_incarnation_of_the_store_is_as_good_as_none(entry: Entry) -> None:
    assert decode(encode_entry(entry, "before"), INCARNATION_ID) is None
    assert decode(b"L1|before|abc123", INCARNATION_ID) is None
    assert decode(b"F1|before|7|,a,b,", INCARNATION_ID) is None


@given(st.binary(max_size=5000))
def test_a_compressed_body_comes_back(body: bytes) -> None:
    stored, encoding = compress(body)
    assert len(stored) <= len(body)
    entry = replace(entry_of(1), encoded_body=stored, encoding=encoding)
    assert identity_body(entry) == body
    assert compress(body) == (stored, encoding), "the same bytes in every process, at any time"


def test_small_and_incompressible_bodies_stay_as_they_are() -> None:
    assert compress(b"a" * 1024) == (b"a" * 1024, "identity")
    assert compress(b"a" * 1025)[1] == "gzip"
    noise = zlib.compress(bytes(range(256)) * 20)[:20] * 60
    assert compress(noise)[1] in {"gzip", "identity"}


def test_a_bomb_is_unreadable_not_unpacked() -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    bomb = packer.compress(b"\0" * (65 * 1024 * 1024)) + packer.flush()
    with pytest.raises(UnreadableCell, match="too large"):
        identity_body(replace(entry_of(1), encoded_body=bomb, encoding="gzip"))


def test_an_older_library_finds_an_unversioned_entry_unreadable_and_evicts_it() -> None:
    """In a rolling upgrade both run. The older one removes what it cannot read; its sweep finds it.

    The first pattern is how its codec and its scripts know a cell, the second how its sweep does.
    """
    cell = encode_entry(unversioned_entry_of("r"), "a1")
    assert re.match(rb"[ELF]1\|", cell) is None
    found = re.match(rb"[ELF]\d\|([0-9A-Za-z]+)\|", cell)
    assert found is not None
    assert found[1] == b"a1"
