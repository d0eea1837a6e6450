"""How often a caller may call: at so many calls a second, minute, hour, day or week, per process.

By the generic cell rate algorithm of `throttled`: one number a caller, whatever the rate, and a
call looks at no other caller. Up to the burst, which is as many as the rate names unless it says
otherwise, may come at once; after that the rate is a steady one.
"""

from __future__ import annotations

import ipaddress
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Where there is a rate, functions import it: it imports Redis's client, which takes a while.
    from throttled import MemoryStore, Quota

MOST_CALLS = 1_000_000
"""What a rate may name: with far more, one call's share of a second is lost in rounding."""

_REMEMBERED = 10_000


def read_rate(text: str) -> Quota:
    """What is meant by "100/second", "5 per minute" or "100/second burst 200".

    Raises:
        ValueError: it is no such rate, more than one, or not of 1 to `MOST_CALLS` calls.
    """
    from throttled.exceptions import DataError  # noqa: PLC0415 - as above
    from throttled.rate_limiter.quota_parser import parse  # noqa: PLC0415 - as above

    try:
        (quota,) = parse(text)
    except (DataError, OverflowError) as error:
        raise ValueError(text) from error
    if quota.rate.limit > MOST_CALLS or not 1 <= quota.burst <= MOST_CALLS:
        raise ValueError(text)
    return quota


class RateLimit:
    """Counts calls by name.

    Args:
        quota: how many of one name are let through.
        store: of the counts; None: one for 10,000 names, which then forgets whoever has not
            called for longest.
    """

    def __init__(self, quota: Quota, store: MemoryStore | None = None) -> None:
        from throttled import MemoryStore, RateLimiterType, Throttled  # noqa: PLC0415 - as above

        if store is None:
            store = MemoryStore(options={"MAX_SIZE": _REMEMBERED})
        # It is given no timeout: with one it would sleep until a call may pass.
        self._calls = Throttled(using=RateLimiterType.GCRA.value, quota=quota, store=store)

    def wait(self, name: str) -> int:
        """Count a call and return 0; or return the seconds until one will be let through."""
        result = self._calls.limit(f"caller {name}")  # for it refuses a name that is empty
        return max(1, math.ceil(result.state.retry_after)) if result.limited else 0


def address_name(host: str) -> str:
    """What calls from an address are counted by: for IPv6 its network, for a host has many."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 4 or address.ipv4_mapped is not None:  # noqa: PLR2004 - as in IPv4
        return host
    return str(ipaddress.ip_network((host, 64), strict=False))
