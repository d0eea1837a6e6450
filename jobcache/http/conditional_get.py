"""Conditional requests: how a cached document answers a GET.

ETags are `"<version>-<n>"`. `n` distinguishes the representations of one version, as a strong ETag
must: it is 1 for gzip, and 0 for the body as it is. ETags are the same in all processes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from jobcache.http.reply import Reply
from jobcache.models import CacheOutcome
from jobcache.protocol.codec import identity_body
from jobcache.protocol.document import VERSION_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobcache.http.reply import Headers
    from jobcache.models import ReadResult
    from jobcache.protocol.entry import Entry

    Rewrite = Callable[[bytes], bytes]

# The suffix that proxies append to the tag of an answer that they compress or decompress. Apache
# makes `"7-0-gzip"` of it, Jetty `"7-0--gzip"`, others `"7-0;gz"`, or `"7-0"-gzip`, which is not a
# valid tag. nginx writes W/ before it.
_SUFFIX = r"(?:[-;]{1,3}(?:x-)?(?:gzip|gz|br|brotli|zstd|zst|deflate|df|compress))"
_TAG = re.compile(rf"(\d{{1,16}})-(\d{{1,4}}){_SUFFIX}{{0,3}}", re.ASCII | re.IGNORECASE)
_LISTED = re.compile(
    rf'[ \t]*(?:[Ww]/)?"([\x21\x23-\x7e\x80-\xff]*)"{_SUFFIX}{{0,3}}[ \t]*(?:,|$)',
    re.IGNORECASE,
)
_ANY_SUFFIX = re.compile(rf"{_SUFFIX}{{1,3}}$", re.IGNORECASE)
_ENCODING = re.compile(r"\s*([\w*-]+)\s*(?:;\s*q\s*=\s*([\d.]+)\s*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Conditions:
    """The versions that a client has, according to its `If-None-Match`.

    Attributes:
        tags: version and `n` of each tag that has the form of this service.
        min_version: the highest version that the client has seen, in any format.
        any: True for `*`.
    """

    tags: frozenset[tuple[int, int]]
    min_version: int
    any: bool


_NONE = Conditions(frozenset(), 0, any=False)


@lru_cache(maxsize=256)  # clients of many jobs have seen few different versions
def conditions(if_none_match: str | None) -> Conditions:
    """Read `If-None-Match` (RFC 9110, 13.1.2). Tags of another form match nothing."""
    if if_none_match is None:
        return _NONE
    if if_none_match.strip() == "*":
        return Conditions(frozenset(), 0, any=True)
    ours = filter(None, map(_TAG.fullmatch, listed_tags(if_none_match)))
    seen = [(int(tag[1]), int(tag[2])) for tag in ours]
    # No database counts so far: as the minimum, such a version would make every poll a query.
    possible = [version for version, _ in seen if version < VERSION_LIMIT]
    return Conditions(frozenset(seen), max(possible, default=0), any=False)


@lru_cache(maxsize=64)
def accepts_gzip(accept_encoding: str | None) -> bool:
    """Return True if the client accepts gzip (RFC 9110, 12.5.3)."""
    if not accept_encoding:
        return False
    quality = {}
    for item in accept_encoding.lower().split(","):
        match = _ENCODING.fullmatch(item)
        if match is not None:
            quality[match[1]] = match[2]
    for coding in ("gzip", "x-gzip", "*"):
        if coding in quality:
            weight = quality[coding]
            return weight is None or weight.strip("0.") != ""
    return False


def etag(version: int, *, gzip: bool) -> str:
    """Return the entity tag of one representation of a version."""
    return f'"{version}-{gzip:d}"'


def holds(if_none_match: str, tag: str) -> bool:
    """Return True if `If-None-Match` names a tag of any form: RFC 9110's weak comparison."""
    if if_none_match.strip() == "*":
        return True
    named = listed_tags(if_none_match)
    return tag.strip('"') in {*named, *(_ANY_SUFFIX.sub("", each) for each in named)}


def listed_tags(if_none_match: str) -> list[str]:
    """Return the tags of a list, without quotes and `W/`. Other elements are ignored.

    The list is read element by element, so that two quotes of different tags are not a pair.
    """
    tags, at = [], 0
    while 0 <= at < len(if_none_match):
        found = _LISTED.match(if_none_match, at)
        if found is None:
            at = if_none_match.find(",", at) + 1 or len(if_none_match)
        else:
            tags.append(found[1])
            at = found.end()
    return tags


def may_wait(answer: ReadResult, if_none_match: str | None) -> bool:
    """Return True if the client has this version, in either coding, and a newer one may come."""
    entry = answer.entry
    if entry.poll_after is None:
        return False
    tags = conditions(if_none_match).tags
    return (entry.version, 0) in tags or (entry.version, 1) in tags


class Representation:
    """An entry in one coding, and its last replies.

    Args:
        entry: the entry.
        gzip: whether the body is in gzip. A body that is rewritten never is.
        rewrite: changes the body for its clients; None: it is sent as it is.
    """

    __slots__ = ("_made_for", "_rewrite", "_unchanged", "_whole", "entry", "gzip")

    def __init__(self, entry: Entry, *, gzip: bool, rewrite: Rewrite | None = None) -> None:
        self.entry = entry
        self.gzip = gzip
        self._rewrite = rewrite
        # The last replies, and the values they were made of: within a second, most are the same.
        self._made_for: tuple[object, ...] = ()
        self._whole: Reply | None = None
        self._unchanged: Reply | None = None

    def reply(self, answer: ReadResult, *, unchanged: bool) -> Reply:
        """Return the reply to a read; without the body if the client has it."""
        age_ms = answer.age_ms
        fresh_ms = self.entry.fresh_ms - age_ms
        made_for = age_ms // 1000, fresh_ms // 1000, answer.outcome, answer.coalesced, answer.tier
        if made_for != self._made_for:
            self._made_for, self._whole, self._unchanged = made_for, None, None
        reply = self._unchanged if unchanged else self._whole
        if reply is None:
            reply = self._make(answer, unchanged=unchanged)
            if unchanged:
                self._unchanged = reply
            else:
                self._whole = reply
        return reply

    def _make(self, answer: ReadResult, *, unchanged: bool) -> Reply:
        entry = self.entry
        headers: Headers = [
            (b"etag", etag(entry.version, gzip=self.gzip).encode()),
            (b"cache-control", b"private, no-cache"),
            (b"vary", b"Accept-Encoding"),
            (b"cache-status", cache_status(answer).encode()),
        ]
        if entry.poll_after is not None:
            headers.append((b"retry-after", b"%d" % entry.poll_after))
        if answer.outcome in {CacheOutcome.HIT, CacheOutcome.STALE}:
            headers.append((b"age", b"%d" % (answer.age_ms // 1000)))
        if unchanged:
            return Reply(304, headers, b"")
        headers.append((b"content-type", b"application/json"))
        if self.gzip:
            headers.append((b"content-encoding", b"gzip"))
            body = entry.encoded_body
        else:
            body = entry.encoded_body if entry.encoding == "identity" else identity_body(entry)
            if self._rewrite is not None:
                body = self._rewrite(body)
        headers.append((b"content-length", b"%d" % len(body)))
        return Reply(200, headers, body)


def respond(
    answer: ReadResult,
    if_none_match: str | None,
    accept_encoding: str | None,
    kept: Representation | None = None,
    rewrite: Rewrite | None = None,
) -> Reply:
    """Return the reply to a GET of a document.

    Args:
        answer: the result of the read.
        if_none_match: the header, if there is one.
        accept_encoding: the header, if there is one.
        kept: a representation from an earlier poll, which is used if it fits.
        rewrite: changes the body for this client, such as its links; None: it is sent as it is.
    """
    entry = answer.entry
    gzip = entry.encoding == "gzip" and rewrite is None and accepts_gzip(accept_encoding)
    unchanged = False
    if if_none_match is not None:
        wanted = conditions(if_none_match)
        unchanged = wanted.any or (entry.version, gzip) in wanted.tags
        if not unchanged and (entry.version, not gzip) in wanted.tags:
            # The client has this version in the other coding, so that one's tag is sent: a tag
            # that it does not have would be useless to it.
            unchanged, gzip = True, not gzip
    if kept is None or kept.entry is not entry or kept.gzip is not gzip:
        kept = Representation(entry, gzip=gzip, rewrite=rewrite)
    return kept.reply(answer, unchanged=unchanged)


def cache_status(answer: ReadResult) -> str:
    """Return the value of Cache-Status (RFC 9211). A `ttl` below 0 means stale."""
    collapsed = "; collapsed" if answer.coalesced else ""
    tier = f"; detail={answer.tier}"
    if answer.outcome is CacheOutcome.HIT:
        ttl = (answer.entry.fresh_ms - answer.age_ms) // 1000
        return f"jobcache; hit; ttl={ttl}{tier}"
    if answer.outcome is CacheOutcome.STALE:
        ttl = (answer.entry.fresh_ms - answer.age_ms) // 1000
        return f"jobcache; fwd=stale; fwd-status=503; ttl={ttl}{collapsed}{tier}"
    forwarded = "stale" if answer.outcome is CacheOutcome.EXPIRED else answer.outcome.value
    return f"jobcache; fwd={forwarded}{collapsed}{tier}"
