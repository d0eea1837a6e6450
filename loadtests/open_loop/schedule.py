"""The times at which requests are to be sent, planned before the first of them."""

from __future__ import annotations

import asyncio
from array import array
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

JITTER = 0.1
"""By which part of the interval, at most, a poller comes sooner or later than that.

At exact intervals a poll would meet either every update of its job or none.
"""

_AT_ONCE = 64
"""Overdue requests that are sent before responses are read again."""


class Planned(NamedTuple):
    """A request that is to be sent.

    Attributes:
        at: seconds from the beginning.
        number: of the client that sends it.
    """

    at: float
    number: int


def of_pollers(count: int, interval: float, seconds: float, random: Random) -> list[Planned]:
    """Return the polls of `count` pollers, in the order of time."""
    planned = []
    for number in range(count):
        at = random.uniform(0, interval)
        while at < seconds:
            planned.append(Planned(at, number))
            at += interval * random.uniform(1 - JITTER, 1 + JITTER)
    planned.sort()
    return planned


def of_updates(jobs: int, interval: float, seconds: float) -> list[Planned]:
    """Return the updates of the jobs, in the order of time and evenly spaced.

    If all jobs were updated at the same moment, polls would have to wait for that crowd.
    """
    total = int(jobs * seconds / interval)
    return [Planned(number * interval / jobs, number % jobs) for number in range(total)]


class Pacer:
    """Makes each request when it is planned, whatever has become of the others.

    Args:
        planned: the requests, in the order of time.
        send: sends one; called with the time for which it was planned, by the clock of the loop.

    Attributes:
        delays: by how many seconds each was made later than planned. The loop was busy.
    """

    def __init__(self, planned: Sequence[Planned], send: Callable[[float, int], None]) -> None:
        self.delays = array("d")
        self._planned = planned
        self._send = send
        self._next = 0

    async def run(self, began: float) -> None:
        """Make all requests; their times count from `began`, by the clock of the loop."""
        self._loop = asyncio.get_running_loop()
        self._began = began
        self._done = self._loop.create_future()
        self._tick()
        await self._done

    def _tick(self) -> None:
        planned, loop = self._planned, self._loop
        try:
            for _ in range(_AT_ONCE):
                if self._next == len(planned):
                    self._done.set_result(None)
                    return
                at, number = planned[self._next]
                delay = loop.time() - self._began - at
                if delay < 0:
                    loop.call_later(-delay, self._tick)
                    return
                self._next += 1
                self.delays.append(delay)
                self._send(self._began + at, number)
        except Exception as error:  # noqa: BLE001 - raised by `run`
            self._done.set_exception(error)
            return
        loop.call_soon(self._tick)
