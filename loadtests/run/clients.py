"""The clients of a scenario: a process of Locust or of a driver, and what it reports."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from benchmarks.process import Process
from loadtests.report.document import Bucket, Outcomes, Requests

if TYPE_CHECKING:
    from loadtests.scenario import Scenario

_LOCUST_FILE = Path(__file__).parents[1] / "locustfile.py"
_SPARE = 60.0  # seconds beyond a job's for starting, for storyboards, and for the last polls
_STOP = 30.0  # seconds for Locust to start, and to end once its time is up
_PERCENTILES = ("p50", "p95", "p99", "max")
_COUNTS = (
    *("polls", "jobs", "completed", "ends_seen", "first_polls", "first_polls_missed"),
    *("updates", "update_polls", "received_bytes", "sent_bytes", "cut_off"),
    *("not_modified", "reads_without_outcome"),
)
"""Counts that have the same names in Locust's report and in the document."""


class ClientsFailed(Exception):  # noqa: N818 - says what is the matter
    """The clients ended without a report; the message ends with their last output."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the clients saw.

    Attributes:
        requests: a row for each kind of request.
        polls_ms: the durations of all polls.
        outcomes: how polls were answered.
        held: how many were held.
        delay_ms: percentiles of the time from a commit until a client had the version.
        counts: other counts, by the names of `loadtests.report.document.Measurement`.
        errors: the first failures, as text.
    """

    requests: list[Requests]
    polls_ms: list[Bucket]
    outcomes: Outcomes
    held: int
    delay_ms: dict[str, float | None]
    counts: dict[str, int]
    errors: list[str]


class Clients:
    """A process that polls as a scenario says; entering starts it, leaving ends it.

    Args:
        scenario: what the clients do.
        url: the address of the service.
    """

    def __init__(self, scenario: Scenario, url: str) -> None:
        self._scenario = scenario
        self._url = url
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jobcache-")))
            self._report = place / "report.json"
            kept = {n: text for n, text in os.environ.items() if not n.startswith("LOCUST_")}
            self._process = stack.enter_context(Process(self._command(), kept))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def pid(self) -> int:
        """The process id of the clients."""
        return self._process.pid

    def wait(self) -> Seen:
        """Wait until the clients have ended; return what they saw.

        Raises:
            ClientsFailed: there is no report.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(self._scenario.job_seconds + _SPARE + _STOP)
        if not self._report.exists():
            raise ClientsFailed(f"the clients have not reported:\n{self._process.log_tail()}")
        return _seen(json.loads(self._report.read_text("utf-8")))

    def _command(self) -> list[str]:
        scenario = self._scenario
        if scenario.driver:
            return [
                *(sys.executable, "-m", "loadtests.drivers", scenario.driver),
                *("--port", self._url.rpartition(":")[2], "--users", str(scenario.users)),
                *("--jobs", str(scenario.shared_jobs), "--poll-interval", str(scenario.interval)),
                *("--job-seconds", str(scenario.job_seconds)),
                *("--job-updates", str(scenario.updates), "--report", str(self._report)),
            ]
        return [
            *(sys.executable, "-m", "locust", "-f", str(_LOCUST_FILE)),
            *("--headless", "--only-summary", "--host", self._url),
            *("--users", str(scenario.users), "--spawn-rate", str(scenario.users)),
            *("--run-time", f"{scenario.job_seconds + _SPARE:.0f}s", "--jobs-per-user", "1"),
            *("--poll-mode", scenario.mode, "--poll-interval", str(scenario.interval)),
            *("--shared-jobs", str(scenario.shared_jobs), "--renderer", "service"),
            *("--report", str(self._report)),
        ]


def _seen(report: dict[str, Any]) -> Seen:
    failures = report["failures"]
    outcomes = report["outcomes"]
    return Seen(
        requests=[
            Requests(
                name=name,
                count=count,
                failures=failures.get(name, 0),
                **{f"{which}_ms": report["row_ms"][name][which] for which in _PERCENTILES},
            )
            for name, count in report["requests"].items()
        ],
        polls_ms=[Bucket(upper_ms=us / 1000, count=count) for us, count in report["poll_us"]],
        outcomes=Outcomes(
            hits=outcomes["hits"],
            misses=outcomes["misses"],
            bypasses=outcomes["bypasses"],
            stale=outcomes["stale_served"],
            coalesced=outcomes["coalesced"],
        ),
        held=outcomes["held"],
        delay_ms=report["delay_ms"],
        counts={name: report[name] for name in _COUNTS},
        errors=report["errors"],
    )
