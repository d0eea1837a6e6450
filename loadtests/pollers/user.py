"""The user: a client that creates a job, polls it until it ends, and creates the next."""

from __future__ import annotations

import random
import time
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar

from locust import FastHttpUser, task
from locust.exception import StopTest, StopUser

from jobcache.client.core.errors import ClientError
from jobcache.client.core.rules import ANSWER_WITHIN, Rules
from loadtests.pollers.calls import ServiceCalls
from loadtests.pollers.jobs import create, follow, report_progress
from loadtests.pollers.options import STAMPEDE, bearer

if TYPE_CHECKING:
    from collections.abc import Generator

    from locust.env import Environment

    from jobcache.client.jobs import Job
    from loadtests.pollers.load_test import LoadTest
    from loadtests.pollers.polled_job import PolledJob

_NO_JOB = 0  # no job has this number
_LOOK_AGAIN = 0.2  # seconds until a user looks again for a shared job


class JobUser(FastHttpUser):
    """One client of the service.

    What it sends, and when, is decided by `jobcache.client.core.rules`, as it is for users of the
    client; only the I/O is Locust's. A task of Locust ends where the client pauses: there Locust
    stops users, and a poll that the service has counted is counted here.
    """

    abstract = True
    load_test: ClassVar[LoadTest]

    def __init__(self, environment: Environment) -> None:
        run = self.load_test.run
        if run is None:
            raise StopTest(self.load_test.problem or "the test has not started")
        self._run = run
        self.network_timeout = run.options.hold + ANSWER_WITHIN
        self.default_headers = bearer(run.options.api_key)
        super().__init__(environment)
        self._calls = ServiceCalls(self.client, run)
        self._pause = 0.0
        self._rest_of_life = self._life(run.next_number())

    def wait_time(self) -> float:
        """Return the seconds until the next task."""
        return self._pause

    @task
    def poll(self) -> None:
        """Go on until the next pause."""
        try:
            self._pause = next(self._rest_of_life)
        except StopIteration:
            raise StopUser from None

    def _life(self, number: int) -> Generator[float, None, None]:
        options = self._run.options
        # Users are neither in step with each other nor with the updates: where polls come at set
        # times, either none ever meets a change that is being committed, or always the same.
        chance = random.Random(number)  # noqa: S311 - the same in every run
        rules = Rules(random=chance.random)
        job_id = _NO_JOB
        jobs = 0
        if options.shape != STAMPEDE:
            yield chance.uniform(0, options.interval)
        while not options.jobs_per_user or jobs < options.jobs_per_user:
            try:
                job = yield from self._find(rules, number, job_id)
                if job is not None:
                    job_id = job.id
                    yield from self._follow(rules, job)
                    jobs += 1
                    continue
            except ClientError:
                pass  # the response is a failure in Locust's tables already
            yield options.interval

    def _find(
        self, rules: Rules, number: int, previous: int
    ) -> Generator[float, None, PolledJob | None]:
        run = self._run
        if run.options.shared_jobs:
            place = number % run.options.shared_jobs
            while (job := run.shared.find(place, previous)) is None:
                yield _LOOK_AGAIN
            return job
        job = yield from create(self._calls, run, rules, f"client-{number}")
        if job is not None and run.options.external:
            worker_calls = self.load_test.worker_calls(run)
            run.in_background(report_progress(worker_calls, run, job))
        return job

    def _follow(self, rules: Rules, job: PolledJob) -> Generator[float, None, None]:
        run = self._run
        versions: list[int] = []

        def note(found: Job) -> None:
            if versions:  # the first was committed before this user began
                committed = datetime.fromisoformat(found.document["updated_at"]).timestamp()
                run.record.delivery(1000 * (time.time() - committed))
            versions.append(found.version)

        before = rules.counts.requests
        yield from follow(self._calls, run, rules, job, run.options.interval, note=note)
        polls = rules.counts.requests - before
        run.record.followed(polls=polls, updates=versions[-1] - versions[0])
        if run.options.shared_jobs:
            run.shared.end(job, versions[-1])
        else:
            run.record.job_completed(versions[-1])
