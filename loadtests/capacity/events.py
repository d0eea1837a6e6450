"""Simulated time: tasks that wait, and events in the order of their times."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator
from itertools import count

Task = Generator["float | Signal", None, None]
"""A task yields seconds to wait, or a signal to wait for."""


class Signal:
    """Wakes the tasks that wait for it, once."""

    __slots__ = ("callbacks", "set")

    def __init__(self) -> None:
        self.set = False
        self.callbacks: list[Callable[[], None]] = []

    def fire(self) -> None:
        """Wake all waiting tasks; those that wait later do not wait."""
        if not self.set:
            self.set = True
            callbacks, self.callbacks = self.callbacks, []
            for callback in callbacks:
                callback()


class Timeline:
    """Runs tasks in simulated time. Equal times run in the order in which they were planned.

    Attributes:
        now: seconds since the beginning.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._planned: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def at(self, when: float, callback: Callable[[], None]) -> None:
        """Call back at a time, which must not be in the past."""
        heapq.heappush(self._planned, (when, next(self._numbers), callback))

    def start(self, task: Task) -> None:
        """Run a task from now on."""
        self._step(task)

    def run(self, until: float) -> None:
        """Run everything that is planned up to a time."""
        while self._planned and self._planned[0][0] <= until:
            self.now, _, callback = heapq.heappop(self._planned)
            callback()
        self.now = until

    def _step(self, task: Task) -> None:
        for wanted in task:
            if isinstance(wanted, Signal):
                if wanted.set:
                    continue
                wanted.callbacks.append(lambda: self._step(task))
            else:
                self.at(self.now + wanted, lambda: self._step(task))
            return


class Queue:
    """One or several equal servers that work on one request after the other.

    Args:
        timeline: the time.
        servers: how many requests are worked on at the same time.

    Attributes:
        longest_wait: the longest time that a request has waited for its turn, in seconds.
    """

    def __init__(self, timeline: Timeline, servers: int) -> None:
        self._timeline = timeline
        self._free_at = [0.0] * servers
        self.longest_wait = 0.0

    def add(self, work: float, patience: float = float("inf")) -> float | None:
        """Queue a request; return the seconds until it is done.

        Args:
            work: seconds that it takes.
            patience: seconds after which it is given up, even half done.

        Returns:
            None if it is not done in time.
        """
        now = self._timeline.now
        began = max(now, self._free_at[0])
        if began - now >= patience:
            return None
        ended = min(began + work, now + patience)
        heapq.heapreplace(self._free_at, ended)
        self.longest_wait = max(self.longest_wait, began - now)
        return ended - now if ended == began + work else None
