"""An entry: a document in the cache, with its lifetime.

Most entries have the version of their document. An *unversioned* entry has none: nobody counts the
changes of its document, so it cannot be compared with another entry of its key. It has a token
instead, which names the load that made it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

Encoding = Literal["identity", "gzip"]
Tags = tuple[tuple[str, str], ...]
"""Pairs of a tag and its generation, in the order of the tags."""

UNVERSIONED = -1
"""In place of a version: the entry has none. Below every version, so that no read that wants a
version accepts such an entry."""

CLOCK_SKEW_MS = 1000
"""The largest difference between the wall clocks of synchronised hosts, in milliseconds."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A committed version of one document, ready to serve.

    Attributes:
        version: see `Document`; `UNVERSIONED` if the entry has none.
        owner: see `Document`.
        status: see `Document`.
        poll_after: see `Document`.
        encoded_body: the body, in `encoding`; `ReadResult.body` is the body without it.
        encoding: "gzip" if the body was large enough to compress, else "identity".
        stored_at_ms: wall-clock time of the load or commit, in milliseconds since the epoch. It is
            the start of `fresh_ms`, and of the age that responses show. It never decides which of
            two entries is newer.
        fresh_ms: how long after `stored_at_ms` the entry is served without asking the source.
        keep_ms: how long a backend keeps the entry, grace included. 0: it is not kept at all.
        token: of an unversioned entry: the token of the load that made it; else empty.
        tags: of an unversioned entry: the tags of its document, each with the generation that the
            tag had before the load.
        kept: what this process has derived from the body, so that each hit need not do it again.
            It is neither compared nor stored.
    """

    version: int
    owner: str
    status: str
    poll_after: int | None
    encoded_body: bytes
    encoding: Encoding
    stored_at_ms: int
    fresh_ms: int
    keep_ms: int
    token: str = ""
    tags: Tags = ()
    kept: object = field(default=None, init=False, repr=False, compare=False)

    @property
    def gone(self) -> bool:
        """True if this entry says that the source knows no such document."""
        return self.version == 0

    def past_its_freshness(self) -> Entry:
        """Return the same entry, past its freshness: served only if the source is away."""
        return replace(self, fresh_ms=-CLOCK_SKEW_MS)  # no age is below that
