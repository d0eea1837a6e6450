"""`jobcache.client` and the real service: a job's whole life, keys, and a service that dies."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import httpx
import pytest

from app.devservers import free_port
from jobcache.client import (
    AsyncJobs,
    AsyncPoller,
    ClientError,
    Conflict,
    Forbidden,
    Invalid,
    Job,
    Jobs,
    NotFound,
    Snapshot,
    Unauthorized,
    WaitTimeout,
)
from jobcache.client.core.rules import Rules
from tests.app.keyed import keyed
from tests.app.process import Process, launch
from tests.app.running import Start


async def test_a_job_from_its_prompt_to_its_end(start: Start) -> None:
    async with start() as service, AsyncJobs("", http=service.http) as jobs:
        made = await jobs.create("acme", "A cat sits. A dog runs.", idempotency_key="one")
        again = await jobs.create("acme", "A cat sits. A dog runs.", idempotency_key="one")
        assert again.id == made.id
        ready = await jobs.wait_for(made.id, until={"storyboard_ready"}, timeout=20)
        assert (ready.status, ready.terminal) == ("storyboard_ready", False)
        assert (await jobs.approve(made.id)).status == "approved"
        assert (await jobs.render(made.id)).status == "rendering"
        seen: list[Job] = []
        done = await jobs.wait_for(made.id, on_progress=seen.append, timeout=20)
        assert (done.status, done.percent) == ("completed", 100)
        assert done == seen[-1]
        versions = [job.version for job in seen]
        assert versions == sorted(set(versions))
        assert len(versions) > 1
        assert (await jobs.get(made.id)).version == done.version
        assert len((await jobs.storyboard(made.id))["scenes"]) == 2
        unfinished = await jobs.create("acme", "Another.", renderer="external")
        assert (await jobs.cancel(unfinished.id)).status == "cancelled"
        listed = [job.id async for job in jobs.list_jobs(client_id="acme", page_size=1)]
        assert listed == [unfinished.id, made.id]
        ended = [job.id async for job in jobs.list_jobs(status="completed")]
        assert ended == [made.id]
        assert (await jobs.statistics())["statistics"]["total_requests"] > 0
        assert jobs.counts.failed == 0


async def test_a_poller_that_knows_no_jobs_follows_one_to_its_end(start: Start) -> None:
    soon = start(JOBCACHE_SIMULATED_SECONDS="0.2")
    async with soon as service, AsyncPoller(http=service.http) as poller:
        body = {"client_id": "acme", "prompt": "A cat sits."}
        begun = await service.http.post("/api/v2/jobs", json=body)
        seen: list[Snapshot] = []
        ready = await poller.wait_for(
            begun,
            until=lambda job: job.document["status"] == "storyboard_ready",
            on_progress=seen.append,
            timeout=20,
        )
        assert (ready.document["status"], ready.is_final) == ("storyboard_ready", False)
        await service.http.post(f"/api/v2/jobs/{ready.document['id']}/approve")
        await service.http.post(f"/api/v2/jobs/{ready.document['id']}/render")
        done = await poller.wait_for(ready.url, on_progress=seen.append, timeout=20)
        assert (done.document["status"], done.percent, done.is_final) == ("completed", 100, True)
        versions = [each.document["version"] for each in seen]
        assert versions == sorted(set(versions))
        assert poller.counts.held > 0
        assert poller.counts.failed == 0


async def test_what_the_service_refuses_is_an_error_of_its_own_kind(
    start: Start, tmp_path: Path
) -> None:
    async with keyed(start, tmp_path / "keys.txt") as service:
        http = service.service.http
        tokens = {
            name: headers["Authorization"].removeprefix("Bearer ")
            for name, headers in service.callers.items()
        }

        def of(caller: str) -> AsyncJobs:
            return AsyncJobs("", tokens[caller], http=http)

        job = await of("own").create("acme", "A cat.", renderer="external")
        expected: dict[str, type[ClientError]] = {
            "wrong": Unauthorized,
            "malformed": Unauthorized,
            "stranger": NotFound,
        }
        for caller, kind in expected.items():
            with pytest.raises(kind):
                await of(caller).wait_for(job.id, timeout=5)
        with pytest.raises(Forbidden):
            await of("stranger").create("acme", "A cat.")
        with pytest.raises(Invalid) as invalid:
            await of("own").create("acme", " ")
        assert "prompt" in str(invalid.value.problem)
        await of("own").wait_for(job.id, until={"storyboard_ready"}, timeout=20)
        with pytest.raises(Conflict, match="storyboard_ready"):
            await of("own").render(job.id)
        with pytest.raises(WaitTimeout) as up:
            await of("own").wait_for(job.id, timeout=0.1)
        assert up.value.job is not None
        assert up.value.job.status == "storyboard_ready"


async def test_a_video_is_downloaded_from_where_it_stopped(start: Start, tmp_path: Path) -> None:
    async with start() as service, AsyncJobs("", http=service.http) as jobs:
        job_id = (await service.rendering())["id"]
        with pytest.raises(Conflict, match="no video"):
            await jobs.download_video(job_id, tmp_path / "new.mp4")
        url, video = f"/api/v2/jobs/{job_id}/video", bytes(range(256)) * 100
        (tmp_path / "var" / "videos" / f"{job_id}.mp4").write_bytes(video)
        await service.services.jobs.complete(job_id, url, worker=True)
        etag = (await service.http.get(url)).headers["ETag"]
        (tmp_path / "new.mp4.part").write_bytes(video[:1000])
        (tmp_path / "new.mp4.part.etag").write_text(etag)
        received: list[httpx.Response] = []

        async def note(response: httpx.Response) -> None:
            received.append(response)

        service.http.event_hooks = {"response": [note]}
        film = await jobs.download_video(job_id, tmp_path / "new.mp4")
        assert film.read_bytes() == video
        assert [each.status_code for each in received] == [206]


@pytest.mark.parametrize("connections", [1, 8])
async def test_many_jobs_are_waited_for_alone_or_in_batches(start: Start, connections: int) -> None:
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        await asyncio.sleep(0)

    async with start() as service:
        jobs = AsyncJobs("", http=service.http, rules=Rules(clock=lambda: now), sleep=sleep)
        ids = [(await service.create(renderer="external"))["id"] for _ in range(3)]
        ended, unknown = [], ids[-1] + 100
        versions: dict[int, list[int]] = {job_id: [] for job_id in ids}
        await jobs.cancel(ids[1])
        async for each in jobs.as_completed(
            [*ids, unknown],
            connections=connections,
            on_progress=lambda job: versions[job.id].append(job.version),
        ):
            ended.append(each.source)
            if each.source == unknown:
                assert isinstance(each.error, NotFound)
            elif each.result().id == ids[1]:
                await jobs.cancel(ids[2])
            elif each.result().id == ids[2]:
                await jobs.cancel(ids[0])
        assert [job_id for job_id in ended if job_id != unknown] == [ids[1], ids[2], ids[0]]
        assert ended.count(unknown) == 1
        assert all(each == sorted(set(each)) and each for each in versions.values())
        assert [job.id for job in await jobs.wait_all(ids, connections=connections)] == ids
        assert (await jobs.wait_any([unknown, *ids], connections=connections)).id in ids
        assert jobs.counts.failed == 0


async def test_a_service_killed_in_the_middle_is_waited_for_and_nothing_is_missed(
    tmp_path: Path,
) -> None:
    port, log = free_port(), tmp_path / "log.txt"
    first = Process(launch(tmp_path, port, log, measured=False), port, log)
    processes = [first]
    try:
        first.wait_until_ready()
        job_id = first.rendering(renderer="external")
        soon = Rules(random=lambda: 0.1), Rules(random=lambda: 0.1)
        seen: list[list[int]] = [[], []]
        with Jobs(first.url, rules=soon[0]) as jobs:
            async with AsyncJobs(first.url, rules=soon[1]) as async_jobs, asyncio.timeout(60):
                waiting = [
                    asyncio.create_task(
                        asyncio.to_thread(
                            jobs.wait_for,
                            job_id,
                            on_progress=lambda job: seen[0].append(job.version),
                        )
                    ),
                    asyncio.create_task(
                        async_jobs.wait_for(
                            job_id, on_progress=lambda job: seen[1].append(job.version)
                        )
                    ),
                ]
                while not all(seen):
                    await asyncio.sleep(0.01)
                report = {"percent": 50}
                first.http.post(f"/api/v2/jobs/{job_id}/progress", json=report).raise_for_status()
                first.stop(signal.SIGKILL)
                while not all(rules.counts.failed for rules in soon):
                    await asyncio.sleep(0.01)
                second = Process(launch(tmp_path, port, log, measured=False), port, log)
                processes.append(second)
                await asyncio.to_thread(second.wait_until_ready)
                second.http.post(f"/api/v2/jobs/{job_id}/complete").raise_for_status()
                ends = await asyncio.gather(*waiting)
        assert [job.status for job in ends] == ["completed", "completed"]
        for job, versions in zip(ends, seen, strict=True):
            assert versions == sorted(set(versions))
            assert versions[-1] == job.version
    finally:
        for process in processes:
            process.stop(signal.SIGKILL)
