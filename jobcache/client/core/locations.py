"""URLs that responses name: resolved, checked, and compared by their origin."""

from __future__ import annotations

import re
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from jobcache.client.core.errors import BadLocation

_PORTS = {"http": 80, "https": 443}
_LARGEST_PORT = 65535
# Only what RFC 3986 permits: two parsers could see different hosts in anything else.
_HOST = re.compile(r"[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\]")
_KEPT = "%/:=&?~#+!$,;'@()*[]"


def resolve(location: str, url: str) -> str:
    """Return the URL that a response names, without user name and fragment.

    Args:
        location: the header, a whole URL or a relative one.
        url: of the request.

    Raises:
        BadLocation: it is no URL, is not HTTP, or leads from HTTPS to HTTP.
    """
    # Spaces, backslashes and characters beyond ASCII are not permitted, but do occur.
    try:
        named = urljoin(url, quote(location.strip(), safe=_KEPT))
        parts = urlsplit(named)
        found = origin(named)
    except ValueError as error:
        raise BadLocation(f"{shown(url)} names {location!r}, which is no URL: {error}") from error
    if found[0] == "http" and origin(url)[0] == "https":
        raise BadLocation(f"{shown(url)} leads to {shown(named)}, which is not encrypted")
    # A whole URL of the same server does not repeat the user name that the caller gave.
    same = found == origin(url)
    authority = urlsplit(url).netloc if same else parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, authority, parts.path, parts.query, ""))


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL (RFC 6454).

    Raises:
        ValueError: it is not an absolute URL of HTTP or HTTPS.
    """
    parts = urlsplit(url)
    scheme, host = parts.scheme.lower(), parts.netloc.rpartition("@")[2]
    name, _, port = host.rpartition(":") if re.search(r":\d*$", host) else (host, "", "")
    if scheme not in _PORTS:
        raise ValueError(f"the URL must begin with http:// or https://, not {shown(url)!r}")
    if _HOST.fullmatch(name) is None:
        raise ValueError(f"the URL has no valid host: {shown(url)!r}")
    number = int(port) if port else _PORTS[scheme]
    if number > _LARGEST_PORT:
        raise ValueError(f"the URL has no valid port: {shown(url)!r}")
    return scheme, name.lower(), number


def shown(url: str) -> str:
    """Return a URL for messages, without user name and password."""
    return re.sub(r"//[^/?#]*@", "//", url, count=1)
