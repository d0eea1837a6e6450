"""Locust users that behave like clients: they ask for a video, then wait until it is done.

    python -m locust -f loadtests/pollers.py OwnJob --headless --host http://127.0.0.1:8000 \
        --users 10 --spawn-rate 10 --run-time 200s --mode plain --interval 3 --report report.json

`OwnJob` gives every user a job of its own. `SharedJob` lets the first user make one that all of
them wait for. What they send, and when, is decided by `jobcache.client.core.rules`, as it is for
everybody else's clients; only the I/O is Locust's. Locust replaces parts of the standard library
with gevent's as it starts, so this file is for a process of its own: `python -m loadtests` starts
it.
"""

from __future__ import annotations

import itertools
import json
import random
import socket
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from geventhttpclient.connectionpool import ConnectionPool
from locust import FastHttpUser, events, task
from locust.exception import StopUser

from jobcache.client.core.messages import Request, Response, Sleep, TransportError, Update
from jobcache.client.core.rules import ANSWER_WITHIN, Rules
from jobcache.client.jobs import Job, wait_for
from loadtests.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from locust.argument_parser import LocustArgumentParser
    from locust.env import Environment

    from jobcache.client.core.messages import Reply, Steps

PROMPT = "A fox crosses a frozen river at night, meets a bear and shares its fish."
_HOLD = 25  # seconds, what `jobcache.client` asks for by default
_WAIT_FOR_JOB = 60.0  # seconds, for the first user's storyboard


@dataclass(frozen=True, kw_only=True)
class Mode:
    """How users ask.

    Attributes:
        conditional: whether polls say what has been seen.
        hold: seconds for which the service is asked to hold them.
        paced: whether they come at the users' own interval, and not when the service says.
    """

    conditional: bool
    hold: int
    paced: bool


MODES = {
    "plain": Mode(conditional=False, hold=0, paced=True),
    "etag": Mode(conditional=True, hold=0, paced=True),
    "wait": Mode(conditional=True, hold=_HOLD, paced=False),
}


class Run:
    """What the users of one run share.

    Args:
        users: how many there will be.
        interval: seconds between a user's polls, where the mode has them paced.
        mode: how they ask.

    Attributes:
        record: what they see.
        numbers: tells them apart.
        made: set once the shared job is there, or cannot be made.
        shared_job: its number; 0 if there is none.
    """

    def __init__(self, users: int, interval: float, mode: Mode) -> None:
        self.interval = interval
        self.mode = mode
        self.record = Record()
        self.numbers = itertools.count()
        self.made = threading.Event()
        self.shared_job = 0
        self._left = users

    def is_over_for_one(self) -> bool:
        """Count a user as finished; return True if it was the last."""
        self._left -= 1
        return self._left == 0


class Poller(FastHttpUser):
    """One client."""

    abstract = True
    network_timeout = _HOLD + ANSWER_WITHIN
    run_of_all: ClassVar[Run]

    @task
    def life(self) -> None:
        """Get a job and wait for its end; the last user to finish ends the run."""
        run = self.run_of_all
        number = next(run.numbers)
        # Neither in step with each other nor, by and by, with the updates: where polls come at
        # set times, either none ever meets a change that is being committed, or the same always.
        chance = random.Random(number)  # noqa: S311 - the same in every run
        self._rules = Rules(random=chance.random)
        self._seen: Job | None = None
        self._cache_status = ""
        time.sleep(chance.uniform(0, run.interval))
        try:
            job_id = self.find_job(number)
            if job_id:
                self.follow(job_id)
        except Exception as error:  # noqa: BLE001 - Locust would log it and begin anew
            run.record.failure("user", repr(error))
        runner = self.environment.runner
        if run.is_over_for_one() and runner is not None:
            # In its own greenlet, because it ends this one.
            threading.Thread(target=runner.quit, daemon=True).start()
        raise StopUser

    def find_job(self, number: int) -> int:
        """Return the id of the job to wait for, which is being rendered; 0 if there is none."""
        raise NotImplementedError

    def make_job(self, number: int) -> int:
        """Ask for a video and approve its storyboard; return the job's id, or 0 if that failed."""
        body = {"client_id": f"client-{number}", "prompt": PROMPT}
        job = self.post("/api/v2/jobs", "create", 202, body)
        if job is None:
            return 0
        self.run_steps(
            self.wait_for(job.id, min(1.0, self.run_of_all.interval), until_storyboard=True)
        )
        path = f"/api/v2/jobs/{job.id}"
        approved = self.post(f"{path}/approve", "approve", 200) is not None
        return job.id if approved and self.post(f"{path}/render", "render", 202) is not None else 0

    def wait_for(
        self, job_id: int, interval: float, *, until_storyboard: bool = False
    ) -> Steps[Job]:
        """Return the client's rules for waiting, in the mode of the run."""
        mode = self.run_of_all.mode
        return wait_for(
            self._rules,
            job_id,
            until={"storyboard_ready"} if until_storyboard else (),
            wait=mode.hold,
            conditional=mode.conditional,
            interval=interval if mode.paced else None,
        )

    def follow(self, job_id: int) -> None:
        """Wait for the end of the job, or for the run's time limit."""
        run = self.run_of_all
        versions: list[Job] = []

        def note(job: Job) -> None:
            if versions:  # the first was committed before this user began
                committed = datetime.fromisoformat(job.document["updated_at"]).timestamp()
                run.record.delivery(1000 * (time.time() - committed))
            versions.append(job)

        before = self._rules.counts.requests
        self.run_steps(self.wait_for(job_id, run.interval), note)
        polls = self._rules.counts.requests - before
        run.record.followed(polls=polls, updates=versions[-1].version - versions[0].version)

    def run_steps(self, steps: Steps[Job], note: Callable[[Job], None] | None = None) -> None:
        """Carry out the client's rules until they end."""
        reply: Reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration:
                return
            reply = None
            if isinstance(step, Request):
                reply = self.poll(step)
            elif isinstance(step, Sleep):
                time.sleep(step.seconds)
            elif isinstance(step, Update):
                self.on_update(step.document)
                if note is not None:
                    note(step.document)

    def poll(self, request: Request) -> Response | TransportError:
        """Send a poll of the rules; an unexpected response is also a failure of the run."""
        with self.client.get(
            request.path, name="poll", headers=request.headers, catch_response=True
        ) as response:
            if response.status_code == 0:
                return TransportError(ConnectionError(str(response.error)))
            headers = {name.lower(): text for name, text in (response.headers or {}).items()}
            answer = Response(response.status_code, headers, response.content or b"")
            unchanged = answer.status == 304 and "If-None-Match" in request.headers
            if answer.status != 200 and not unchanged:
                response.failure(f"status {answer.status}, not 200")
            elif not unchanged:
                version, seen = _version(answer.body), self._seen
                if seen is not None and version < seen.version:
                    response.failure(f"version {version} after {seen.version}")
            self._cache_status = headers.get("cache-status", "")
            return answer

    def post(
        self, path: str, name: str, expected: int, body: dict[str, str] | None = None
    ) -> Job | None:
        """Send another request; return the job in the response, or None if it was wrong."""
        with self.client.post(path, name=name, json=body, catch_response=True) as response:
            if response.status_code != expected:
                response.failure(f"status {response.status_code}, not {expected}")
                return None
            job = Job.parse(response.content, None)
            self.see(job)
            return job

    def on_update(self, job: Job) -> None:
        """Count a poll that brought a newer version."""
        if self._seen is not None and job.version > self._seen.version:
            cache_status = self._cache_status
            self.run_of_all.record.first_poll(
                missed="fwd=miss" in cache_status or "fwd=stale" in cache_status
            )
        self.see(job)

    def see(self, job: Job) -> None:
        """Record the present state of a job."""
        self._seen = job
        self.run_of_all.record.job(job.id, job.version, job.status)


class OwnJob(Poller):
    """A user that waits for its own job."""

    def find_job(self, number: int) -> int:
        """Create the job."""
        return self.make_job(number)


class SharedJob(Poller):
    """A user that waits for the shared job of the run."""

    def find_job(self, number: int) -> int:
        """Create the shared job as the first user, or wait until it exists."""
        run = self.run_of_all
        if number == 0:
            try:
                run.shared_job = self.make_job(number)
            finally:
                run.made.set()
        run.made.wait(_WAIT_FOR_JOB)
        return run.shared_job


class CountedSocket(socket.socket):
    """A socket (of gevent) that counts its bytes: the cost of a poll for a client."""

    record: ClassVar[Record]

    def recv(self, *arguments: Any) -> bytes:  # noqa: ANN401 - its own
        """Receive data, and count it."""
        data: bytes = super().recv(*arguments)
        self.record.received_bytes += len(data)
        return data

    def sendall(self, data: Any, *arguments: Any) -> None:  # noqa: ANN401 - its own
        """Send data, and count it."""
        self.record.sent_bytes += len(data)
        super().sendall(data, *arguments)


def add_options(parser: LocustArgumentParser, **_: object) -> None:
    """Add the options of this file to Locust's."""
    parser.add_argument("--interval", type=float, default=3.0, help="seconds between polls")
    parser.add_argument("--mode", choices=MODES, default="plain", help="how users ask")
    parser.add_argument("--report", type=Path, help="where what was seen goes, as JSON")


def prepare(environment: Environment, **_: object) -> None:
    """Set up the state that the users share, and record their requests."""
    options = environment.parsed_options
    if options is None:
        return
    run = Poller.run_of_all = Run(options.num_users or 1, options.interval, MODES[options.mode])
    CountedSocket.record = run.record

    def counted(_: ConnectionPool, *kind: Any) -> CountedSocket:  # noqa: ANN401 - a socket's own
        return CountedSocket(*kind)

    ConnectionPool._create_tcp_socket = counted  # type: ignore[method-assign, assignment] # noqa: SLF001 - all there is

    def note(name: str, response_time: float, exception: object, **_: object) -> None:
        run.record.request(name, response_time)
        if exception is not None:
            run.record.failure(name, exception)

    def write_report(**_: object) -> None:
        if options.report is not None:
            options.report.write_text(json.dumps(run.record.report(), indent=1))

    _listen(environment.events.request, note)
    _listen(environment.events.quitting, write_report)


def _version(body: bytes) -> int:
    """Return the version of a document; 0, below all versions, if it is no document."""
    try:
        return Job.parse(body, None).version
    except ValueError:
        return 0


def _listen(event: Any, listener: Any) -> None:  # noqa: ANN401 - Locust's events have no types
    event.add_listener(listener)


_listen(events.init_command_line_parser, add_options)
_listen(events.init, prepare)
