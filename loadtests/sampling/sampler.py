"""A thread that takes a sample of all counters every second."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Protocol, Self

from loadtests.report.document import Sample
from loadtests.sampling.processes import busy_seconds, usage

if TYPE_CHECKING:
    from collections.abc import Mapping

_EVERY = 1.0  # seconds


class Statistics(Protocol):
    """What is asked for the statistics of the service."""

    def stats(self) -> dict[str, Any]:
        """Return the document of `/api/v2/cache/stats`."""


class Sampler:
    """Takes samples from entering to leaving, one at each end.

    Args:
        service: is asked for its counters.
        processes: the ids of processes by their names.
        every: seconds between two samples.
    """

    def __init__(
        self, service: Statistics, processes: Mapping[str, int], every: float = _EVERY
    ) -> None:
        self.samples: list[Sample] = []
        self._service = service
        self._processes = dict(processes)
        self._every = every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._error: Exception | None = None
        self._began = 0.0

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._take()
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended.set()
        self._thread.join()
        if raised[0] is not None:
            return
        self._take()
        if self._error is not None:
            raise self._error

    def has_reads(self) -> bool:
        """Return whether the service has answered a read."""
        return self.samples[-1].reads > self.samples[0].reads

    def _run(self) -> None:
        try:
            due = self._began
            while True:
                due += self._every
                if due < (now := time.monotonic()):
                    due = now + self._every  # samples that were missed are not made up for
                if self._ended.wait(max(0.0, due - time.monotonic())):
                    return
                self._take()
        except Exception as error:  # noqa: BLE001 - raised again by the thread that waits
            self._error = error

    def _take(self) -> None:
        found = self._service.stats()
        used = {name: usage(pid) for name, pid in self._processes.items()}
        cache = found["statistics"]
        self.samples.append(
            Sample(
                second=round(time.monotonic() - self._began, 3),
                reads=cache["total_requests"],
                hits=cache["hits"],
                statements=sum(found["database"]["purposes"].values()),
                cpu_seconds={n: u.cpu_seconds for n, u in used.items() if u is not None},
                machine_seconds=busy_seconds(),
                resident_bytes={n: u.resident_bytes for n, u in used.items() if u is not None},
            )
        )
