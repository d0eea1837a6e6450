"""How often a caller may call: so many calls in any window of so many seconds, per process.

The sliding window counter: of the calls in the previous fixed window, as many count as the sliding
window still covers, as if they had been spread evenly. Two numbers a caller, whatever the rate.

Rejected: the memory storages of `limits`, whose notation is used. After each call they walk through
all callers they remember, they forget none before its time is up, and the wait they tell does not
suffice when a window has been used up.
"""

from __future__ import annotations

import ipaddress
import time
from typing import TYPE_CHECKING

from limits import parse_many

if TYPE_CHECKING:
    from collections.abc import Callable


def read_rate(text: str) -> tuple[int, int]:
    """A number of calls, and of seconds: of "100/second", or "5 per 3 minutes".

    Raises:
        ValueError: it is no such rate.
    """
    (item,) = parse_many(text)
    if item.amount < 1:
        raise ValueError("not even one call")
    return item.amount, item.get_expiry()


class RateLimit:
    """Counts calls by name.

    Args:
        calls: how many of one name are let through
        seconds: in a window of this length.
        remembered: of how many names; beyond, whoever has not called for longest is forgotten.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        calls: int,
        seconds: float,
        *,
        remembered: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._calls = calls
        self._seconds = seconds
        self._remembered = remembered
        self._clock = clock
        # By name: the number of a fixed window, the calls in the one before, and in it.
        self._counts: dict[str, tuple[int, int, int]] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def wait(self, name: str) -> float:
        """Count a call and return 0; or return the seconds until one will be let through."""
        now = self._clock() / self._seconds  # in windows
        window = int(now)
        passed = now - window
        last, previous, current = self._counts.pop(name, (window, 0, 0))
        if last != window:
            previous, current = (current if last == window - 1 else 0), 0
        wait = _windows_until(self._calls, previous, current, passed)
        if wait <= 0:
            current += 1
        self._counts[name] = window, previous, current  # the last of the dictionary
        if len(self._counts) > self._remembered:
            del self._counts[next(iter(self._counts))]
        return max(0.0, wait * self._seconds)


def address_name(host: str) -> str:
    """What calls from an address are counted by: for IPv6 its network, for a host has many."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 4 or address.ipv4_mapped is not None:  # noqa: PLR2004 - as in IPv4
        return host
    return str(ipaddress.ip_network((host, 64), strict=False))


def _windows_until(calls: int, previous: int, current: int, passed: float) -> float:
    """How many windows until previous * (1 - passed) + current + 1 <= calls; not above 0: now."""
    if current < calls:
        free = calls - 1 - current
        return 0.0 if previous <= free else 1 - free / previous - passed
    # Not in this one; in the next, what is current now is the previous one.
    return 1 - passed + 1 - (calls - 1) / current
