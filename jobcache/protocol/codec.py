r"""Encode cells as bytes, for stores outside the process, and compress bodies.

A cell is a header of text, so that it can be read with `redis-cli`. The body of an entry follows
after the first newline:

    E1|<incarnation_id>|<version>|<stored_at_ms>|<fresh_ms>|<keep_ms>|<encoding>|<crc32>|<poll_after>|<status>|<owner>\n<body>
    E2|<incarnation_id>|<token>|<stored_at_ms>|<fresh_ms>|<keep_ms>|<encoding>|<crc32>|<tag>=<generation>,...\n<body>
    L1|<incarnation_id>|<token>
    F1|<incarnation_id>|<fence_version>|,<token>,<token>,

The first character is the kind, the digit is the number of the format. `E2` is an unversioned
entry; a library that does not know this format cannot read it, and removes it. A cell in an unknown
format is an `UnreadableCell`; it is never guessed, and nothing is ever unpickled. The scripts in
`backends/redis/scripts/` read the same headers.

The incarnation id consists of letters and digits. It names the incarnation of the store that wrote
the cell: one life of a server, from its start to its end. A store that was restarted from an old
dump, or a replica that was promoted, brings old cells back. Their id differs from the present one,
so they count as empty.
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from jobcache.errors import UnreadableCell
from jobcache.protocol.cell import Fence, Lease
from jobcache.protocol.document import VERSION_LIMIT
from jobcache.protocol.entry import UNVERSIONED, Entry

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobcache.protocol.entry import Encoding

COMPRESS_OVER_BYTES = 1024
_GZIP = 16 + zlib.MAX_WBITS
_KINDS = frozenset({b"E1", b"E2", b"L1", b"F1"})
# How many decoded cells a decoder keeps, and the bytes of the largest one.
_KNOWN = 4096
_LARGEST_KNOWN = 8192
_CHANGED = "the body of an entry does not match its checksum"
_TOO_LARGE = "a number in the header of an entry is too large"
# One corrupted cell must not make the process allocate without bounds.
_MAX_IDENTITY_BYTES = 64 * 1024 * 1024
# Larger bodies are not passed to a check, because it would block the event loop for long.
_LARGEST_CHECKED = 1024 * 1024


def fits(body: bytes) -> bool:
    """Return whether `body` is small enough to be stored, and to be returned by `identity_body`."""
    return len(body) <= _MAX_IDENTITY_BYTES


def compress(body: bytes) -> tuple[bytes, Encoding]:
    """Return `body` as it is stored, with its encoding: gzip above 1 KiB, if that is smaller.

    The same body always gives the same bytes: the header of gzip contains no time.
    """
    if len(body) > COMPRESS_OVER_BYTES:
        packer = zlib.compressobj(6, zlib.DEFLATED, _GZIP)
        packed = packer.compress(body) + packer.flush()
        if len(packed) < len(body):
            return packed, "gzip"
    return body, "identity"


def identity_body(entry: Entry) -> bytes:
    """Return the body of an entry, decompressed.

    Raises:
        UnreadableCell: the body does not have the encoding that the entry names.
    """
    if entry.encoding == "identity":
        return entry.encoded_body
    unpacker = zlib.decompressobj(_GZIP)
    try:
        # One byte more, or a body of exactly the limit would not reach its end.
        body = unpacker.decompress(entry.encoded_body, _MAX_IDENTITY_BYTES + 1)
    except zlib.error as error:
        raise UnreadableCell(f"an entry's gzip body cannot be read: {error}") from error
    if not unpacker.eof or not fits(body) or unpacker.unused_data:
        raise UnreadableCell("an entry's gzip body is cut short or too large")
    return body


def encode_entry(entry: Entry, incarnation_id: str) -> bytes:
    """Return the bytes of a cell with this entry, of the incarnation `incarnation_id`."""
    if entry.version == UNVERSIONED:
        return _encode_unversioned(entry, incarnation_id)
    poll_after = "-" if entry.poll_after is None else entry.poll_after
    header = (
        f"E1|{incarnation_id}|{entry.version}|{entry.stored_at_ms}|{entry.fresh_ms}|{entry.keep_ms}"
        f"|{entry.encoding}|{zlib.crc32(entry.encoded_body):08x}|{poll_after}|{quote(entry.status)}|{quote(entry.owner)}\n"
    )
    return header.encode("ascii") + entry.encoded_body


def _encode_unversioned(entry: Entry, incarnation_id: str) -> bytes:
    tags = ",".join(f"{quote(tag, safe='')}={generation}" for tag, generation in entry.tags)
    header = (
        f"E2|{incarnation_id}|{entry.token}|{entry.stored_at_ms}|{entry.fresh_ms}|{entry.keep_ms}"
        f"|{entry.encoding}|{zlib.crc32(entry.encoded_body):08x}|{tags}\n"
    )
    return header.encode("ascii") + entry.encoded_body


def encode(cell: Entry | Lease | Fence, incarnation_id: str) -> bytes:
    """Return the bytes of a cell, of the incarnation `incarnation_id` of the store."""
    if isinstance(cell, Entry):
        return encode_entry(cell, incarnation_id)
    if isinstance(cell, Lease):
        return f"L1|{incarnation_id}|{cell.token}".encode("ascii")
    tokens = ",".join(sorted(cell.tokens))
    return f"F1|{incarnation_id}|{cell.fence_version}|,{tokens},".encode("ascii")


def decode(cell: bytes, incarnation_id: str) -> Entry | Lease | Fence | None:
    """Return the content of a cell; None if another incarnation of the store wrote it.

    Raises:
        UnreadableCell: the cell is damaged, or has an unknown format.
    """
    # Fast path: one regular expression matches the cell that a poll usually finds.
    found = _ENTRY.match(cell)
    if found is not None and found[1] == incarnation_id.encode("ascii"):
        return _entry(cell, found)
    found = _UNVERSIONED_ENTRY.match(cell)
    if found is not None and found[1] == incarnation_id.encode("ascii"):
        return _unversioned_entry(cell, found)
    kind, _, stamped = cell.partition(b"|")
    written, bar, rest = stamped.partition(b"|")
    if kind not in _KINDS or not written.isalnum() or not bar:
        raise UnreadableCell(f"a cell begins with {cell[:20]!r}, which is an unknown format")
    if written != incarnation_id.encode("ascii"):
        return None
    if kind in {b"E1", b"E2"}:
        raise UnreadableCell("the header of an entry is damaged")
    try:
        if kind == b"L1":
            return Lease(_token(rest))
        fence_version, tokens = rest.split(b"|")
        return Fence(_number(fence_version), _tokens(tokens))
    except (ValueError, UnicodeError) as error:
        raise UnreadableCell(f"a cell cannot be read: {error}") from error


class Decoder:
    """Decode cells, and keep the last one of each name, because most cells have not changed since.

    All bytes of a cell are compared, so the result is that of `decode`. An unchanged cell gives the
    same `Entry` object again, so callers can cache values that they derive from it.

    With a `check`, the body is decompressed and checked when its cell is first decoded. So a bad
    body is found here, and not when it is about to be sent. Of larger cells the decoder keeps only
    the header, which contains the checksum of the body. Bodies above 1 MiB, compressed or not, are
    not read here.

    Args:
        prefix: how many characters of a name come before the key.

    Attributes:
        check: called with the key and the decompressed body; raises any exception if the body is
            not valid. None: bodies are not checked. Unversioned entries are not passed to it.
    """

    def __init__(self, prefix: int = 0) -> None:
        self.check: Callable[[str, bytes], object] | None = None
        self._prefix = prefix
        self._last: dict[str, tuple[bytes, str, Entry]] = {}
        self._read: dict[str, bytes] = {}

    def decode(self, name: str, cell: bytes, incarnation_id: str) -> Entry | Lease | Fence | None:
        """Return the content of the cell at `name`; None if another incarnation wrote it.

        Raises:
            UnreadableCell: the cell is damaged, has an unknown format, or its body is not valid.
        """
        last = self._last.get(name)
        if last is not None and last[0] == cell and last[1] == incarnation_id:
            return last[2]
        found = decode(cell, incarnation_id)
        if not isinstance(found, Entry):
            return found
        if len(cell) <= _LARGEST_KNOWN:
            self._read_body(name, found)
            if len(self._last) >= _KNOWN:
                self._last.clear()
            self._last[name] = cell, incarnation_id, found
            return found
        header = cell[: len(cell) - len(found.encoded_body)]
        if self._read.get(name) != header:
            self._read_body(name, found)
            if len(self._read) >= _KNOWN:
                self._read.clear()
            self._read[name] = header
        return found

    def _read_body(self, name: str, entry: Entry) -> None:
        check = self.check
        if check is None or entry.version <= 0 or len(entry.encoded_body) > _LARGEST_CHECKED:
            return
        body = entry.encoded_body if entry.encoding == "identity" else identity_body(entry)
        if len(body) > _LARGEST_CHECKED:
            return
        try:
            check(name[self._prefix :], body)
        except Exception as error:
            raise UnreadableCell(f"the body of an entry is not valid: {error!r:.200}") from error


_ENTRY = re.compile(
    rb"E1\|([0-9A-Za-z]+)"
    rb"\|(\d{1,16})\|(\d{1,16})\|(\d{1,16})\|(\d{1,16})"  # version, stored_at, fresh, keep
    rb"\|(identity|gzip)\|([0-9a-f]{8})\|(-|\d{1,16})"  # encoding, crc32, poll_after
    rb"\|([!-{}~]*)\|([!-{}~]*)\n"  # status, owner: percent-encoded
)


_UNVERSIONED_ENTRY = re.compile(
    rb"E2\|([0-9A-Za-z]+)\|([0-9A-Za-z]+)"  # incarnation_id, token
    rb"\|(\d{1,16})\|(\d{1,16})\|(\d{1,16})"  # stored_at, fresh, keep
    rb"\|(identity|gzip)\|([0-9a-f]{8})"  # encoding, crc32
    rb"\|([!-{}~]*)\n"  # tags: percent-encoded
)


def _entry(cell: bytes, found: re.Match[bytes]) -> Entry:
    _, version, stored_at_ms, fresh_ms, keep_ms, encoding, crc, poll_after, status, owner = (
        found.groups()
    )
    body = cell[found.end() :]
    if int(crc, 16) != zlib.crc32(body):
        raise UnreadableCell(_CHANGED)
    numbers = int(version), int(stored_at_ms), int(fresh_ms), int(keep_ms)
    after = None if poll_after == b"-" else int(poll_after)
    if max(numbers) >= VERSION_LIMIT or (after is not None and after >= VERSION_LIMIT):
        raise UnreadableCell(_TOO_LARGE)
    return Entry(
        numbers[0],
        _text(owner) if b"%" in owner else owner.decode("ascii"),
        _text(status) if b"%" in status else status.decode("ascii"),
        after,
        body,
        "gzip" if encoding == b"gzip" else "identity",
        *numbers[1:],
    )


def _unversioned_entry(cell: bytes, found: re.Match[bytes]) -> Entry:
    _, token, stored_at_ms, fresh_ms, keep_ms, encoding, crc, tags = found.groups()
    body = cell[found.end() :]
    if int(crc, 16) != zlib.crc32(body):
        raise UnreadableCell(_CHANGED)
    times = int(stored_at_ms), int(fresh_ms), int(keep_ms)
    if max(times) >= VERSION_LIMIT:
        raise UnreadableCell(_TOO_LARGE)
    return Entry(
        UNVERSIONED,
        "",
        "",
        None,
        body,
        "gzip" if encoding == b"gzip" else "identity",
        *times,
        token=token.decode("ascii"),
        tags=tuple(map(_tag, tags.split(b","))) if tags else (),
    )


def _tag(text: bytes) -> tuple[str, str]:
    tag, _, generation = text.partition(b"=")
    if not generation.isalnum():
        raise UnreadableCell(f"{text[:40]!r} is not a tag with its generation")
    return _text(tag), generation.decode("ascii")


def _text(quoted: bytes) -> str:
    try:
        return unquote(quoted.decode("ascii"), errors="strict")
    except UnicodeError as error:
        raise UnreadableCell(f"a name in the header of an entry cannot be read: {error}") from error


def _number(text: bytes) -> int:
    # int() alone accepts signs, spaces, underscores and any length.
    if not text.isdigit() or len(text) > len(str(VERSION_LIMIT)):
        raise ValueError(f"{text[:20]!r} is not a number")
    number = int(text)
    if number >= VERSION_LIMIT:
        raise ValueError(f"{number} is too large")
    return number


def _tokens(text: bytes) -> frozenset[str]:
    # Exactly the form that the scripts write: they would not recognise a fence in any other form.
    before, *each, after = text.split(b",")
    tokens = frozenset(map(_token, each))
    if before or after or not tokens or len(tokens) < len(each):
        raise ValueError(f"{text[:40]!r} are not the tokens of a fence")
    return tokens


def _token(text: bytes) -> str:
    if not text.isalnum():
        raise ValueError(f"{text[:40]!r} is not a token")
    return text.decode("ascii")
