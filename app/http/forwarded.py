"""The `X-Forwarded-*` headers of trusted proxies: the client's address, and a prefix of paths.

All ways to answer a request use this. A server's own handling, before it calls the application,
would be too late for polls that the protocol answers. It may happen all the same: if uvicorn has
replaced the proxy's address by the client's, the result here is the same.

Trust works as in uvicorn, with the same variable `FORWARDED_ALLOW_IPS`. A client that connects
through a Unix socket is a process of this machine, and trusted.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import Scope

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address

LOOPBACK = "127.0.0.1,::1"
_PREFIX = re.compile(
    r"(?:/(?!\.{1,2}(?:/|$))(?:[A-Za-z0-9._~-]|%(?!2[Ee])[2-7][0-9A-Fa-f])+)+", re.ASCII
)
_LONGEST_PREFIX = 200
_MOST_HOPS = 64  # of proxies in a row; further ones are ignored


class TrustedProxies:
    """The proxies whose `X-Forwarded-*` headers are used.

    Args:
        text: addresses, networks and names such as `unix:`, separated by commas; or `*` for all.

    Raises:
        ValueError: a part looks like a network and is not one.
    """

    def __init__(self, text: str = LOOPBACK) -> None:
        parts = [part for part in map(str.strip, text.split(",")) if part]
        self._all = parts == ["*"]
        self._networks = [ipaddress.ip_network(part, strict=False) for part in parts if "/" in part]
        found = {part: _address(part) for part in parts if "/" not in part}
        self._addresses = {address for address in found.values() if address is not None}
        self._names = {part for part, address in found.items() if address is None}

    def address(self, scope: Scope) -> Address | None:
        """Return the address of the client that sent a request; None if it is not known.

        Each proxy appends the address it was called from. So the list is read from its end, as long
        as the appending proxy is trusted. An entry that is not an address ends it: the entries
        before it may be forged, and are ignored.
        """
        client = scope.get("client")
        nearest = _address(client[0]) if client else None
        if client and not self._trusts(client[0], nearest):
            return nearest
        lines = _lines(scope["headers"], b"x-forwarded-for")
        for hop in reversed(lines.rsplit(",", _MOST_HOPS)[-_MOST_HOPS:]):
            text = hop.strip()
            address = _address(text)
            if address is not None:
                nearest = address
            if text and not self._trusts(text, address):
                break
        return nearest

    def prefix(self, scope: Scope) -> str | None:
        """Return the path under which a proxy has the service, from `X-Forwarded-Prefix`.

        None: no trusted proxy names one, or it cannot be read. If there are several proxies in a
        row, each appends its prefix to the list.
        """
        client = scope.get("client")
        # If uvicorn has replaced the address of a trusted proxy by the client's, the port is 0,
        # which no connection has.
        if client and client[1] != 0 and not self._trusts(client[0], _address(client[0])):
            return None
        lines = _lines(scope["headers"], b"x-forwarded-prefix")
        if not lines:
            return None
        try:
            return "".join(read_prefix(part.strip()) for part in lines.split(","))
        except ValueError:
            return None

    def _trusts(self, text: str, address: Address | None) -> bool:
        if address is None:
            return text in self._names
        if self._all or address in self._addresses:
            return True
        return any(address in network for network in self._networks)


def read_prefix(text: str) -> str:
    """Return a path under which all others are, without a slash at its end; "" for the root.

    Links in JSON and HTML begin with it. So only plain letters are allowed, and nothing that a
    browser takes for a host or for a step upwards.

    Raises:
        ValueError: it is not such a path.
    """
    path = text.removesuffix("/")
    if path and (len(path) > _LONGEST_PREFIX or _PREFIX.fullmatch(path) is None):
        raise ValueError(text)
    return path


def _lines(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> str:
    """Return all lines of a header as the one line that they stand for (RFC 9110, 5.3)."""
    return ",".join(value.decode("latin-1") for name, value in headers if name == wanted)


def _address(text: str) -> Address | None:
    """Read an address as proxies write it: with a port, IPv6 in brackets, or in quotes."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        # Without the zone of a link-local address: it may be any text.
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)  # of a socket for both families
    return address if mapped is None else mapped
