"""A document: one version of what a key stands for, as the source has committed it."""

from __future__ import annotations

from dataclasses import dataclass

from jobcache.errors import InvalidDocument

VERSION_LIMIT = 2**53
"""Versions stay below this, so that Lua's numbers hold them exactly."""

NEWEST = VERSION_LIMIT - 1
"""The version that is published for a row whose new version is unknown, or that is gone:

    W0 commits version 6; W1 deletes the row and publishes; W0 publishes version 6

W0's document must not be stored, whichever version it has.
"""


@dataclass(frozen=True, slots=True)
class Document:
    """One version of a document as the source has committed it.

    Attributes:
        version: a number that each change raises, from 1; 0 with an empty body if the source has no
            such document.
        owner: the owner. It is kept beside the body, so that a hit can be refused without parsing.
        body: the bytes that answer a poll.
        status: decides how long the document is cached; see `Lifetimes`.
        poll_after: seconds after which another poll makes sense; None if the document is final.

    A `bytearray` or a `memoryview` given as the body is copied.

    Raises:
        InvalidDocument: a field has a wrong type or is out of its range. Values that only some
            backends could store are refused for all of them.
    """

    version: int
    owner: str
    body: bytes
    status: str = ""
    poll_after: int | None = None

    def __post_init__(self) -> None:
        _check_number("version", self.version)
        if self.poll_after is not None:
            _check_number("poll_after", self.poll_after)
        object.__setattr__(self, "owner", _plain_text("owner", self.owner))
        object.__setattr__(self, "status", _plain_text("status", self.status))
        if type(self.body) is not bytes:
            if not isinstance(self.body, bytes | bytearray | memoryview):
                raise InvalidDocument(f"the body is of type {_type(self.body)}; it must be bytes")
            object.__setattr__(self, "body", bytes(self.body))


class UnstoredDocument(Document):
    """A document that is served and not stored, because no write would fence its key."""

    __slots__ = ()

    @classmethod
    def of(cls, document: Document) -> UnstoredDocument:
        """Return the same document, which is not stored."""
        it = document
        return cls(it.version, it.owner, it.body, it.status, it.poll_after)


def _check_number(name: str, number: object) -> None:
    # Not isinstance: a bool is an int, and a driver's own type may not be written as one.
    if type(number) is not int:
        raise InvalidDocument(f"{name}={number!r:.40} is of type {_type(number)}; it must be int")
    if not 0 <= number < VERSION_LIMIT:
        raise InvalidDocument(f"{name}={number} is out of range: 0 to {VERSION_LIMIT - 1}")


def _plain_text(name: str, text: object) -> str:
    if type(text) is not str:
        if not isinstance(text, str):
            raise InvalidDocument(f"{name} is of type {_type(text)}; it must be str")
        text = str.__str__(text)  # of an enumeration, say
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidDocument(f"{name} cannot be encoded in UTF-8: {error.reason}") from None
    return text


def _type(value: object) -> str:
    return type(value).__name__


@dataclass(frozen=True, slots=True)
class UnversionedDocument:
    """A document without a version.

    Attributes:
        body: its bytes.
        ttl: seconds for which it is served; 0: it is not stored.
        tags: its tags, each with the generation that the tag had before the load.
    """

    body: bytes
    ttl: float
    tags: tuple[tuple[str, str], ...] = ()


GONE = Document(version=0, owner="", body=b"", status="gone")
"""The document that stands for the None of a loader: there is no such document."""
