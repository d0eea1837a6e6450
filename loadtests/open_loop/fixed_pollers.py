"""Locust users that poll jobs which exist already, at a fixed pace.

`loadtests.open_loop.against_locust` starts it, in a process of its own: Locust replaces parts of
the standard library.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from locust import FastHttpUser, events, task

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from locust.argument_parser import LocustArgumentParser
    from locust.env import Environment


class Report:
    """The requests of all users.

    Args:
        path: where the report is written.
    """

    def __init__(self, path: Path) -> None:
        self.numbers = itertools.count()
        self._path = path
        self._milliseconds: list[float] = []
        self._ended: list[float] = []
        self._failures: list[str] = []

    def request(self, response_time: float, exception: Exception | None, **_: object) -> None:
        """Record a request."""
        self._milliseconds.append(response_time)
        self._ended.append(time.monotonic())
        if exception is not None:
            self._failures.append(repr(exception))

    def write(self, **_: object) -> None:
        """Write the report."""
        document = {
            "milliseconds": self._milliseconds,
            "seconds": self._ended[-1] - self._ended[0] if self._ended else 0.0,
            "failures": self._failures,
        }
        self._path.write_text(json.dumps(document), "utf-8")


class FixedPoller(FastHttpUser):
    """A client that polls one job."""

    report: ClassVar[Report]
    options: ClassVar[Namespace]

    def on_start(self) -> None:
        """Choose the job, and begin at some moment of the interval."""
        number = next(self.report.numbers)
        ids = self.options.job_ids.split(",")
        self._path = f"/api/v2/jobs/{ids[number % len(ids)]}"
        chance = random.Random(number)  # noqa: S311 - the same in every run
        first = chance.uniform(0, self.options.interval)
        self._due = time.monotonic() + first
        time.sleep(first)

    def wait_time(self) -> float:
        """Return the seconds until the next poll is due.

        Locust's own `constant_pacing` sends the first two at once.
        """
        interval: float = self.options.interval
        self._due += interval
        return max(0.0, self._due - time.monotonic())

    @task
    def poll(self) -> None:
        """Poll."""
        self.client.get(self._path, name="poll")


def _add_options(parser: LocustArgumentParser) -> None:
    parser.add_argument("--job-ids", required=True)
    parser.add_argument("--interval", type=float, required=True)
    parser.add_argument("--report", type=Path, required=True)


def _prepare(environment: Environment, **_: object) -> None:
    options = environment.parsed_options
    if options is None:
        return
    FixedPoller.options = options
    FixedPoller.report = report = Report(options.report)
    _listen(environment.events.request, report.request)
    _listen(environment.events.quitting, report.write)


def _listen(event: Any, listener: Callable[..., None]) -> None:  # noqa: ANN401 - Locust's, untyped
    event.add_listener(listener)


_listen(events.init_command_line_parser, _add_options)
_listen(events.init, _prepare)
