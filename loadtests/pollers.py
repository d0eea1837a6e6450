"""Locust users that live as a client does: ask for a video, then poll until it is done.

    python -m locust -f loadtests/pollers.py OwnJob --headless --host http://127.0.0.1:8000 \
        --users 10 --spawn-rate 10 --run-time 200s --interval 3 --report report.json

`OwnJob` gives every user a job of its own. `SharedJob` lets the first user make one that all of
them poll. Locust replaces parts of the standard library with gevent's as it starts, so this file
is for a process of Locust's own: `python -m loadtests` starts it.
"""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from locust import FastHttpUser, events, task
from locust.exception import StopUser

from loadtests.record import Record

if TYPE_CHECKING:
    from locust.argument_parser import LocustArgumentParser
    from locust.env import Environment

PROMPT = "A fox crosses a frozen river at night, meets a bear and shares its fish."
TERMINAL = frozenset({"completed", "failed", "cancelled"})
_JITTER = 0.1  # of the interval
_WAIT_FOR_JOB = 30.0  # seconds, for the first user's


class Run:
    """What the users of one run share.

    Args:
        users: how many there will be.
        interval: seconds between a user's polls.
        etag: whether polls carry `If-None-Match`.

    Attributes:
        record: what they see.
        numbers: tells them apart.
        made: set once the shared job is there, or cannot be made.
        shared_path: where the shared job is polled; empty if there is none.
    """

    def __init__(self, users: int, interval: float, *, etag: bool) -> None:
        self.interval = interval
        self.etag = etag
        self.record = Record()
        self.numbers = itertools.count()
        self.made = threading.Event()
        self.shared_path = ""
        self._left = users

    def is_over_for_one(self) -> bool:
        """A user has finished. True if it was the last."""
        self._left -= 1
        return self._left == 0


class Poller(FastHttpUser):
    """One client."""

    abstract = True
    run_of_all: ClassVar[Run]

    @task
    def life(self) -> None:
        """Get a job and poll it to its end. The last user to finish ends the run."""
        run = self.run_of_all
        number = next(run.numbers)
        # Neither in step with each other nor, by and by, with the updates: where polls come at
        # set times, either none ever meets a change that is being committed, or the same always.
        self._random = random.Random(number)  # noqa: S311 - the same in every run
        self._due = time.monotonic() + self._random.uniform(0, run.interval)
        self._seen: dict[str, Any] = {}
        try:
            path = self.find_job(number)
            if path:
                self.poll_until(path, TERMINAL, run.interval)
        except Exception as error:  # noqa: BLE001 - Locust would log it and begin anew
            run.record.failure("user", repr(error))
        runner = self.environment.runner
        if run.is_over_for_one() and runner is not None:
            # In a greenlet of its own, for it ends this one.
            threading.Thread(target=runner.quit, daemon=True).start()
        raise StopUser

    def find_job(self, number: int) -> str:
        """The path of the job to be polled, which is being rendered; empty if there is none."""
        raise NotImplementedError

    def make_job(self, number: int) -> str:
        """Ask for a video and agree to its storyboard. Returns the path; empty if that failed."""
        body = {"client_id": f"client-{number}", "prompt": PROMPT}
        job = self.post("/api/v2/jobs", "create", 202, body)
        if not job:
            return ""
        path = f"/api/v2/jobs/{job['id']}"
        self.poll_until(path, TERMINAL | {"storyboard_ready"}, min(1.0, self.run_of_all.interval))
        agreed = self.post(f"{path}/approve", "approve", 200)
        return path if agreed and self.post(f"{path}/render", "render", 202) else ""

    def poll_until(self, path: str, statuses: frozenset[str], interval: float) -> None:
        """Poll until the job is in one of `statuses`; the run's time limit ends it else."""
        while True:
            time.sleep(max(0.0, self._due - time.monotonic()))
            pause = interval * self._random.uniform(1 - _JITTER, 1 + _JITTER)
            self._due = max(self._due + pause, time.monotonic())
            if self.poll(path) in statuses:
                return

    def poll(self, path: str) -> str:
        """Ask once. Returns the job's status; empty where the answer was wrong."""
        run, seen = self.run_of_all, self._seen
        headers = {"If-None-Match": f'"{seen["version"]}-0"'} if run.etag and seen else {}
        with self.client.get(path, name="poll", headers=headers, catch_response=True) as response:
            if response.status_code == 304 and headers:
                return str(seen["status"])
            if response.status_code != 200:
                response.failure(f"status {response.status_code}, not 200")
                return ""
            job: dict[str, Any] = response.json()
            if seen and job["version"] < seen["version"]:
                response.failure(f"version {job['version']} after {seen['version']}")
            elif seen and job["version"] > seen["version"]:
                how = response.headers.get("Cache-Status", "")
                run.record.news(missed="fwd=miss" in how or "fwd=stale" in how)
            self.see(job)
            return str(job["status"])

    def post(
        self, path: str, name: str, expected: int, body: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """Any other request. Returns the job that answers it; empty where the answer was wrong."""
        with self.client.post(path, name=name, json=body, catch_response=True) as response:
            if response.status_code != expected:
                response.failure(f"status {response.status_code}, not {expected}")
                return {}
            job: dict[str, Any] = response.json()
            self.see(job)
            return job

    def see(self, job: dict[str, Any]) -> None:
        """Remember a job as it is now."""
        self._seen = job
        self.run_of_all.record.job(job["id"], job["version"], job["status"])


class OwnJob(Poller):
    """Polls a job of its own."""

    def find_job(self, number: int) -> str:
        """Make it."""
        return self.make_job(number)


class SharedJob(Poller):
    """Polls the one job of the run."""

    def find_job(self, number: int) -> str:
        """The first user makes it, the others wait for it."""
        run = self.run_of_all
        if number == 0:
            try:
                run.shared_path = self.make_job(number)
            finally:
                run.made.set()
        run.made.wait(_WAIT_FOR_JOB)
        return run.shared_path


def add_options(parser: LocustArgumentParser, **_: object) -> None:
    """Our options beside Locust's."""
    parser.add_argument("--interval", type=float, default=3.0, help="seconds between polls")
    parser.add_argument("--etag", action="store_true", help="poll with If-None-Match")
    parser.add_argument("--report", type=Path, help="where what was seen goes, as JSON")


def prepare(environment: Environment, **_: object) -> None:
    """Set up what the users share, and listen to what they see."""
    options = environment.parsed_options
    if options is None:
        return
    run = Poller.run_of_all = Run(options.num_users or 1, options.interval, etag=options.etag)

    def note(name: str, response_time: float, exception: object, **_: object) -> None:
        run.record.request(name, response_time)
        if exception is not None:
            run.record.failure(name, exception)

    def write_report(**_: object) -> None:
        if options.report is not None:
            options.report.write_text(json.dumps(run.record.report(), indent=1))

    _listen(environment.events.request, note)
    _listen(environment.events.quitting, write_report)


def _listen(event: Any, listener: Any) -> None:  # noqa: ANN401 - Locust's events have no types
    event.add_listener(listener)


_listen(events.init_command_line_parser, add_options)
_listen(events.init, prepare)
