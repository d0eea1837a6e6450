"""`Prefer: wait=10` (RFC 7240): the seconds that a client would wait for a newer version.

`Vary` of the answer does not name `Prefer`. A server has to name it if a preference changes how a
cache handles the answer; `wait` changes only when the answer comes.
"""

from __future__ import annotations

import re

LONGEST = 55
"""The most seconds that a request is held, by default. Proxies on the way give up a little later:
nginx and the load balancers of the large clouds after 60 seconds."""

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_WORD = rf'{_NAME}|"(?:[^"\\]|\\.)*"'
_PREFERENCE = re.compile(
    rf"\s*(?P<name>{_NAME})(?:\s*=\s*(?P<value>{_WORD}))?"
    rf"(?:\s*;(?:\s*{_NAME}(?:\s*=\s*(?:{_WORD}))?)?)*\s*(?:,|$)"
)
_EMPTY = re.compile(r"[\s,]+")  # elements of a list may be
_QUOTED_PAIR = re.compile(r"\\(.)")
_SECONDS = re.compile(r"[0-9]+", re.ASCII)
_MOST_DIGITS = 9


def requested_wait(prefer: str | None, longest: int = LONGEST) -> int | None:
    """Return the seconds that a `Prefer` header asks to wait, at most `longest`, or None.

    A part that cannot be read is ignored, with all that follows it. If `wait` comes twice, the
    first counts.
    """
    at, text = 0, "" if prefer is None else prefer
    while at < len(text):
        found = _PREFERENCE.match(text, at)
        if found is None:
            following = _EMPTY.match(text, at)
            if following is None:
                return None
            at = following.end()
            continue
        if found["name"].lower() == "wait":
            return _seconds(found["value"] or "", longest)
        at = found.end()
    return None


def _seconds(value: str, longest: int) -> int | None:
    if value.startswith('"'):
        value = _QUOTED_PAIR.sub(r"\1", value[1:-1])
    if _SECONDS.fullmatch(value) is None:
        return None
    return longest if len(value) > _MOST_DIGITS else min(int(value), longest)
