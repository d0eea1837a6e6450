"""The rate limit of each caller: so many calls a second, minute, hour, day or week, per process.

It uses the generic cell rate algorithm of `throttled`: one number for each caller, independent of
the rate and of other callers. A burst of calls may come at once, by default as many as the rate
names; after that the rate is steady.
"""

from __future__ import annotations

import ipaddress
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Functions import it, if there is a rate: it imports Redis's client, which takes a while.
    from throttled import MemoryStore, Quota

MOST_CALLS = 1_000_000
"""The most calls of a rate: with far more, one call's share of a second is lost in rounding."""

_REMEMBERED = 10_000


def read_rate(text: str) -> Quota:
    """Read a rate such as "100/second", "5 per minute" or "100/second burst 200".

    Raises:
        ValueError: it is not such a rate, more than one, or not of 1 to `MOST_CALLS` calls.
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
        quota: the limit on calls of one name.
        store: of the counts; None: one for 10,000 names, which then forgets the name that has not
            called for longest.
    """

    def __init__(self, quota: Quota, store: MemoryStore | None = None) -> None:
        from throttled import MemoryStore, RateLimiterType, Throttled  # noqa: PLC0415 - as above

        if store is None:
            store = MemoryStore(options={"MAX_SIZE": _REMEMBERED})
        # Without a timeout: with one it would sleep until a call may pass.
        self._calls = Throttled(using=RateLimiterType.GCRA.value, quota=quota, store=store)

    def wait(self, name: str) -> int:
        """Count a call and return 0; or return the seconds until one will be accepted."""
        result = self._calls.limit(f"caller {name}")  # it refuses an empty name
        return max(1, math.ceil(result.state.retry_after)) if result.limited else 0


def address_name(host: str) -> str:
    """Return the name to count calls from an address by: for IPv6 its network, of one host."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 4 or address.ipv4_mapped is not None:  # noqa: PLR2004 - as in IPv4
        return host
    return str(ipaddress.ip_network((host, 64), strict=False))
