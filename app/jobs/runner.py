"""Works on the service's own jobs: writes storyboards, renders videos, reports progress.

A process works on a job only while it holds the job's claim in the database. The claim is renewed
during the work, and expires when the process dies. At its start and at intervals, each process
looks for unfinished jobs without a claim, and continues them from their state.

A job that was started too often is failed, because it may be the reason why processes die. A job
that waits for a free renderer is not claimed yet, so the death of the process does not count
against it.

Without a renderer, a process writes storyboards only, and other processes render.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.jobs.attempts import COMPLETE_PAUSES, GIVEN_UP, MOST_ATTEMPTS, unique_name, video_url
from app.jobs.service import IllegalTransition, JobNotFound
from app.jobs.states import TERMINAL, Status
from app.rendering.renderer import RenderError, RenderTask
from app.rendering.storyboard import Storyboard, make_storyboard
from jobcache import SourceUnavailable
from jobcache._concurrency.tasks import ShieldedTasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from app.jobs.service import JobService
    from app.jobs.storage import Job, JobStore
    from app.rendering.renderer import Progress, Renderer

logger = logging.getLogger("app")

_FOUND_AT_ONCE = 100


class Runner:
    """Works on jobs, in tasks of this process.

    Args:
        jobs: makes every change of a job.
        store: keeps the claims.
        renderer: makes the videos; None: other processes do.
        videos: the folder of the videos.
        name: a unique name of this process. None: a name is made by `start`, so that processes
            which are forked before that have different ones.
        at_once: how many videos are rendered at a time.
        claim_for: seconds until a claim expires, unless it is renewed.
        report_every: the least number of seconds between two progress reports of a job.
        clock_ms: wall-clock time in milliseconds.
        clock: monotonic time in seconds.
    """

    def __init__(
        self,
        jobs: JobService,
        store: JobStore,
        renderer: Renderer | None,
        *,
        videos: Path,
        at_once: int,
        claim_for: float,
        name: str | None = None,
        report_every: float = 0.25,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._jobs = jobs
        self._store = store
        self._renderer = renderer
        self._videos = videos
        self._given_name = name
        self._name = ""
        self._renderings = asyncio.Semaphore(at_once)
        self._claim_for = claim_for
        self._report_every = report_every
        self._clock_ms = clock_ms
        self._clock = clock
        self._shielded = ShieldedTasks()
        self._working: dict[int, _JobTask] = {}
        self._next: dict[int, Job] = {}
        self._claimed: set[int] = set()
        self._finding: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to look for unfinished jobs."""
        self._name = unique_name() if self._given_name is None else self._given_name
        self._finding = asyncio.create_task(self._find_jobs())

    def seen(self, job: Job) -> None:
        """Start to work on a job that has changed, or stop if it has ended."""
        working = self._working.get(job.id)
        if self._finding is None or (working and working.task is asyncio.current_task()):
            return  # shutting down, or the change was made by the task that works on the job
        if job.status is Status.COMPLETED:
            return  # also a change of that task, which may not be finished yet
        if job.status in TERMINAL:
            self._next.pop(job.id, None)
            if working is not None:
                working.task.cancel()
            if job.renderer == "builtin":
                # The video may have been finished just before the job was cancelled.
                self._video(job.id).unlink(missing_ok=True)
        elif not self._is_ours(job):
            return
        elif working is None:
            task = asyncio.create_task(self._work(job))
            # Not a `finally` in `_work`: a task cancelled before it starts never runs it.
            task.add_done_callback(lambda _: self._ended(job.id))
            self._working[job.id] = _JobTask(task, renders=_renders(job))
        elif working.renders != _renders(job):
            self._next[job.id] = job  # the task of the previous step is still ending

    def _is_ours(self, job: Job) -> bool:
        """Return whether this process may work on the job."""
        if job.status is Status.RENDERING:
            return job.renderer == "builtin" and self._renderer is not None
        return job.status in {Status.PENDING, Status.STORYBOARDING}

    async def aclose(self) -> None:
        """Stop all work and release the claims, so that another process can continue at once."""
        tasks = [step.task for step in self._working.values()]
        if self._finding is not None:
            tasks.append(self._finding)
            self._finding = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._shielded.join()

    # --- looking for jobs ---

    async def _find_jobs(self) -> None:
        while True:
            try:
                await self._renew()
                # The result includes the jobs that wait in this process. Without them there must
                # be room for as many others.
                most = _FOUND_AT_ONCE + len(self._working)
                # Shielded: cancelling a query half way would cost its connection.
                renders = False if self._renderer is None else None
                for job in await self._shielded.run(
                    self._store.find_unfinished(self._clock_ms(), most, renders=renders)
                ):
                    self.seen(job)
            except SourceUnavailable:
                pass  # the next round tries again
            except Exception:
                logger.exception("looking for unfinished jobs failed")
            await asyncio.sleep(self._claim_for / 3)

    async def _renew(self) -> None:
        if not self._claimed:
            return
        expires_at = self._clock_ms() + round(self._claim_for * 1000)
        before = set(self._claimed)
        held = await self._store.renew_claims(sorted(before), self._name, expires_at)
        for job_id in before - held:
            # The claim expired while the database could not be reached, and another process has
            # the job now; or the job has ended.
            working = self._working.get(job_id)
            if job_id in self._claimed and working is not None:
                self._claimed.discard(job_id)
                working.task.cancel()

    # --- work ---

    async def _work(self, job: Job) -> None:
        try:
            # The job is claimed only when its rendering can start. A job that waits has made no
            # attempt, so nothing is counted against it if another job kills the process.
            async with self._renderings if _renders(job) else nullcontext():
                await self._claim_and_work(job)
        except (IllegalTransition, JobNotFound):
            pass  # the job was cancelled, or another process has changed it
        except SourceUnavailable as error:
            # The claim expires, and then the job is started again.
            logger.warning("job %d is left for later: %s", job.id, error)
        except Exception:
            logger.exception("work on job %d failed; it will be tried again", job.id)

    def _ended(self, job_id: int) -> None:
        del self._working[job_id]
        following = self._next.pop(job_id, None)
        if following is not None:
            self.seen(following)

    async def _claim_and_work(self, job: Job) -> None:
        now_ms = self._clock_ms()
        expires_at = now_ms + round(self._claim_for * 1000)
        # In a task of its own: if this task is cancelled meanwhile, the claim is released as soon
        # as the statement has ended.
        claim = self._store.claim(job.id, self._name, now_ms, expires_at)
        claiming = asyncio.create_task(claim)
        try:
            attempts = await asyncio.shield(claiming)
            if attempts is not None:  # None: another process has claimed the job
                self._claimed.add(job.id)
                await self._step(job, attempts)
        except (asyncio.CancelledError, IllegalTransition, JobNotFound):
            await self._shielded.run(self._release(job.id, claiming))
            raise
        else:
            await self._shielded.run(self._release(job.id, claiming))
        finally:
            # After any other error the claim stays until it expires, and the attempt counts.
            self._claimed.discard(job.id)

    async def _step(self, job: Job, attempts: int) -> None:
        if attempts > 1:
            self._clear_away(job.id)
        try:
            if attempts > MOST_ATTEMPTS:
                await self._jobs.fail(job.id, GIVEN_UP, worker=False)
            elif not _renders(job):
                await self._write_storyboard(job)
            elif self._renderer is not None:
                await self._render(job.id, self._renderer)
        except RenderError as error:
            await self._jobs.fail(job.id, str(error), worker=False)

    async def _release(self, job_id: int, claiming: asyncio.Task[int | None]) -> None:
        self._claimed.discard(job_id)
        await asyncio.wait([claiming])
        if claiming.exception() is not None or claiming.result() is not None:
            await self._store.release_claim(job_id, self._name)

    async def _write_storyboard(self, job: Job) -> None:
        await self._jobs.begin_storyboard(job.id)
        storyboard = make_storyboard(
            job.prompt, scenes=job.scenes, seconds_per_scene=job.seconds_per_scene
        )
        await self._jobs.finish_storyboard(job.id, storyboard)

    async def _render(self, job_id: int, renderer: Renderer) -> None:
        written = await self._shielded.run(self._store.load_to_render(job_id))
        if written is None:
            return  # the job has changed while it waited
        if not written:
            raise RenderError("The storyboard is missing.")
        storyboard = Storyboard.model_validate_json(written)
        # The name of this process is part of the path, because another process may work on the
        # same job after this one's claim has expired.
        output = self._videos / f"{job_id}.{self._name}.mp4"
        try:
            task = RenderTask(job_id, storyboard, output)
            async with aclosing(renderer.render(task)) as steps:
                await self._report(job_id, steps)
            if renderer.makes_video:
                output.replace(self._video(job_id))
            await self._complete(job_id, makes_video=renderer.makes_video)
        finally:
            # The file still exists if the task was cancelled, or failed, after the rendering.
            output.unlink(missing_ok=True)

    def _video(self, job_id: int) -> Path:
        return self._videos / f"{job_id}.mp4"

    def _clear_away(self, job_id: int) -> None:
        """Remove the files of earlier attempts, whose processes have died."""
        for leftover in self._videos.glob(f"{job_id}.*.mp4*"):
            leftover.unlink(missing_ok=True)

    async def _report(self, job_id: int, steps: AsyncIterator[Progress]) -> None:
        reported = -math.inf
        async for step in steps:
            if self._clock() - reported < self._report_every:
                continue
            try:
                await self._jobs.report_progress(
                    job_id, round(step.percent, 1), step.stage, step.message, worker=False
                )
            except SourceUnavailable:
                continue  # rendering continues, and the next report tries again
            reported = self._clock()

    async def _complete(self, job_id: int, *, makes_video: bool) -> None:
        """Complete the job. If the database is away, try for a while: the video is finished."""
        for pause in COMPLETE_PAUSES:
            try:
                await self._shielded.run(self._try_to_complete(job_id, makes_video=makes_video))
            except SourceUnavailable:
                await asyncio.sleep(pause)
            else:
                return
        await self._shielded.run(self._try_to_complete(job_id, makes_video=makes_video))

    async def _try_to_complete(self, job_id: int, *, makes_video: bool) -> None:
        """Try once to complete the job, and remove its video if the job has ended before.

        Must not be cancelled: only the result says whether the video is kept. If the database is
        away, the video stays. A later attempt replaces it, or `seen` removes it when the job ends.
        """
        url = video_url(job_id) if makes_video else None
        try:
            await self._jobs.complete(job_id, url, worker=False)
        except (IllegalTransition, JobNotFound):
            self._video(job_id).unlink(missing_ok=True)  # the job was cancelled just before
            raise


@dataclass(frozen=True, slots=True)
class _JobTask:
    """The work of this process on a job, which may still wait for its turn."""

    task: asyncio.Task[None]
    renders: bool


def _renders(job: Job) -> bool:
    return job.status is Status.RENDERING
