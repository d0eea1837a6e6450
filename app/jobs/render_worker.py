"""Renders jobs in the processes of a task queue, such as Celery's workers.

A task of the queue carries no job: it says that a job waits, and the database says which. So tasks
that the queue loses or delivers twice do no harm.

The worker claims the oldest job that waits. Each change that it makes renews the claim in the same
transaction, and is rolled back if another worker has the job by now:

    A: claims the job, reports 60 %
    A: is stopped; the claim expires
                                         B: claims the job, starts again
    A: goes on, has 65 %: refused
                                         B: reports 65 %, completes the job

An attempt that starts again reports nothing until it is further than the one before, so that
clients never see progress go backwards.

The task runs in a thread: it reports through `jobcache.sync` and the throttle. The database, its
statements and the renderer are the service's own and asynchronous. They run in an event loop in
another thread, which `anyio`'s portal calls.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from app.db.blocking_transaction import blocking_transaction
from app.jobs import states
from app.jobs.attempts import COMPLETE_PAUSES, GIVEN_UP, MOST_ATTEMPTS, unique_name, video_url
from app.jobs.cache_keys import progress_key
from app.jobs.documents import job_document
from app.jobs.states import Status
from app.jobs.storage import Claim, ClaimLost, progress_values
from app.rendering.renderer import Progress, RenderError, RenderTask
from app.rendering.storyboard import Storyboard
from jobcache import SourceUnavailable
from jobcache.sync import Throttle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anyio.from_thread import BlockingPortal

    from app.db.database import Database
    from app.jobs.states import Transition
    from app.jobs.storage import Announce, Job, JobStore
    from app.rendering.renderer import Renderer
    from jobcache.sync import JobCache

logger = logging.getLogger("app")

_CANDIDATES = 20


@dataclass(frozen=True, slots=True)
class _Claimed:
    """A job that this worker has claimed, as it was then."""

    job: Job
    runner: str
    attempts: int


class _Done:
    """The report that the video is finished."""


class RenderWorker:
    """Renders one job per call of `render_next`. Any thread may call it.

    Args:
        portal: runs the event loop of the database and the renderer.
        database: runs transactions.
        store: runs statements.
        cache: publishes what is committed.
        renderer: makes the videos.
        videos: the folder of the videos, the same as the service's.
        claim_for: seconds until a claim expires, unless it is renewed.
        report_every: the least number of seconds between two progress reports of a job.
        announce: returns the notification of the keys that a statement changes; None: the cache
            fences them.
        clock_ms: wall-clock time in milliseconds.
    """

    def __init__(
        self,
        portal: BlockingPortal,
        database: Database,
        store: JobStore,
        cache: JobCache,
        renderer: Renderer,
        *,
        videos: Path,
        claim_for: float,
        report_every: float = 0.25,
        announce: Announce | None = None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._portal = portal
        self._database = database
        self._store = store
        self._cache = cache
        self._renderer = renderer
        self._videos = videos
        self._claim_for = claim_for
        self._report_every = report_every
        self._announce = announce
        self._clock_ms = clock_ms

    def render_next(self) -> int | None:
        """Render the oldest job that waits; return its id, or None if no job waits.

        Raises:
            SourceUnavailable: the database is away. A job that was begun is started again when its
                claim has expired.
        """
        claimed = self._portal.call(self._claim_next)
        if claimed is None:
            return None
        job_id = claimed.job.id
        output = self._videos / f"{job_id}.{claimed.runner}.mp4"
        try:
            self._work(claimed, output)
        except ClaimLost:
            # Cancelled, or claimed by another worker while this one was stopped.
            logger.info("job %d was taken away from this worker", job_id)
        finally:
            output.unlink(missing_ok=True)
        return job_id

    def _work(self, claimed: _Claimed, output: Path) -> None:
        if claimed.attempts > 1:
            self._clear_away(claimed.job.id)
        with Throttle(
            partial(self._commit, claimed, output), interval=self._report_every
        ) as throttle:
            try:
                if claimed.attempts > MOST_ATTEMPTS:
                    raise RenderError(GIVEN_UP)  # noqa: TRY301 - as an error of the renderer
                self._render(claimed, output, throttle)
            except RenderError as error:
                done: _Report = error
            else:
                done = _Done()
            self._finish(throttle, done)

    # --- claims ---

    async def _claim_next(self) -> _Claimed | None:
        runner = unique_name()
        while True:
            waiting = await self._store.find_unfinished(self._clock_ms(), _CANDIDATES, renders=True)
            if not waiting:
                return None
            for candidate in waiting:
                now_ms = self._clock_ms()
                attempts = await self._store.claim(
                    candidate.id, runner, now_ms, self._expires_at(now_ms)
                )
                if attempts is None:
                    continue  # another worker was faster
                # Once more: it may have changed before the claim, and nobody else changes its
                # progress from now on.
                job = await self._store.load(candidate.id)
                if job is not None and job.status is Status.RENDERING:
                    return _Claimed(job, runner, attempts)
                await self._store.release_claim(candidate.id, runner)

    def _expires_at(self, now_ms: int) -> int:
        return now_ms + round(self._claim_for * 1000)

    async def _keep_claim(self, claimed: _Claimed) -> None:
        """Renew the claim while the renderer works, however rarely it reports.

        Raises:
            ClaimLost: it is lost.
        """
        while True:
            await asyncio.sleep(self._claim_for / 3)
            with suppress(SourceUnavailable):  # the next round tries again
                held = await self._store.renew_claims(
                    [claimed.job.id], claimed.runner, self._expires_at(self._clock_ms())
                )
                if not held:
                    raise ClaimLost(claimed.job.id)

    # --- work ---

    def _render(self, claimed: _Claimed, output: Path, throttle: Throttle[_Report]) -> None:
        rendering = self._portal.start_task_soon(self._render_and_keep, claimed, output, throttle)
        try:
            rendering.result()
        except BaseException:
            # Of the renderer; or of a signal, such as the queue's time limit.
            rendering.cancel()
            raise

    async def _render_and_keep(
        self, claimed: _Claimed, output: Path, throttle: Throttle[_Report]
    ) -> None:
        """Render, and keep the claim. The first error of the two ends both."""
        rendering = asyncio.create_task(self._report_steps(claimed, output, throttle))
        keeping = asyncio.create_task(self._keep_claim(claimed))
        try:
            await asyncio.wait({rendering, keeping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (rendering, keeping):
                if not task.done():
                    task.cancel()
            await asyncio.wait({rendering, keeping})
        if keeping.done() and not keeping.cancelled():
            keeping.result()
        rendering.result()

    async def _report_steps(
        self, claimed: _Claimed, output: Path, throttle: Throttle[_Report]
    ) -> None:
        written = await self._store.load_to_render(claimed.job.id)
        if written is None:
            raise ClaimLost(claimed.job.id)
        if not written:
            raise RenderError("The storyboard is missing.")
        task = RenderTask(claimed.job.id, Storyboard.model_validate_json(written), output)
        async with aclosing(self._renderer.render(task)) as steps:
            async for step in steps:
                if step.percent < claimed.job.percent:
                    continue  # clients have seen the progress of an earlier attempt
                # Rendering continues while the database is away: the throttle tries again.
                with suppress(SourceUnavailable):
                    throttle.report(step)

    def _finish(self, throttle: Throttle[_Report], done: _Report) -> None:
        """Commit the end of the job. If the database is away, try for a while."""
        commit: Callable[[], None] = partial(throttle.finish, done)
        for pause in COMPLETE_PAUSES:
            try:
                commit()
            except SourceUnavailable:
                time.sleep(pause)
                commit = throttle.flush
            else:
                return
        commit()

    def _clear_away(self, job_id: int) -> None:
        """Remove the files of earlier attempts, whose processes have died."""
        for leftover in self._videos.glob(f"{job_id}.*.mp4*"):
            leftover.unlink(missing_ok=True)

    # --- changes, in the thread of the throttle ---

    def _commit(self, claimed: _Claimed, output: Path, report: _Report) -> None:
        now_ms = self._clock_ms()
        job_id = claimed.job.id
        if isinstance(report, Progress):
            values = progress_values(round(report.percent, 1), report.stage, report.message, now_ms)
            self._change(claimed, states.PROGRESS, values)
        elif isinstance(report, RenderError):
            self._change(claimed, states.FAIL, {"error": str(report)})
        else:
            makes_video = self._renderer.makes_video
            self._change(
                claimed,
                states.COMPLETE,
                {
                    **progress_values(100.0, "", "", now_ms),
                    "video_url": video_url(job_id) if makes_video else None,
                },
                video=output if makes_video else None,
            )

    def _change(
        self,
        claimed: _Claimed,
        transition: Transition,
        values: dict[str, Any],
        video: Path | None = None,
    ) -> None:
        """Make a transition of the job's state, and publish the job.

        Raises:
            ClaimLost: another worker has the job, or it has ended.
            SourceUnavailable: the database is away.
        """
        job_id, now_ms = claimed.job.id, self._clock_ms()
        claim = Claim(claimed.runner, self._expires_at(now_ms))
        transaction = blocking_transaction(self._portal, self._database)
        with self._cache.write(transaction) as write:
            key = progress_key(job_id)
            announced = None if self._announce is None else self._announce(key)
            make = partial(self._store.make_transition, claim=claim, notification=announced)
            job = self._portal.call(make, write.transaction, job_id, transition, now_ms, values)
            if job is None:
                raise ClaimLost(job_id)
            # Fenced only now: a refused change leaves the entry.
            write.fence(key)
            write.publish(key, job_document(job))
            if video is not None and video.exists():
                # Before the commit: until then nobody else can claim, cancel or complete the job.
                # The file is gone if an earlier commit has failed after this step.
                video.replace(self._videos / f"{job_id}.mp4")


_Report = Progress | RenderError | _Done
