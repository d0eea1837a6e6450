"""The runner by itself, on a real database: its claims, failed jobs, and files on disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from app.auth.callers import TRUSTED
from app.db.database import Database
from app.db.tables import claims
from app.jobs.runner import Runner
from app.jobs.service import IllegalTransition, JobService
from app.jobs.states import MOVING, Status
from app.jobs.storage import Job, JobStore, NewJob
from app.rendering.renderer import Progress, RenderError, RenderTask
from jobcache import JobCache, SourceUnavailable
from jobcache.backends.null import NullBackend
from tests.pairs import DATABASES

CLAIM_FOR = 0.09


class StandIn:
    """A renderer whose videos are whole at once, and which then does what the test wants."""

    makes_video = True

    def __init__(self) -> None:
        self.rendered: list[int] = []
        self.troubles: list[Exception] = []
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def render(self, task: RenderTask) -> AsyncGenerator[Progress, None]:
        self.rendered.append(task.job_id)
        if self.troubles:
            raise self.troubles.pop(0)
        yield Progress(50, "drawing", "")
        task.output.write_bytes(b"a video")
        await self.may_end.wait()


@dataclass
class Rig:
    """A runner with its service and storage. `elsewhere` is the service in another process."""

    database: Database
    store: JobStore
    jobs: JobService
    elsewhere: JobService
    renderer: StandIn
    runner: Runner
    videos: Path

    async def create(self) -> Job:
        return await self.jobs.create(NewJob("acme", "A cat sits.", None, 1.0, "builtin"))

    async def rendering(self) -> int:
        job = await self.create()
        await self.until(job.id, Status.STORYBOARD_READY)
        await self.jobs.approve(job.id, TRUSTED)
        await self.jobs.render(job.id, TRUSTED)
        return job.id

    async def until(self, job_id: int, status: Status) -> Job:
        async with asyncio.timeout(60):
            while True:
                job = await self.store.load(job_id)
                assert job is not None
                if job.status is status:
                    return job
                await asyncio.sleep(0.005)

    async def holds(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.005)

    async def claimed(self) -> list[int]:
        rows = await self.database.read(select(claims.c.job_id).order_by(claims.c.job_id), "test")
        return [row.job_id for row in rows]

    async def claimed_are(self, *job_ids: int) -> None:
        async with asyncio.timeout(60):
            while await self.claimed() != list(job_ids):
                await asyncio.sleep(0.005)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.videos.iterdir())


@pytest.fixture
async def rig(database_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    database = Database(database_url)
    store = JobStore(database)
    cache = JobCache(NullBackend())
    jobs = JobService(database, store, cache)
    renderer = StandIn()
    videos = tmp_path / "videos"
    videos.mkdir()
    runner = Runner(jobs, store, renderer, videos=videos, name="us", at_once=1, claim_for=CLAIM_FOR)
    jobs.on_change.append(runner.seen)
    await database.prepare_tables()
    runner.start()
    elsewhere = JobService(database, store, cache)
    yield Rig(database, store, jobs, elsewhere, renderer, runner, videos)
    renderer.may_end.set()
    await runner.aclose()
    await cache.aclose()
    await database.aclose()


@pytest.mark.parametrize("trouble", [SourceUnavailable("away"), ValueError("a bug")])
async def test_a_job_whose_step_fails_is_taken_up_again_by_the_same_process(
    rig: Rig, trouble: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    rig.renderer.troubles = [trouble]
    job_id = await rig.rendering()
    await rig.until(job_id, Status.COMPLETED)
    assert rig.renderer.rendered == [job_id, job_id]
    assert len([record for record in caplog.records if record.name == "app"]) == 1


async def test_a_job_whose_step_always_fails_is_given_up(rig: Rig) -> None:
    rig.renderer.troubles = [ValueError("a bug") for _ in range(6)]
    job_id = await rig.rendering()
    job = await rig.until(job_id, Status.FAILED)
    assert job.error == "Given up: 5 attempts were cut short."
    assert rig.renderer.rendered == [job_id] * 5


async def test_what_waits_for_its_turn_is_not_claimed_nor_queued_twice(rig: Rig) -> None:
    """Its process may die of the job that is at work, and that is not its fault."""
    rig.renderer.may_end.clear()
    at_work = await rig.rendering()
    await rig.holds(lambda: rig.renderer.rendered == [at_work])
    waiting = await rig.rendering()
    await rig.claimed_are(at_work)
    for _ in range(5):
        for job in await rig.store.find_unfinished(0, 10):
            rig.runner.seen(job)
    assert rig.runner._next == {}
    assert await rig.claimed() == [at_work]
    rig.renderer.may_end.set()
    await rig.until(waiting, Status.COMPLETED)
    assert rig.renderer.rendered == [at_work, waiting]
    await rig.claimed_are()


async def test_what_was_moved_elsewhere_while_it_waited_is_left_alone(rig: Rig) -> None:
    rig.renderer.may_end.clear()
    at_work = await rig.rendering()
    await rig.holds(lambda: rig.renderer.rendered == [at_work])
    waiting, last = await rig.rendering(), await rig.rendering()
    await rig.elsewhere.cancel(waiting, TRUSTED)
    rig.renderer.may_end.set()
    await rig.until(last, Status.COMPLETED)
    assert rig.renderer.rendered == [at_work, last]
    await rig.claimed_are()


async def test_what_is_ended_elsewhere_is_stopped_here(rig: Rig) -> None:
    """The end removes the claim, and the runner finds that it has lost it."""
    rig.renderer.may_end.clear()
    job_id = await rig.rendering()
    await rig.holds(lambda: len(rig.files()) == 1)
    await rig.elsewhere.cancel(job_id, TRUSTED)
    await rig.holds(lambda: not rig.runner._working)
    assert rig.files() == []
    assert await rig.claimed() == []


async def test_a_video_that_was_whole_when_its_job_was_cancelled_is_removed(rig: Rig) -> None:
    rig.renderer.may_end.clear()
    job_id = await rig.rendering()
    await rig.holds(lambda: rig.files() == [f"{job_id}.us.mp4"])
    await rig.jobs.cancel(job_id, TRUSTED)
    await rig.holds(lambda: not rig.runner._working)
    assert rig.files() == []


async def test_a_video_in_place_is_removed_if_its_job_is_cancelled_after_all(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database was away when the job was to be completed, and came back for the client."""

    async def away(*_: Any, **__: Any) -> Job:
        raise SourceUnavailable("away")

    monkeypatch.setattr(rig.jobs, "complete", away)
    job_id = await rig.rendering()
    await rig.holds(lambda: rig.files() == [f"{job_id}.mp4"])
    await rig.jobs.cancel(job_id, TRUSTED)
    await rig.holds(lambda: not rig.runner._working)
    assert rig.files() == []


async def test_a_stop_while_the_job_is_being_completed_keeps_its_video(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = rig.jobs.complete
    begun, may_go_on = asyncio.Event(), asyncio.Event()

    async def slow(*arguments: Any, **options: Any) -> Job:
        begun.set()
        await may_go_on.wait()
        return await complete(*arguments, **options)

    monkeypatch.setattr(rig.jobs, "complete", slow)
    job_id = await rig.rendering()
    async with asyncio.timeout(60):
        await begun.wait()
    stopping = asyncio.create_task(rig.runner.aclose())
    await rig.holds(lambda: not rig.runner._working)
    may_go_on.set()
    await stopping
    await rig.until(job_id, Status.COMPLETED)
    assert rig.files() == [f"{job_id}.mp4"]


async def test_a_cancellation_that_comes_first_removes_the_video_in_place(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = rig.jobs.complete

    async def too_late(job_id: int, *arguments: Any, **options: Any) -> Job:
        await rig.elsewhere.cancel(job_id, TRUSTED)
        return await complete(job_id, *arguments, **options)

    monkeypatch.setattr(rig.jobs, "complete", too_late)
    job_id = await rig.rendering()
    await rig.until(job_id, Status.CANCELLED)
    await rig.holds(lambda: not rig.runner._working and not rig.files())


@pytest.mark.parametrize("database_url", DATABASES, indirect=True)
async def test_a_stop_in_the_middle_of_a_claim_gives_it_up(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = rig.store.claim
    begun, may_go_on = asyncio.Event(), asyncio.Event()

    async def slow(*arguments: Any) -> int | None:
        async def sheltered() -> int | None:
            begun.set()
            await may_go_on.wait()
            return await claim(*arguments)

        return await rig.database.shielded.run(sheltered())

    monkeypatch.setattr(rig.store, "claim", slow)
    job = await rig.create()
    async with asyncio.timeout(60):
        await begun.wait()
    stopping = asyncio.create_task(rig.runner.aclose())
    await asyncio.sleep(0)
    may_go_on.set()
    await stopping
    await rig.database.shielded.join()
    assert await rig.claimed() == []
    assert [found.id for found in await rig.store.find_unfinished(0, 10)] == [job.id]


async def test_a_job_cancelled_before_its_task_began_is_forgotten(rig: Rig) -> None:
    await rig.until((await rig.create()).id, Status.STORYBOARD_READY)
    await rig.holds(lambda: not rig.runner._working)
    job = await rig.store.load(1)
    assert job is not None
    rig.runner.seen(replace(job, status=Status.PENDING))
    rig.runner.seen(replace(job, status=Status.CANCELLED))
    await rig.holds(lambda: not rig.runner._working)


@pytest.mark.parametrize("database_url", DATABASES, indirect=True)
async def test_the_end_of_a_job_removes_its_claim_whoever_had_it(rig: Rig) -> None:
    await rig.runner.aclose()
    job = await rig.create()
    assert await rig.store.claim(job.id, "another", 0, 10**15) == 1
    await rig.jobs.begin_storyboard(job.id)
    assert await rig.claimed() == [job.id]
    await rig.jobs.cancel(job.id, TRUSTED)
    assert await rig.claimed() == []


@pytest.mark.parametrize("database_url", DATABASES, indirect=True)
async def test_a_job_waits_until_a_runner_has_claimed_it(rig: Rig) -> None:
    await rig.runner.aclose()
    job = await rig.create()

    async def waiting(now_ms: int) -> int:
        counted = await rig.store.count_unfinished_jobs(now_ms)
        assert counted.by_status == {
            each.value: int(each is Status.PENDING) for each in Status if each in MOVING
        }
        return counted.waiting

    assert await waiting(0) == 1
    await rig.store.claim(job.id, "us", 0, 1000)
    assert await waiting(999) == 0
    assert await waiting(1001) == 1, "the claim has expired"


@pytest.mark.parametrize("database_url", DATABASES, indirect=True)
async def test_any_number_of_claims_is_renewed(rig: Rig) -> None:
    await rig.runner.aclose()
    job = await rig.create()
    await rig.store.claim(job.id, "us", 0, 1)
    many = [*range(10_000, 45_000), job.id]
    assert await rig.store.renew_claims(many, "us", 2) == {job.id}


async def found_nothing(*_: object) -> list[Job]:
    return []


async def test_a_step_that_is_ready_while_the_one_before_is_ending_follows_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, may_release = rig.store.release_claim, asyncio.Event()

    async def release_later(job_id: int, name: str) -> None:
        await may_release.wait()
        await released(job_id, name)

    monkeypatch.setattr(rig.store, "find_unfinished", found_nothing)
    monkeypatch.setattr(rig.store, "release_claim", release_later)
    job_id = await rig.rendering()
    assert rig.renderer.rendered == []
    may_release.set()
    await rig.until(job_id, Status.COMPLETED)
    assert rig.renderer.rendered == [job_id]


@pytest.mark.parametrize(
    ("trouble", "logged"), [(SourceUnavailable("away"), False), (ValueError("a bug"), True)]
)
async def test_jobs_are_looked_for_again_after_a_failure(
    rig: Rig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: Exception,
    *,
    logged: bool,
) -> None:
    find, troubles = rig.store.find_unfinished, [trouble]

    async def find_or_fail(now_ms: int, most: int, **options: Any) -> list[Job]:
        if troubles:
            raise troubles.pop()
        return await find(now_ms, most, **options)

    monkeypatch.setattr(rig.store, "find_unfinished", find_or_fail)
    await rig.holds(lambda: not troubles)
    job = await rig.elsewhere.create(NewJob("acme", "A cat sits.", None, 1.0, "builtin"))
    await rig.until(job.id, Status.STORYBOARD_READY)
    assert ("looking for unfinished jobs failed" in caplog.text) is logged


async def test_a_rendering_that_cannot_succeed_fails_with_its_reason(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.renderer.troubles = [RenderError("The disk is full.")]
    failed = await rig.until(await rig.rendering(), Status.FAILED)
    assert failed.error == "The disk is full."

    async def load_nothing(_: int) -> str:
        return ""

    monkeypatch.setattr(rig.store, "load_to_render", load_nothing)
    failed = await rig.until(await rig.rendering(), Status.FAILED)
    assert failed.error == "The storyboard is missing."


async def test_a_job_that_is_cancelled_just_after_its_claim_is_left_alone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    claim = rig.store.claim

    async def claim_and_lose(job_id: int, *arguments: Any) -> int | None:
        attempts = await claim(job_id, *arguments)
        await rig.elsewhere.cancel(job_id, TRUSTED)
        return attempts

    monkeypatch.setattr(rig.store, "claim", claim_and_lose)
    job = await rig.create()
    await rig.until(job.id, Status.CANCELLED)
    await rig.holds(lambda: not rig.runner._working)
    await rig.claimed_are()
    assert not [record for record in caplog.records if record.name == "app"]


async def test_files_of_earlier_attempts_are_removed(rig: Rig) -> None:
    rig.renderer.troubles = [ValueError("a bug")]
    job = await rig.create()
    await rig.until(job.id, Status.STORYBOARD_READY)
    for name in (f"{job.id}.dead.mp4", f"{job.id}.dead.mp4.part", f"{job.id}0.other.mp4"):
        (rig.videos / name).touch()
    await rig.jobs.approve(job.id, TRUSTED)
    await rig.jobs.render(job.id, TRUSTED)
    await rig.until(job.id, Status.COMPLETED)
    await rig.holds(lambda: rig.files() == [f"{job.id}.mp4", f"{job.id}0.other.mp4"])


async def test_a_database_that_is_away_costs_reports_but_not_the_rendering(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete, tries = rig.jobs.complete, 0

    async def report_nothing(*_: Any, **__: Any) -> None:
        raise SourceUnavailable("away")

    async def complete_at_last(*arguments: Any, **options: Any) -> Job:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise SourceUnavailable("away")
        return await complete(*arguments, **options)

    monkeypatch.setattr("app.jobs.runner.COMPLETE_PAUSES", (0, 0))
    monkeypatch.setattr(rig.jobs, "report_progress", report_nothing)
    monkeypatch.setattr(rig.jobs, "complete", complete_at_last)
    job_id = await rig.rendering()
    await rig.until(job_id, Status.COMPLETED)
    assert (tries, rig.renderer.rendered) == (3, [job_id])


async def test_a_job_that_keeps_changing_is_not_tried_for_ever(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, lost = rig.store.make_transition, [True]

    async def lose(*arguments: Any, **options: Any) -> Job | None:
        return None if lost.pop() else await make(*arguments, **options)

    monkeypatch.setattr(rig.store, "find_unfinished", found_nothing)
    job = await rig.elsewhere.create(NewJob("acme", "A cat sits.", None, 1.0, "external"))
    monkeypatch.setattr(rig.store, "make_transition", lose)
    lost[:] = [True] * 100
    with pytest.raises(IllegalTransition, match="changing too fast to cancel; try again"):
        await rig.jobs.cancel(job.id, TRUSTED)
    lost[:] = [False, True]
    assert (await rig.jobs.cancel(job.id, TRUSTED)).status is Status.CANCELLED
