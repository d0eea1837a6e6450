"""Runs many waits side by side over few connections: what to send next, and how long to sleep."""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

from jobcache.client.core.errors import AllFailed, WaitTimeout
from jobcache.client.core.messages import Completed, Request, Sleep, T, Update

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from jobcache.client.core.messages import Reply, Steps


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request of one wait; others may be on their way."""

    wait: int
    request: Request


class Scheduler(Generic[T]):
    """Decides whose turn it is.

    A wait whose pause is over asks its rules for a request only once there is a connection for it:
    the time limits of the request begin then.

    Args:
        waits: each reports its end by `Completed`.
        clock: seconds, monotonic.
        connections: the most requests at a time.
    """

    def __init__(
        self, waits: Iterable[Steps[Any]], clock: Callable[[], float], connections: int
    ) -> None:
        if connections < 1:
            raise ValueError(f"connections must be at least 1, not {connections!r}")
        self._waits = dict(enumerate(waits))
        self._clock = clock
        self._free = connections
        # Each wait is in one of these, or has a request on its way.
        self._replied: deque[tuple[int, Reply | Exception]] = deque()
        self._due = [(-math.inf, number) for number in self._waits]
        self.is_sequential = connections == 1 or len(self._waits) == 1

    def next(self) -> Send | Sleep | Update[T] | Completed[T] | None:
        """Return the next step; None if all waits have ended.

        `Sleep` lasts so many seconds or until there is a reply. If only a reply can help, its
        seconds are infinite.
        """
        while self._waits:
            if self._replied:
                number, reply = self._replied.popleft()
            elif self._free and self._due and self._due[0][0] <= self._clock():
                (_, number), reply = heapq.heappop(self._due), None
            elif self._free and self._due:
                return Sleep(max(0.0, self._due[0][0] - self._clock()))
            else:
                return Sleep(math.inf)
            step = self._advance(number, reply)
            if step is not None:
                return step
        return None

    def replied(self, number: int, reply: Reply | Exception) -> None:
        """Take the reply to a request; an exception ends its wait."""
        self._free += 1
        self._replied.append((number, reply))

    def _advance(
        self, number: int, reply: Reply | Exception
    ) -> Send | Update[T] | Completed[T] | None:
        steps = self._waits[number]
        try:
            step = steps.throw(reply) if isinstance(reply, Exception) else steps.send(reply)
        except StopIteration:
            del self._waits[number]
            return None
        if isinstance(step, Request):
            # There is a connection: the one of the last reply, or the one that was free before.
            self._free -= 1
            return Send(number, step)
        if isinstance(step, Sleep):
            heapq.heappush(self._due, (self._clock() + step.seconds, number))
            return None
        self._replied.appendleft((number, None))  # it goes on once this has been shown
        return step


def completing(number: int, source: object, steps: Steps[T]) -> Steps[Any]:
    """Run a wait that reports its end, an error too, in place of returning it."""
    try:
        result = yield from steps
    except Exception as error:  # noqa: BLE001 - it is raised by `Completed.result`
        yield Completed(number, source, None, error)
    else:
        yield Completed(number, source, result, None)


def none_completed(errors: Sequence[Exception]) -> Exception:
    """Return the error for waits of which none had a result."""
    if not errors:
        return ValueError("there is nothing to wait for")
    over = [error for error in errors if isinstance(error, WaitTimeout)]
    return over[0] if over else errors[0] if len(errors) == 1 else AllFailed(errors)
