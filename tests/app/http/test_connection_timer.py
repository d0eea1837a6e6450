"""An idle connection is closed in time, and one in use is not, with one timer for both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from app.http.connection_timer import ConnectionTimer

LIMIT = 5.0


class Loop:
    """As much of an event loop as that needs, whose time the test makes pass."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        self.timers.append(Timer(self.now + delay, callback))
        return self.timers[-1]

    def elapse(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer.at <= end]:
            first = min(due, key=lambda timer: timer.at)
            self.timers.remove(first)
            self.now = first.at
            if not first.cancelled:
                first.callback()
        self.now = end


class Timer:
    def __init__(self, at: float, callback: Callable[[], object]) -> None:
        self.at = at
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Connection:
    def __init__(self) -> None:
        self.loop = Loop()
        self.closed_at: list[float] = []
        loop: Any = self.loop
        self.idle = ConnectionTimer(loop, LIMIT, lambda: self.closed_at.append(self.loop.now - 100))


def test_it_is_over_after_the_limit_and_once() -> None:
    connection = Connection()
    connection.idle.begin()
    connection.loop.elapse(3 * LIMIT)
    assert connection.closed_at == [LIMIT]


def test_what_comes_in_between_begins_it_anew_with_one_timer() -> None:
    connection = Connection()
    for _ in range(10):
        connection.idle.begin()
        connection.loop.elapse(LIMIT - 1)
        assert len(connection.loop.timers) <= 1
    connection.idle.begin()
    connection.loop.elapse(3 * LIMIT)
    assert connection.closed_at == [10 * (LIMIT - 1) + LIMIT]


def test_after_its_end_it_begins_anew() -> None:
    connection = Connection()
    for _ in range(2):
        connection.idle.begin()
        connection.loop.elapse(10 * LIMIT)
    assert connection.closed_at == [LIMIT, 11 * LIMIT]


def test_an_earlier_deadline_counts() -> None:
    connection = Connection()
    connection.idle.begin()
    connection.idle.begin(1)
    connection.loop.elapse(3 * LIMIT)
    assert connection.closed_at == [1]


def test_a_connection_that_is_gone_leaves_no_timer() -> None:
    connection = Connection()
    connection.idle.begin()
    connection.idle.close()
    assert all(timer.cancelled for timer in connection.loop.timers)
    connection.loop.elapse(2 * LIMIT)
    assert connection.closed_at == []
