"""An outage of Redis in the middle of a run."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

from loadtests.report.document import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.devservers import RedisServer
    from loadtests.scenario import Scenario

_LOOK_AGAIN = 0.1  # seconds until it looks again for the first poll


class RedisOutage:
    """Freezes a Redis server for a while, as a scenario says; leaving the block thaws it.

    Args:
        scenario: says how long after the first poll; without an outage nothing happens.
        redis: the server; None if the backend has none.
        has_begun: returns whether there was a poll.

    Attributes:
        faults: what happened, by the seconds since entering.
    """

    def __init__(
        self, scenario: Scenario, redis: RedisServer | None, has_begun: Callable[[], bool]
    ) -> None:
        self.faults: list[Fault] = []
        self._after = scenario.redis_hangs_after
        self._lasts = scenario.redis_hangs_for
        self._redis = redis
        self._has_begun = has_begun
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outage", daemon=True)
        self._began = 0.0

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        if self._redis is None or not self._after:
            return
        while not self._has_begun():
            if self._ended.wait(_LOOK_AGAIN):
                return
        if self._ended.wait(self._after):
            return
        self._redis.pause()
        self._note("Redis hangs")
        self._ended.wait(self._lasts)
        self._redis.resume()
        self._note("Redis answers")

    def _note(self, text: str) -> None:
        self.faults.append(Fault(second=round(time.monotonic() - self._began, 3), text=text))
