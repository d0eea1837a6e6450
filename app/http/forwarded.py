"""What proxies say of a request, as far as it can be believed: its client's address, its prefix.

Decided here for every request, whichever path answers it: what a server does before it calls the
application comes too late for polls that are answered before. It may have been done all the same:
where uvicorn has put the client's address in the place of the proxy's, the answer is the same.

Trust works as in uvicorn, whose `FORWARDED_ALLOW_IPS` this reads. Whoever comes over a Unix socket
is a process of this machine, and trusted.
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
_PREFIX = re.compile(r"(?:/(?!\.{1,2}(?:/|$))(?:[A-Za-z0-9._~-]|%[2-7][0-9A-Fa-f])+)+", re.ASCII)
_LONGEST_PREFIX = 200
_MOST_HOPS = 64  # of proxies in a row; what is beyond is not looked at


class TrustedProxies:
    """Proxies whose `X-Forwarded-*` headers are believed.

    Args:
        text: addresses, networks and names such as `unix:`, separated by commas; or `*` for all.

    Raises:
        ValueError: a part looks like a network and is none.
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
        as whoever appended can be trusted. An entry that is no address ends it: what stands before
        may be invented, and counts for nothing.
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

        None: no trusted proxy names one, or it cannot be read. Of several proxies in a row, each
        adds its own behind those before.
        """
        client = scope.get("client")
        # Where uvicorn has put the client's address in the place of a proxy's that it trusts, the
        # port is 0, which no connection has.
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

    It comes to stand before links, in JSON and in HTML, so only plain letters are let through, and
    nothing that a browser takes for a host or for a step upwards.

    Raises:
        ValueError: it is no such path.
    """
    path = text.removesuffix("/")
    if path and (len(path) > _LONGEST_PREFIX or _PREFIX.fullmatch(path) is None):
        raise ValueError(text)
    return path


def _lines(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> str:
    """All lines of a header, as the one that they stand for (RFC 9110, 5.3)."""
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
    mapped = getattr(address, "ipv4_mapped", None)  # as sockets for both families have it
    return address if mapped is None else mapped
