"""Origins of web pages (RFC 6454): how settings list them, and how they compare with a Host."""

from __future__ import annotations

from urllib.parse import urlsplit

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def read_origins(text: str) -> list[str]:
    """Read a list of origins, `scheme://host` or `scheme://host:port`, or `*` for any.

    Raises:
        ValueError: a part is not an origin.
    """
    return [_origin(part) for part in map(str.strip, text.split(",")) if part]


def _origin(text: str) -> str:
    if text == "*":
        return text
    parts = urlsplit(text)
    plain = text.isascii() and text.isprintable() and " " not in text
    # A port that is not a number raises here, too.
    if not plain or not parts.hostname or parts.port == 0 or "@" in parts.netloc or "*" in text:
        raise ValueError(text)
    if text.lower() != f"{parts.scheme}://{parts.netloc}".lower():
        raise ValueError(text)
    # As browsers write it: in lower case, without the default port of the scheme.
    return text.lower().removesuffix(_DEFAULT_PORTS.get(parts.scheme, "/"))


def is_same_origin(origin: str, host: str) -> bool:
    """Return True if an `Origin` header and a `Host` header name the same host and port."""
    scheme, _, named = origin.lower().partition("://")
    port = _DEFAULT_PORTS.get(scheme)
    if port is None:  # "null", and the schemes of browser extensions
        return False
    return named.removesuffix(port) == host.lower().removesuffix(port)
