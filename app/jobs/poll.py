"""How a cached document answers a GET: validators, encoding, and what caches have to say.

ETags are `"<version>-<n>"`. `n` tells representations of one version apart, as a strong ETag must:
its lowest bit is 1 for gzip, the rest is the format of the documents, to be raised when their JSON
changes. Nothing in them differs between processes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobcache import Outcome, identity_body
from jobcache.protocol import VERSION_LIMIT

if TYPE_CHECKING:
    from jobcache import Answer, Entry

FORMAT = 0
_TAG = re.compile(r'(?:W/)?"(\d{1,16})-(\d{1,4})"')
_ANY_TAG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')
_ENCODING = re.compile(r"\s*([\w*-]+)\s*(?:;\s*q\s*=\s*([\d.]+)\s*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a client's `If-None-Match` says it has.

    Attributes:
        tags: version and `n` of each that has the shape of ours.
        floor: the highest version it has seen, in whatever format.
        any: True for `*`.
    """

    tags: frozenset[tuple[int, int]]
    floor: int
    any: bool


_NONE = Conditions(frozenset(), 0, any=False)


def conditions(if_none_match: str | None) -> Conditions:
    """Read `If-None-Match` (RFC 9110, 13.1.2). Tags that are not ours match nothing."""
    if if_none_match is None:
        return _NONE
    if if_none_match.strip() == "*":
        return Conditions(frozenset(), 0, any=True)
    seen = [(int(version), int(n)) for version, n in _TAG.findall(if_none_match)]
    # No source gives out such a version: as a floor it would make every poll a query.
    possible = [version for version, _ in seen if version < VERSION_LIMIT]
    return Conditions(frozenset(seen), max(possible, default=0), any=False)


def accepts_gzip(accept_encoding: str | None) -> bool:
    """True if the client takes gzip (RFC 9110, 12.5.3)."""
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
    """The entity tag of one representation of a version."""
    return f'"{version}-{_n(gzip=gzip)}"'


def holds(if_none_match: str, tag: str) -> bool:
    """True if `If-None-Match` names `tag`, whoever made it: the weak comparison of RFC 9110."""
    return if_none_match.strip() == "*" or tag in _ANY_TAG.findall(if_none_match)


def _n(*, gzip: bool) -> int:
    return FORMAT << 1 | gzip


def respond(
    answer: Answer, if_none_match: str | None, accept_encoding: str | None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body for a GET of the document."""
    entry = answer.entry
    gzip = entry.encoding == "gzip" and accepts_gzip(accept_encoding)
    headers = {
        "ETag": etag(entry.version, gzip=gzip),
        "Cache-Control": "private, no-cache",
        "Vary": "Accept-Encoding",
        "Cache-Status": cache_status(answer),
    }
    if entry.poll_after is not None:
        headers["Retry-After"] = str(entry.poll_after)
    if answer.outcome in {Outcome.HIT, Outcome.STALE}:
        headers["Age"] = str(answer.age_ms // 1000)
    wanted = conditions(if_none_match)
    if wanted.any or (entry.version, _n(gzip=gzip)) in wanted.tags:
        return 304, headers, b""
    if (entry.version, _n(gzip=not gzip)) in wanted.tags:
        # It holds this version in the other coding; a tag of what it lacks would tell it nothing.
        headers["ETag"] = etag(entry.version, gzip=not gzip)
        return 304, headers, b""
    headers["Content-Type"] = "application/json"
    if gzip:
        headers["Content-Encoding"] = "gzip"
        return 200, headers, entry.body
    return 200, headers, identity_body(entry)


def cache_status(answer: Answer) -> str:
    """Where the answer came from (RFC 9211). A `ttl` below 0: past its freshness, served anyway."""
    collapsed = "; collapsed" if answer.coalesced else ""
    tier = f"; detail={answer.tier}"
    if answer.outcome is Outcome.HIT:
        return f"jobcache; hit; ttl={_ttl(answer.entry, answer.age_ms)}{tier}"
    if answer.outcome is Outcome.STALE:
        ttl = _ttl(answer.entry, answer.age_ms)
        return f"jobcache; fwd=stale; fwd-status=503; ttl={ttl}{collapsed}{tier}"
    forwarded = "stale" if answer.outcome is Outcome.EXPIRED else answer.outcome.value
    return f"jobcache; fwd={forwarded}{collapsed}{tier}"


def _ttl(entry: Entry, age_ms: int) -> int:
    return (entry.fresh_ms - age_ms) // 1000
