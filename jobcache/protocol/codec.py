r"""Cells as bytes, for stores outside the process, and bodies as compressed bytes.

A cell is a text header and, for an entry, the body after the first newline, so that it can be
read with `redis-cli`:

    E1|<incarnation_id>|<version>|<stored_at_ms>|<fresh_ms>|<keep_ms>|<encoding>|<crc32>|<poll_after>|<status>|<owner>\n<body>
    L1|<incarnation_id>|<token>
    F1|<incarnation_id>|<fence_version>|,<token>,<token>,

The first character tells the kind, the digit the format. A format this version does not know is an
`UnreadableCell`, never a guess; nothing is ever unpickled. The scripts in `backends/*.lua` read
the same headers.

The incarnation id, letters and digits, names the life of the store that wrote the cell. A store
that was restarted from an old dump, or a replica that was promoted, brings old cells back; they
bear another id than it has now, and are as good as none.
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from jobcache.errors import UnreadableCell
from jobcache.protocol.cell import Fence, Lease
from jobcache.protocol.document import VERSION_LIMIT
from jobcache.protocol.entry import Entry

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobcache.protocol.entry import Encoding

COMPRESS_OVER_BYTES = 1024
_GZIP = 16 + zlib.MAX_WBITS
_KINDS = frozenset({b"E1", b"L1", b"F1"})
# What a decoder knows: with cells of usual size, some megabytes; at most 2 x 32.
_KNOWN = 4096
_LARGEST_KNOWN = 8192
# One corrupted cell must not make the process allocate without bounds.
_MAX_IDENTITY_BYTES = 64 * 1024 * 1024
# Larger bodies are not given to a caller's check, which may take long and blocks the event loop.
_LARGEST_CHECKED = 1024 * 1024


def fits(body: bytes) -> bool:
    """Whether `body` is small enough to be stored; `identity_body` returns none that is larger."""
    return len(body) <= _MAX_IDENTITY_BYTES


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
        return entry.encoded_body
    unpacker = zlib.decompressobj(_GZIP)
    try:
        # One byte more: with its last byte a body that just fits would not come to its end.
        body = unpacker.decompress(entry.encoded_body, _MAX_IDENTITY_BYTES + 1)
    except zlib.error as error:
        raise UnreadableCell(f"an entry's gzip body cannot be read: {error}") from error
    if not unpacker.eof or not fits(body) or unpacker.unused_data:
        raise UnreadableCell("an entry's gzip body is cut short or too large")
    return body


def encode_entry(entry: Entry, incarnation_id: str) -> bytes:
    """The cell that holds `entry`, written in the life of the store that `incarnation_id` names."""
    poll_after = "-" if entry.poll_after is None else entry.poll_after
    header = (
        f"E1|{incarnation_id}|{entry.version}|{entry.stored_at_ms}|{entry.fresh_ms}|{entry.keep_ms}"
        f"|{entry.encoding}|{zlib.crc32(entry.encoded_body):08x}|{poll_after}|{quote(entry.status)}|{quote(entry.owner)}\n"
    )
    return header.encode("ascii") + entry.encoded_body


def encode(cell: Entry | Lease | Fence, incarnation_id: str) -> bytes:
    """Return the bytes of a cell that the incarnation `incarnation_id` of the store holds."""
    if isinstance(cell, Entry):
        return encode_entry(cell, incarnation_id)
    if isinstance(cell, Lease):
        return f"L1|{incarnation_id}|{cell.token}".encode("ascii")
    tokens = ",".join(sorted(cell.tokens))
    return f"F1|{incarnation_id}|{cell.fence_version}|,{tokens},".encode("ascii")


def decode(cell: bytes, incarnation_id: str) -> Entry | Lease | Fence | None:
    """Return the content of a cell; None if another incarnation of the store wrote it.

    Raises:
        UnreadableCell: garbage, or another format.
    """
    # One look for the cell that a poll finds; what it does not know is looked at piece by piece.
    found = _ENTRY.match(cell)
    if found is not None and found[1] == incarnation_id.encode("ascii"):
        return _entry(cell, found)
    kind, _, stamped = cell.partition(b"|")
    written, bar, rest = stamped.partition(b"|")
    if kind not in _KINDS or not written.isalnum() or not bar:
        raise UnreadableCell(f"a cell begins with {cell[:20]!r}, which is no format of ours")
    if written != incarnation_id.encode("ascii"):
        return None
    if kind == b"E1":
        raise UnreadableCell("the header of an entry is not as we write it")
    try:
        if kind == b"L1":
            return Lease(_token(rest))
        fence_version, tokens = rest.split(b"|")
        return Fence(_number(fence_version), _tokens(tokens))
    except (ValueError, UnicodeError) as error:
        raise UnreadableCell(f"a cell cannot be read: {error}") from error


class Decoder:
    """Decodes cells, and knows the last one of each name: most have not changed since.

    The whole cell is compared, so this is `decode`, only faster; and who is given the same entry
    again may keep with it what it has made of it.

    With a `check`, a body is read when its cell is decoded for the first time, so that one that
    cannot be read is found out here, and not when it is to be sent. Of larger cells only the header
    is known, which has the checksum of the body.

    Args:
        prefix: how many characters of a name are not the key's.

    Attributes:
        check: called with the key and the body without its encoding; raises whatever it likes if
            the body is not one that its owner would have written. None: bodies are not read.
    """

    def __init__(self, prefix: int = 0) -> None:
        self.check: Callable[[str, bytes], object] | None = None
        self._prefix = prefix
        self._last: dict[str, tuple[bytes, str, Entry]] = {}
        self._read: dict[str, bytes] = {}

    def decode(self, name: str, cell: bytes, incarnation_id: str) -> Entry | Lease | Fence | None:
        """As `decode`, of the cell at `name`.

        Raises:
            UnreadableCell: as `decode`, or the body cannot be read.
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
        if check is None:
            return
        body = entry.encoded_body if entry.encoding == "identity" else identity_body(entry)
        if entry.version == 0 or len(body) > _LARGEST_CHECKED:
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


def _entry(cell: bytes, found: re.Match[bytes]) -> Entry:
    _, version, stored_at_ms, fresh_ms, keep_ms, encoding, crc, poll_after, status, owner = (
        found.groups()
    )
    body = cell[found.end() :]
    if int(crc, 16) != zlib.crc32(body):
        raise UnreadableCell("the body of an entry is not the one that was stored")
    numbers = int(version), int(stored_at_ms), int(fresh_ms), int(keep_ms)
    after = None if poll_after == b"-" else int(poll_after)
    if max(numbers) >= VERSION_LIMIT or (after is not None and after >= VERSION_LIMIT):
        raise UnreadableCell("a number in the header of an entry is too large")
    return Entry(
        numbers[0],
        _text(owner) if b"%" in owner else owner.decode("ascii"),
        _text(status) if b"%" in status else status.decode("ascii"),
        after,
        body,
        "gzip" if encoding == b"gzip" else "identity",
        *numbers[1:],
    )


def _text(quoted: bytes) -> str:
    try:
        return unquote(quoted.decode("ascii"), errors="strict")
    except UnicodeError as error:
        raise UnreadableCell(f"a name in the header of an entry cannot be read: {error}") from error


def _number(text: bytes) -> int:
    # int() alone would take signs, spaces, underscores and any length
    if not text.isdigit() or len(text) > len(str(VERSION_LIMIT)):
        raise ValueError(f"{text[:20]!r} is not a number")
    number = int(text)
    if number >= VERSION_LIMIT:
        raise ValueError(f"{number} is too large")
    return number


def _tokens(text: bytes) -> frozenset[str]:
    # Not a shade more than the scripts write: they would not know their own fence in it.
    before, *each, after = text.split(b",")
    tokens = frozenset(map(_token, each))
    if before or after or not tokens or len(tokens) < len(each):
        raise ValueError(f"{text[:40]!r} are not the tokens of a fence")
    return tokens


def _token(text: bytes) -> str:
    if not text.isalnum():
        raise ValueError(f"{text[:40]!r} is not a token")
    return text.decode("ascii")
