"""Shapes of load: how many users there are as the test goes on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from loadtests.pollers.options import STAMPEDE

if TYPE_CHECKING:
    from collections.abc import Callable

_RAMP_STEPS = 10
_RAMP_END = 0.8  # of the test
_SPIKE_BEGIN, _SPIKE_END = 0.4, 0.6
_SPIKE_BASE = 10  # a spike has so many times the users of the time around it

DEPLOY_AT = 0.5
"""How much of a stampede is over when its users are cut off."""


def ramp(at: float, users: int) -> int:
    """Return the users of a ramp: more in equal steps, then all until the end.

    Args:
        at: how much of the test is over, 0 to 1.
        users: the largest number.
    """
    steps = min(_RAMP_STEPS, 1 + math.floor(_RAMP_STEPS * at / _RAMP_END))
    return max(1, math.ceil(users * steps / _RAMP_STEPS))


def spike(at: float, users: int) -> int:
    """Return the users of a spike: all of them in the middle, a tenth before and after it."""
    return users if _SPIKE_BEGIN <= at < _SPIKE_END else max(1, users // _SPIKE_BASE)


def steady(_: float, users: int) -> int:
    """Return the users of a stampede, but for the moment in which they are away: all of them."""
    return users


PLANS: dict[str, Callable[[float, int], int]] = {
    "ramp": ramp,
    "spike": spike,
    STAMPEDE: steady,
}
"""The shapes by the value of `--shape`."""
