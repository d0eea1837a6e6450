"""What the users of one process share between the start and the stop of a test."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from gevent.event import Event
from gevent.pool import Group

from loadtests.pollers.polled_job import AcknowledgedVersions, PolledJob
from loadtests.pollers.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadtests.pollers.options import PollOptions
    from loadtests.pollers.shared_jobs import SharedJobs

_END_WITHIN = 5.0  # seconds for requests in progress when the test stops


class Run:
    """One test in one process.

    Args:
        options: of the test.
        shared: the jobs that all users share.
        worker: the number of this Locust process, from 0.
        workers: how many processes have users.

    Attributes:
        record: what users have seen since the start, or since the statistics were reset.
    """

    def __init__(
        self, options: PollOptions, shared: SharedJobs, *, worker: int, workers: int
    ) -> None:
        self.options = options
        self.shared = shared
        self.record = Record()
        self._numbers = itertools.count(max(0, worker), max(1, workers))
        self._stopping = Event()
        self._background = Group()

    def next_number(self) -> int:
        """Return a number for a user, unlike those of other processes that began with this one."""
        return next(self._numbers)

    def job(self, job_id: int) -> PolledJob:
        """Return a job of which no version has been acknowledged yet."""
        return PolledJob(job_id, AcknowledgedVersions(self.options.stale_after))

    def in_background(self, pauses: Iterator[float]) -> None:
        """Run an iterator beside the users, with a sleep for each pause, until the test stops."""

        def run() -> None:
            for pause in pauses:
                if self._stopping.wait(pause):
                    return

        self._background.spawn(run)

    def stop(self) -> None:
        """End what runs in the background; requests in progress are completed."""
        self._stopping.set()
        if not self._background.join(_END_WITHIN):
            self._background.kill()
