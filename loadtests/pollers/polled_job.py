"""A job that users poll, and the versions of it that polls must show."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class AcknowledgedVersions:
    """The versions that the service has acknowledged to a writer, and when.

    Args:
        stale_after: seconds after which polls must show a version.
        clock: monotonic time in seconds.
    """

    def __init__(self, stale_after: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stale_after = stale_after
        self._clock = clock
        self._due: deque[tuple[float, int]] = deque()
        self._required = 0

    def acknowledge(self, version: int) -> None:
        """Record that the service has just acknowledged a version."""
        self._due.append((self._clock() + self._stale_after, version))

    def required(self) -> int:
        """Return the version that a poll sent now must show; 0 if it may show any."""
        now = self._clock()
        while self._due and self._due[0][0] <= now:
            self._required = max(self._required, self._due.popleft()[1])
        return self._required


@dataclass(frozen=True, slots=True)
class PolledJob:
    """A job that users poll.

    Attributes:
        id: its number.
        acknowledged: its versions, as far as this process knows them.
    """

    id: int
    acknowledged: AcknowledgedVersions

    @property
    def path(self) -> str:
        """The path of its status."""
        return f"/api/v2/jobs/{self.id}"
