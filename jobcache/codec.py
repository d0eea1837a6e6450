r"""Cells as bytes, for stores outside the process, and bodies as compressed bytes.

A cell is a text header and, for an entry, the body after the first newline, so that it can be
read with `redis-cli`:

    E1|<stamp>|<version>|<stored_at_ms>|<fresh_ms>|<keep_ms>|<encoding>|<crc32>|<poll_after>|<status>|<owner>\n<body>
    L1|<stamp>|<ticket>
    F1|<stamp>|<floor>|,<ticket>,<ticket>,

The first character tells the kind, the digit the format. A format this version does not know is an
`UnreadableCell`, never a guess; nothing is ever unpickled. The scripts in `backends/*.lua` read
the same headers.

The stamp, letters and digits, names the life of the store in which the cell was written. A store
that was restarted from an old dump, or a replica that was promoted, brings old cells back; they
bear another stamp than it has now, and are as good as none.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from jobcache.errors import UnreadableCell
from jobcache.protocol import VERSION_LIMIT, Entry

if TYPE_CHECKING:
    from jobcache.protocol import Encoding

COMPRESS_OVER_BYTES = 1024
_GZIP = 16 + zlib.MAX_WBITS
_KINDS = frozenset({b"E1", b"L1", b"F1"})
_HEADER_FIELDS = 9  # after kind and stamp
# One corrupted cell must not make the process allocate without bounds.
_MAX_IDENTITY_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Lease:
    """A cell in which one reader has noted that it is loading the key."""

    ticket: str


@dataclass(frozen=True, slots=True)
class Fence:
    """A cell in which writers have noted that a version above `floor` may be committed."""

    floor: int
    tickets: frozenset[str]


def compress(body: bytes) -> tuple[bytes, Encoding]:
    """`body` as it should be stored, with its encoding: gzip over 1 KiB, where that is smaller.

    The same body always gives the same bytes: the header carries no time.
    """
    if len(body) > COMPRESS_OVER_BYTES:
        packer = zlib.compressobj(6, zlib.DEFLATED, _GZIP)
        packed = packer.compress(body) + packer.flush()
        if len(packed) < len(body):
            return packed, "gzip"
    return body, "identity"


def identity_body(entry: Entry) -> bytes:
    """The entry's body without its encoding.

    Raises:
        UnreadableCell: the body is not what its encoding says.
    """
    if entry.encoding == "identity":
        return entry.body
    unpacker = zlib.decompressobj(_GZIP)
    try:
        body = unpacker.decompress(entry.body, _MAX_IDENTITY_BYTES)
    except zlib.error as error:
        raise UnreadableCell(f"an entry's gzip body cannot be read: {error}") from error
    if not unpacker.eof:
        raise UnreadableCell("an entry's gzip body is cut short or too large")
    return body


def encode_entry(entry: Entry, stamp: str) -> bytes:
    """The cell that holds `entry`, written in the life of the store that `stamp` names."""
    poll_after = "-" if entry.poll_after is None else entry.poll_after
    header = (
        f"E1|{stamp}|{entry.version}|{entry.stored_at_ms}|{entry.fresh_ms}|{entry.keep_ms}"
        f"|{entry.encoding}|{zlib.crc32(entry.body):08x}|{poll_after}|{quote(entry.status)}|{quote(entry.owner)}\n"
    )
    return header.encode("ascii") + entry.body


def decode(cell: bytes, stamp: str) -> Entry | Lease | Fence | None:
    """What a cell holds; None if it was written in another life of the store than `stamp` names.

    Raises:
        UnreadableCell: garbage, or another format.
    """
    kind, _, stamped = cell.partition(b"|")
    written, bar, rest = stamped.partition(b"|")
    if kind not in _KINDS or not written.isalnum() or not bar:
        raise UnreadableCell(f"a cell begins with {cell[:20]!r}, which is no format of ours")
    if written != stamp.encode("ascii"):
        return None
    try:
        if kind == b"E1":
            return _entry(rest)
        if kind == b"L1":
            return Lease(_ticket(rest))
        floor, tickets = rest.split(b"|")
        return Fence(_number(floor), _tickets(tickets))
    except (ValueError, UnicodeError) as error:
        raise UnreadableCell(f"a cell cannot be read: {error}") from error


def _entry(rest: bytes) -> Entry:
    header, newline, body = rest.partition(b"\n")
    fields = header.split(b"|")
    if not newline or len(fields) != _HEADER_FIELDS:
        raise ValueError("the header of an entry is incomplete")
    version, stored_at_ms, fresh_ms, keep_ms, encoding, crc, poll_after, status, owner = fields
    if crc != b"%08x" % zlib.crc32(body):
        raise ValueError("the body of an entry is not the one that was stored")
    if encoding == b"identity":
        coding: Encoding = "identity"
    elif encoding == b"gzip":
        coding = "gzip"
    else:
        raise ValueError("the encoding is unknown")
    return Entry(
        version=_number(version),
        owner=unquote(owner.decode("ascii"), errors="strict"),
        status=unquote(status.decode("ascii"), errors="strict"),
        poll_after=None if poll_after == b"-" else _number(poll_after),
        body=body,
        encoding=coding,
        stored_at_ms=_number(stored_at_ms),
        fresh_ms=_number(fresh_ms),
        keep_ms=_number(keep_ms),
    )


def _number(text: bytes) -> int:
    # int() alone would take signs, spaces, underscores and any length
    if not text.isdigit() or len(text) > len(str(VERSION_LIMIT)):
        raise ValueError(f"{text[:20]!r} is not a number")
    number = int(text)
    if number >= VERSION_LIMIT:
        raise ValueError(f"{number} is too large")
    return number


def _tickets(text: bytes) -> frozenset[str]:
    # Not a shade more than the scripts write: they would not know their own fence in it.
    before, *each, after = text.split(b",")
    tickets = frozenset(map(_ticket, each))
    if before or after or not tickets or len(tickets) < len(each):
        raise ValueError(f"{text[:40]!r} are not the tickets of a fence")
    return tickets


def _ticket(text: bytes) -> str:
    if not text.isalnum():
        raise ValueError(f"{text[:40]!r} is not a ticket")
    return text.decode("ascii")
