"""Jobs that all users of a test poll: a directory in each process, kept by the first.

The process that starts and stops the test (Locust's master, or the only process) creates the jobs
and announces them to the others. Another job takes a place once its predecessor has ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from loadtests.pollers.polled_job import PolledJob


@dataclass(slots=True)
class _Place:
    job: PolledJob
    last_version: int = 0  # of a job that has ended; 0 before


class SharedJobs:
    """The shared jobs by place.

    Args:
        make: returns a job for its number.
        announce: tells the other processes of changes: place, number, and last version or 0.
        ended: called with the last version of each job, once this process knows of its end.
    """

    def __init__(
        self,
        make: Callable[[int], PolledJob],
        announce: Callable[[list[list[int]]], None],
        ended: Callable[[int], None],
    ) -> None:
        self._make = make
        self._announce = announce
        self._ended = ended
        self._places: dict[int, _Place] = {}

    def find(self, place: int, other_than: int) -> PolledJob | None:
        """Return the job at a place; None while there is none but the one with this number."""
        found = self._places.get(place)
        return None if found is None or found.job.id == other_than else found.job

    def last_version(self, place: int) -> int:
        """Return the last version of the job at a place; 0 while it has not ended."""
        return self._places[place].last_version

    def put(self, place: int, job: PolledJob) -> None:
        """Set the job of a place, and announce it."""
        self._places[place] = _Place(job)
        self._announce([[place, job.id, 0]])

    def end(self, job: PolledJob, version: int) -> None:
        """Record that a job has ended with this version, and announce it once."""
        for number, place in self._places.items():
            if place.job.id == job.id and place.last_version == 0:
                self._end(place, version)
                self._announce([[number, job.id, version]])

    def announce_all(self) -> None:
        """Announce every job again, for processes that came later."""
        self._announce(
            [[number, place.job.id, place.last_version] for number, place in self._places.items()]
        )

    def receive(self, changes: Iterable[list[int]]) -> None:
        """Take in what another process has announced."""
        for number, job_id, last_version in changes:
            place = self._places.get(number)
            if place is None or place.job.id != job_id:
                place = self._places[number] = _Place(self._make(job_id))
            if last_version and place.last_version == 0:
                self._end(place, last_version)

    def _end(self, place: _Place, version: int) -> None:
        place.last_version = version
        place.job.acknowledged.acknowledge(version)
        self._ended(version)
