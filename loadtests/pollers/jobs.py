"""The life of a job: what users and workers do with one, as iterators of pauses in seconds.

Between two pauses there is at most one poll, so that a user can be stopped without losing one.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from jobcache.client.core.errors import ClientError
from jobcache.client.core.messages import Request, Sleep, Update
from jobcache.client.jobs import wait_for
from loadtests.pollers import rows

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator

    from jobcache.client.core.messages import Reply
    from jobcache.client.core.rules import Rules
    from jobcache.client.jobs import Job
    from loadtests.pollers.calls import ServiceCalls
    from loadtests.pollers.polled_job import PolledJob
    from loadtests.pollers.run import Run

PROMPT = "A fox crosses a frozen river at night, meets a bear and shares its fish."
_STORYBOARD_INTERVAL = 1.0  # seconds; a storyboard comes soon
_CANNOT_COMPLETE = {404, 409}
"""Responses to a completion that are always the same: the job was removed, or has ended."""


def create(
    calls: ServiceCalls, run: Run, rules: Rules, client_id: str
) -> Generator[float, None, PolledJob | None]:
    """Create a job, approve its storyboard and start the rendering.

    Returns:
        The job, or None if a request failed.
    """
    body: dict[str, object] = {"client_id": run.options.client_id or client_id, "prompt": PROMPT}
    if run.options.external:
        body["renderer"] = "external"
    created = calls.post("/api/v2/jobs", rows.CREATE, 202, body)
    if created is None:
        return None
    run.record.job_created()
    job = run.job(created.id)
    job.acknowledged.acknowledge(created.version)
    interval = min(_STORYBOARD_INTERVAL, run.options.interval)
    yield from follow(calls, run, rules, job, interval, until={"storyboard_ready"}, seen=created)
    for command, row, expected in (
        ("approve", rows.APPROVE, 200),
        ("render", rows.RENDER, 202),
    ):
        changed = calls.post(f"{job.path}/{command}", row, expected)
        if changed is None:
            return None
        job.acknowledged.acknowledge(changed.version)
    return job


def follow(
    calls: ServiceCalls,
    run: Run,
    rules: Rules,
    job: PolledJob,
    interval: float,
    *,
    until: Collection[str] = (),
    seen: Job | None = None,
    note: Callable[[Job], None] | None = None,
) -> Generator[float, None, Job]:
    """Poll a job until it has ended, or has a status in `until`, by the rules of the client.

    Args:
        calls: sends the polls.
        run: the test.
        rules: decide what is sent, and when.
        job: the job.
        interval: seconds between polls, unless the service is asked to hold them.
        until: statuses that end the wait, too.
        seen: the newest version that this user has seen.
        note: called for each newer version.
    """
    options = run.options
    steps = wait_for(
        rules,
        job.id,
        until=until,
        wait=options.hold if options.waits else 0,
        conditional=options.conditional,
        interval=None if options.waits else interval,
    )
    reply: Reply = None
    at_pause = True
    while True:
        try:
            step = steps.send(reply)
        except StopIteration as end:
            last: Job = end.value
            return last
        reply = None
        if isinstance(step, Sleep):
            yield step.seconds
            at_pause = True
        elif isinstance(step, Request):
            if not at_pause:
                yield 0.0
            reply = calls.poll(step, job, seen)
            at_pause = False
        elif isinstance(step, Update):
            if seen is not None and step.document.version > seen.version:
                outcome = calls.last_outcome
                run.record.first_poll(missed=outcome is not None and outcome.missed)
            seen = step.document
            if note is not None:
                note(step.document)


def report_progress(
    calls: ServiceCalls, run: Run, job: PolledJob
) -> Generator[float, None, int | None]:
    """Report the progress of a job, as its worker, until it is complete.

    Returns:
        The last version; None if the job cannot be completed.
    """
    options = run.options
    start = time.monotonic()
    for step in range(1, options.job_updates + 1):
        due = start + options.job_seconds * step / options.job_updates
        yield max(0.0, due - time.monotonic())
        body: dict[str, object] = {
            "percent": 100.0 * step / options.job_updates,
            "stage": "rendering",
            "message": f"step {step} of {options.job_updates}",
        }
        reported = calls.post(f"{job.path}/progress", rows.PROGRESS, 200, body)
        if reported is not None:
            job.acknowledged.acknowledge(reported.version)
    while (completed := calls.post(f"{job.path}/complete", rows.COMPLETE, 200)) is None:
        if calls.last_status in _CANNOT_COMPLETE:
            return None
        yield options.interval  # nobody would see an end that was not reported
    job.acknowledged.acknowledge(completed.version)
    return completed.version


def keep_shared_job(
    calls: ServiceCalls,
    worker_calls: ServiceCalls,
    run: Run,
    rules: Rules,
    place: int,
) -> Generator[float, None, None]:
    """Keep a job for all users at a place: create one, wait for its end, create the next."""
    left = run.options.jobs_per_user or None
    while left is None or left > 0:
        try:
            job = yield from create(calls, run, rules, f"shared-{place}")
        except ClientError:
            job = None  # the response is a failure in Locust's tables already
        if job is None:
            yield run.options.interval
            continue
        run.shared.put(place, job)
        if run.options.external:
            version = yield from report_progress(worker_calls, run, job)
            if version is None:
                continue
            run.shared.end(job, version)
        while run.shared.last_version(place) == 0:
            yield 0.1
        left = None if left is None else left - 1
