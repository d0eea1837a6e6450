"""The hosts that requests may name: a web page must not reach the service by its own name.

The owner of a page at `http://evil.example` can let that name point to 127.0.0.1 once the page is
loaded (DNS rebinding). For the browser, the service then belongs to the page's own site. Only the
Host header shows that it does not.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LOOPBACK = ("localhost", "*.localhost", "127.0.0.1", "[::1]")
_PORT = r"(?::[0-9]{0,5})?"
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252})"
_HOST = re.compile(rf"(?P<name>{_NAME}|\[[0-9A-Fa-f:.]{{2,45}}\]){_PORT}", re.ASCII)
_PATTERN = re.compile(rf"\*|(?:\*\.)?{_NAME}|\[?[0-9A-Fa-f:.]{{2,45}}\]?", re.ASCII)
_KEPT = 1024


def read_hosts(text: str) -> list[str]:
    """Read a list of hosts: names, `*.name` for all below a name, addresses, or `*` for any.

    Raises:
        ValueError: a part is not one of these.
    """
    parts = [part for part in map(str.strip, text.split(",")) if part]
    for part in parts:
        if _PATTERN.fullmatch(part) is None:
            raise ValueError(part)
    return parts


class AllowedHosts:
    """Decides by the Host header. Ports do not count, nor does a dot at a name's end.

    Args:
        patterns: as `read_hosts` returns them.

    Attributes:
        decisions: by Host header, made when they are first looked up; the fast path looks them up
            without a call.
    """

    def __init__(self, patterns: Iterable[str] = ("*",)) -> None:
        names = set(map(_plain, patterns))
        self._any = "*" in names
        self._below = tuple(name[1:] for name in names if name.startswith("*."))
        self._names = {name for name in names if not name.startswith("*")}
        self.decisions = _Decisions(self._decide)

    def allows(self, host: bytes) -> bool:
        """Return True for a Host header that can be read, and names one of the hosts."""
        return self.decisions[host]

    def _decide(self, host: bytes) -> bool:
        name = host_name(host)
        if name is None:
            return False
        return self._any or name in self._names or name.endswith(self._below)


class _Decisions(dict[bytes, bool]):
    """Decisions that were made, a limited number of them."""

    def __init__(self, decide: Callable[[bytes], bool]) -> None:
        super().__init__()
        self._decide = decide

    def __missing__(self, host: bytes) -> bool:
        decided = self._decide(host)
        if len(self) >= _KEPT:
            self.clear()
        self[bytes(host)] = decided
        return decided


def host_name(host: bytes) -> str | None:
    """Return the name in a Host header, in one spelling and without port; None if malformed."""
    found = _HOST.fullmatch(host.decode("latin-1").strip(" \t"))
    return None if found is None else _plain(found["name"])


def _plain(name: str) -> str:
    name = name.lower().removesuffix(".")
    try:
        return str(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return name
