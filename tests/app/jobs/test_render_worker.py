"""The worker of a queue by itself, on a real database: claims, progress, ends, files on disk."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from app.auth.callers import TRUSTED
from app.db.database import Database
from app.jobs.render_worker import RenderWorker
from app.jobs.runner import Runner
from app.jobs.service import JobService
from app.jobs.states import Status
from app.jobs.storage import Job, JobStore, NewJob
from app.rendering.renderer import Progress, RenderError, RenderTask
from jobcache import CacheSettings, JobCache, SourceUnavailable, sync
from jobcache.backends.null import NullBackend
from tests.pairs import DATABASES

LONG = 3600.0


class StandIn:
    """A renderer that reports what the test says, and writes its name as the video."""

    makes_video = True

    def __init__(self, name: str, *percents: float) -> None:
        self.name = name
        self.percents = percents
        self.trouble: Exception | None = None
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self.may_end.set()
        self.reported: Callable[[float], object] = lambda _: None

    async def render(self, task: RenderTask) -> AsyncGenerator[Progress, None]:
        for percent in self.percents:
            yield Progress(percent, f"{self.name} at {percent}", "")
            while not self.reported(percent):
                await asyncio.sleep(0.005)
        self.begun.set()
        while not self.may_end.is_set():
            await asyncio.sleep(0.005)
        if self.trouble is not None:
            raise self.trouble
        task.output.write_bytes(self.name.encode())


@dataclass
class Rig:
    """A service in one event loop, and workers in threads."""

    portal: BlockingPortal
    database: Database
    store: JobStore
    jobs: JobService
    cache: sync.JobCache
    videos: Path
    now_ms: int = 1_000_000

    def worker(self, renderer: StandIn, claim_for: float = LONG) -> RenderWorker:
        renderer.reported = self.is_shown
        return RenderWorker(
            self.portal,
            self.database,
            self.store,
            self.cache,
            renderer,
            videos=self.videos,
            claim_for=claim_for,
            report_every=0.001,
            clock_ms=lambda: self.now_ms,
        )

    def is_shown(self, percent: float) -> bool:
        """Whether a job has come as far as that; so no report replaces the one before it."""
        return self.shown >= percent

    shown = 0.0

    def rendering(self) -> int:
        job_id: int = self.portal.call(self._rendering)
        return job_id

    async def _rendering(self) -> int:
        job = await self.jobs.create(NewJob("acme", "A cat sits.", None, 1.0, "builtin"))
        while job.status is not Status.STORYBOARD_READY:
            await asyncio.sleep(0.005)
            job = await self._load(job.id)
        await self.jobs.approve(job.id, TRUSTED)
        await self.jobs.render(job.id, TRUSTED)
        return job.id

    async def _load(self, job_id: int) -> Job:
        job = await self.store.load(job_id)
        assert job is not None
        return job

    def load(self, job_id: int) -> Job:
        job: Job = self.portal.call(self._load, job_id)
        return job

    def changed(self, job: Job) -> None:
        self.shown = max(self.shown, job.percent)

    def expire(self) -> None:
        """Let the time pass in which claims are valid."""
        self.now_ms += round(LONG * 1000) + 1

    def files(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.videos.iterdir()}


class SeenStore(JobStore):
    """Lets the test see each change that a transaction makes, before its commit."""

    rig: Rig
    changes: list[tuple[Status, float]]
    trouble: list[Exception]

    async def make_transition(self, *arguments: Any, **options: Any) -> Job | None:
        job = await super().make_transition(*arguments, **options)
        if job is not None and options.get("claim") is not None:
            if self.trouble:
                raise self.trouble.pop(0)
            self.changes.append((job.status, job.percent))
            self.rig.changed(job)
        return job


@pytest.fixture
def rig(database_url: str, tmp_path: Path) -> Iterator[Rig]:
    videos = tmp_path / "videos"
    videos.mkdir()
    with (
        start_blocking_portal() as portal,
        sync.JobCache(CacheSettings(backend="null")) as cache,
    ):

        async def make() -> tuple[Rig, Runner]:
            database = Database(database_url)
            await database.prepare_tables()
            store = SeenStore(database)
            store.changes, store.trouble = [], []
            jobs = JobService(database, store, JobCache(NullBackend()))
            runner = Runner(jobs, store, None, videos=videos, at_once=1, claim_for=LONG)
            jobs.on_change.append(runner.seen)
            runner.start()
            made = Rig(portal, database, store, jobs, cache, videos)
            store.rig = made
            return made, runner

        made, runner = portal.call(make)
        yield made
        portal.call(runner.aclose)
        portal.call(made.database.aclose)


def changes(rig: Rig) -> list[tuple[Status, float]]:
    assert isinstance(rig.store, SeenStore)
    return rig.store.changes


RENDERING, COMPLETED = Status.RENDERING, Status.COMPLETED


@pytest.mark.parametrize("database_url", DATABASES, indirect=True)
def test_a_job_is_rendered_and_completed(rig: Rig) -> None:
    job_id = rig.rendering()
    worker = rig.worker(StandIn("A", 20, 80))
    assert worker.render_next() == job_id
    assert worker.render_next() is None
    assert changes(rig) == [(RENDERING, 20), (RENDERING, 80), (COMPLETED, 100)]
    job = rig.load(job_id)
    assert (job.status, job.video_url) == (COMPLETED, f"/api/v2/jobs/{job_id}/video")
    assert rig.files() == {f"{job_id}.mp4": "A"}


def test_the_oldest_job_comes_first(rig: Rig) -> None:
    first, second = rig.rendering(), rig.rendering()
    worker = rig.worker(StandIn("A"))
    assert [worker.render_next(), worker.render_next()] == [first, second]


@contextmanager
def at_work(rig: Rig, renderer: StandIn, claim_for: float = LONG) -> Iterator[Future[int | None]]:
    """Let a worker render, in a thread, up to the moment before the video is written."""
    renderer.may_end.clear()
    with ThreadPoolExecutor(1) as thread:
        rendering = thread.submit(rig.worker(renderer, claim_for).render_next)
        try:
            assert renderer.begun.wait(60)
            yield rendering
        finally:
            renderer.may_end.set()


@pytest.mark.parametrize("database_url", DATABASES, indirect=True)
def test_a_worker_that_lost_its_claim_changes_nothing(rig: Rig) -> None:
    """It was stopped for so long that another worker has its job."""
    job_id = rig.rendering()
    stopped, other = StandIn("stopped", 60), StandIn("other", 5, 50)
    with at_work(rig, stopped) as first:
        rig.expire()
        with at_work(rig, other):
            before = rig.load(job_id)
            stopped.may_end.set()  # it has the whole video, and completes the job
            assert first.result(60) == job_id
            assert rig.load(job_id) == before
            assert rig.files() == {}
    assert changes(rig) == [(RENDERING, 60), (COMPLETED, 100)], "progress never went back"
    assert rig.files() == {f"{job_id}.mp4": "other"}


def test_a_job_that_is_cancelled_is_left(rig: Rig) -> None:
    """The worker notices when it renews its claim, although its renderer is silent."""
    job_id = rig.rendering()
    with at_work(rig, StandIn("silent"), claim_for=0.1) as rendering:
        rig.portal.call(rig.jobs.cancel, job_id, TRUSTED)
        assert rendering.result(60) == job_id
    assert rig.load(job_id).status is Status.CANCELLED
    assert changes(rig) == []
    assert rig.files() == {}


def test_a_claim_is_renewed_while_the_renderer_is_silent(rig: Rig) -> None:
    rig.rendering()
    with at_work(rig, StandIn("silent"), claim_for=0.3):
        expires_at = rig.now_ms + 300
        rig.now_ms += 100
        give_up_at = time.monotonic() + 60
        while rig.portal.call(rig.store.find_unfinished, expires_at + 1, 1):
            assert time.monotonic() < give_up_at
    assert changes(rig) == [(COMPLETED, 100)]


def test_a_job_that_was_started_too_often_fails(rig: Rig) -> None:
    job_id = rig.rendering()
    for attempt in range(1, 6):
        assert rig.portal.call(rig.store.claim, job_id, "x", rig.now_ms, rig.now_ms) == attempt
        rig.now_ms += 1
    renderer = StandIn("A")
    assert rig.worker(renderer).render_next() == job_id
    assert not renderer.begun.is_set()
    assert rig.load(job_id).error == "Given up: 5 attempts were cut short."


def test_a_video_that_cannot_be_made_fails_its_job(rig: Rig) -> None:
    job_id = rig.rendering()
    renderer = StandIn("A", 10)
    renderer.trouble = RenderError("The scene is too large.")
    rig.worker(renderer).render_next()
    job = rig.load(job_id)
    assert (job.status, job.error) == (Status.FAILED, "The scene is too large.")


def test_a_bug_of_the_renderer_leaves_the_job_to_the_next_attempt(rig: Rig) -> None:
    job_id = rig.rendering()
    renderer = StandIn("A")
    renderer.trouble = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        rig.worker(renderer).render_next()
    assert rig.worker(StandIn("B")).render_next() is None, "the claim is still valid"
    rig.expire()
    assert rig.worker(StandIn("B")).render_next() == job_id
    assert rig.load(job_id).status is COMPLETED


def test_the_end_is_committed_when_the_database_is_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.jobs.render_worker.COMPLETE_PAUSES", (0.01, 0.01, 0.01))
    job_id = rig.rendering()
    assert isinstance(rig.store, SeenStore)
    rig.store.trouble = [SourceUnavailable("away"), SourceUnavailable("away")]
    rig.worker(StandIn("A")).render_next()
    assert rig.load(job_id).status is COMPLETED
    assert rig.files() == {f"{job_id}.mp4": "A"}


def test_what_dead_workers_left_is_removed(rig: Rig) -> None:
    job_id = rig.rendering()
    rig.portal.call(rig.store.claim, job_id, "dead", rig.now_ms, rig.now_ms)
    rig.now_ms += 1
    (rig.videos / f"{job_id}.dead.mp4.part").write_bytes(b"half")
    rig.worker(StandIn("A")).render_next()
    assert rig.files() == {f"{job_id}.mp4": "A"}


@pytest.mark.parametrize("database_url", DATABASES, indirect=True)
def test_many_workers_render_each_job_once(rig: Rig) -> None:
    ids = [rig.rendering() for _ in range(12)]
    worker = rig.worker(StandIn("A"))
    with ThreadPoolExecutor(4) as threads:
        rendered = list(threads.map(lambda _: worker.render_next(), range(14)))
    assert sorted(job_id for job_id in rendered if job_id is not None) == ids
    assert changes(rig) == [(COMPLETED, 100)] * 12
