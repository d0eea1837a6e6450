"""Moves the service's own jobs along: writes storyboards, renders, reports progress.

A job is worked on by the process that has claimed it in the database. A claim is renewed while the
process is at work and runs out when it dies; every process looks now and then, and at its start,
for jobs that should be moving and that nobody has claimed, and takes them up again from where their
state says. A job that was taken up too often is failed: it may be what kills the processes. One
that only waits for its turn is not claimed, and so not to blame for a death.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import time
import uuid
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.jobs.service import IllegalMove, JobNotFound
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

_MOST_ATTEMPTS = 5
_TAKEN_AT_ONCE = 100
_COMPLETE_PAUSES = (0.5, 1, 2, 4, 8, 15, 15, 15)


class Runner:
    """Works on jobs, in tasks of this process.

    Args:
        jobs: through which every change is made.
        store: for claims.
        renderer: makes the videos.
        videos: where they go.
        name: this process's, unlike any other's; None: made at the start, for processes that were
            forked after this was made need names of their own.
        at_once: how many are rendered at a time; the others wait their turn.
        claim_for: seconds that a claim lasts unless renewed.
        report_every: the least seconds between two progress reports of a job.
        clock_ms: wall-clock time in milliseconds.
        clock: monotonic time in seconds.
    """

    def __init__(
        self,
        jobs: JobService,
        store: JobStore,
        renderer: Renderer,
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
        self._turns = asyncio.Semaphore(at_once)
        self._claim_for = claim_for
        self._report_every = report_every
        self._clock_ms = clock_ms
        self._clock = clock
        self._shielded = ShieldedTasks()
        self._working: dict[int, _Step] = {}
        self._next: dict[int, Job] = {}
        self._claimed: set[int] = set()
        self._rounds: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look for work."""
        self._name = _unique_name() if self._given_name is None else self._given_name
        self._rounds = asyncio.create_task(self._make_rounds())

    def seen(self, job: Job) -> None:
        """A job has changed: take it up if it is ours to move, let it go if it has ended."""
        working = self._working.get(job.id)
        if self._rounds is None or (working and working.task is asyncio.current_task()):
            return  # shutting down, or our own change
        if job.status is Status.COMPLETED:
            return  # our own as well: it may be tidying up
        if job.status in TERMINAL:
            self._next.pop(job.id, None)
            if working is not None:
                working.task.cancel()
            if job.renderer == "builtin":
                self._video(job.id).unlink(missing_ok=True)  # in place, but one move too late
        elif not _is_ours(job):
            return
        elif working is None:
            task = asyncio.create_task(self._work(job))
            # Not a `finally` within: a task that is cancelled before it has begun has none.
            task.add_done_callback(lambda _: self._ended(job.id))
            self._working[job.id] = _Step(task, renders=_renders(job))
        elif working.renders != _renders(job):
            self._next[job.id] = job  # still tidying up after the step before

    async def aclose(self) -> None:
        """Stop all work and give up the claims, so that the next process takes it up at once."""
        tasks = [step.task for step in self._working.values()]
        if self._rounds is not None:
            tasks.append(self._rounds)
            self._rounds = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._shielded.join()

    # --- rounds ---

    async def _make_rounds(self) -> None:
        while True:
            try:
                await self._renew()
                # Those that wait for a turn here are among them, and must not hide the others.
                most = _TAKEN_AT_ONCE + len(self._working)
                # To its end: a read that is cut off half way loses its connection, too.
                for job in await self._shielded.run(
                    self._store.find_unfinished(self._clock_ms(), most)
                ):
                    self.seen(job)
            except SourceUnavailable:
                pass  # the next round may be luckier
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
            # It ran out while the database could not be reached, and another process has it now;
            # or the job has ended.
            working = self._working.get(job_id)
            if job_id in self._claimed and working is not None:
                self._claimed.discard(job_id)
                working.task.cancel()

    # --- work ---

    async def _work(self, job: Job) -> None:
        try:
            # First a turn, then the claim: what waits has made no attempt, and its process may die
            # of another job without that being counted.
            async with self._turns if _renders(job) else nullcontext():
                await self._take_up(job)
        except (IllegalMove, JobNotFound):
            pass  # it was cancelled, or another process has moved it on
        except SourceUnavailable as error:
            # The claim runs out, and the job is taken up again.
            logger.warning("job %d is left for later: %s", job.id, error)
        except Exception:
            logger.exception("work on job %d failed; it will be tried again", job.id)

    def _ended(self, job_id: int) -> None:
        del self._working[job_id]
        following = self._next.pop(job_id, None)
        if following is not None:
            self.seen(following)

    async def _take_up(self, job: Job) -> None:
        now_ms = self._clock_ms()
        expires_at = now_ms + round(self._claim_for * 1000)
        # A task of its own: cancelled meanwhile, we give up the claim once it is there to give up.
        claim = self._store.claim(job.id, self._name, now_ms, expires_at)
        claiming = asyncio.create_task(claim)
        try:
            attempts = await asyncio.shield(claiming)
            if attempts is not None:  # or else another process is at it
                self._claimed.add(job.id)
                await self._step(job, attempts)
        except (asyncio.CancelledError, IllegalMove, JobNotFound):
            await self._shielded.run(self._release(job.id, claiming))
            raise
        else:
            await self._shielded.run(self._release(job.id, claiming))
        finally:
            # After any other error the claim stays until it runs out, and the attempt counts.
            self._claimed.discard(job.id)

    async def _step(self, job: Job, attempts: int) -> None:
        if attempts > 1:
            self._clear_away(job.id)
        try:
            if attempts > _MOST_ATTEMPTS:
                reason = f"Given up: {_MOST_ATTEMPTS} attempts were cut short."
                await self._jobs.fail(job.id, reason, worker=False)
            elif _renders(job):
                await self._render(job.id)
            else:
                await self._write_storyboard(job)
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

    async def _render(self, job_id: int) -> None:
        written = await self._shielded.run(self._store.load_to_render(job_id))
        if written is None:
            return  # it has moved on while it waited for its turn
        if not written:
            raise RenderError("The storyboard is missing.")
        storyboard = Storyboard.model_validate_json(written)
        # Of this process alone, in case another one takes the job for abandoned.
        output = self._videos / f"{job_id}.{self._name}.mp4"
        try:
            task = RenderTask(job_id, storyboard, output)
            async with aclosing(self._renderer.render(task)) as steps:
                await self._report(job_id, steps)
            if self._renderer.makes_video:
                output.replace(self._video(job_id))
            await self._complete(job_id)
        finally:
            # Still there if it was whole when we were told to stop.
            output.unlink(missing_ok=True)

    def _video(self, job_id: int) -> Path:
        return self._videos / f"{job_id}.mp4"

    def _clear_away(self, job_id: int) -> None:
        """Remove what earlier attempts, cut short by the death of their process, left behind."""
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
                continue  # rendering goes on; the next report may get through
            reported = self._clock()

    async def _complete(self, job_id: int) -> None:
        """Say that it is done; a finished video is worth waiting for the database."""
        for pause in _COMPLETE_PAUSES:
            try:
                await self._shielded.run(self._try_to_complete(job_id))
            except SourceUnavailable:
                await asyncio.sleep(pause)
            else:
                return
        await self._shielded.run(self._try_to_complete(job_id))

    async def _try_to_complete(self, job_id: int) -> None:
        """To be run to its end: only the end tells whether the video is to be kept.

        While the database is away, nothing does; if the job is not completed after all, the next
        attempt replaces the video, or the job's end removes it.
        """
        video_url = f"/api/v2/jobs/{job_id}/video" if self._renderer.makes_video else None
        try:
            await self._jobs.complete(job_id, video_url, worker=False)
        except (IllegalMove, JobNotFound):
            self._video(job_id).unlink(missing_ok=True)  # cancelled at the last moment
            raise


@dataclass(frozen=True, slots=True)
class _Step:
    """What this process does for a job, or waits to do."""

    task: asyncio.Task[None]
    renders: bool


def _unique_name() -> str:
    return f"{socket.gethostname()[:24]}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


def _renders(job: Job) -> bool:
    return job.status is Status.RENDERING


def _is_ours(job: Job) -> bool:
    """True if it is the service that has to move this job along."""
    if job.status is Status.RENDERING:
        return job.renderer == "builtin"
    return job.status in {Status.PENDING, Status.STORYBOARDING}
