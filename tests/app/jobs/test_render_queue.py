"""The messages that tell workers of jobs: one for each, and again if they are lost."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from app.auth.callers import TRUSTED
from app.db.database import Database
from app.jobs.render_queue import RenderQueue
from app.jobs.service import JobService
from app.jobs.states import Status
from app.jobs.storage import Job, JobStore, NewJob
from app.rendering.storyboard import make_storyboard
from jobcache import JobCache
from jobcache.backends.null import NullBackend


class Broker:
    """A queue in this process. The test is the worker, and loses messages."""

    def __init__(self) -> None:
        self.messages = 0
        self.sent: list[int] = []
        self.counted = 0
        self.away = False
        self._lock = threading.Lock()

    def send(self, messages: int) -> None:
        self._refuse()
        with self._lock:
            self.messages += messages
        self.sent.append(messages)

    def count(self) -> int:
        self._refuse()
        self.counted += 1
        return self.messages

    def close(self) -> None:
        pass

    def _refuse(self) -> None:
        if self.away:
            raise OSError("refused")


class CountedStore(JobStore):
    """Counts how often the queue has looked for jobs that wait."""

    looks = 0

    async def find_unfinished(self, *arguments: Any, **options: Any) -> list[Job]:
        found = await super().find_unfinished(*arguments, **options)
        self.looks += 1
        return found


class Rig:
    def __init__(self, database: Database) -> None:
        self.store = CountedStore(database)
        self.jobs = JobService(database, self.store, JobCache(NullBackend()))
        self.broker = Broker()
        self.queue = RenderQueue(self.store, self.broker, check_every=0.02)
        self.jobs.on_change.append(self.queue.seen)

    async def rendering(self, renderer: str = "builtin") -> int:
        job = await self.jobs.create(NewJob("acme", "A cat sits.", None, 1.0, renderer))
        await self.jobs.begin_storyboard(job.id)
        storyboard = make_storyboard(job.prompt, scenes=1, seconds_per_scene=1.0)
        await self.jobs.finish_storyboard(job.id, storyboard)
        await self.jobs.approve(job.id, TRUSTED)
        rendering = await self.jobs.render(job.id, TRUSTED)
        assert rendering.status is Status.RENDERING
        return job.id

    async def holds(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.005)

    async def checked(self, times: int = 3) -> None:
        """Wait until the queue has been looked at again."""
        before = self.broker.counted
        await self.holds(lambda: self.broker.counted >= before + times)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'jobs.db'}")
    await database.prepare_tables()
    rig = Rig(database)
    yield rig
    await rig.queue.aclose()
    await database.aclose()


async def test_each_job_sends_one_message(rig: Rig) -> None:
    rig.queue.start()
    for _ in range(3):
        await rig.rendering()
    await rig.rendering("external")
    await rig.checked()
    # A look may find the first job before its own message is sent, and send another.
    assert 3 <= rig.broker.messages <= 4, "and no further one while the queue is not empty"


async def test_messages_that_were_lost_are_sent_again(rig: Rig) -> None:
    for _ in range(3):
        await rig.rendering()  # nobody sends: the process has died
    rig.queue._unsent = 0
    rig.queue.start()
    await rig.holds(lambda: rig.broker.messages == 3)
    await rig.checked()
    assert rig.broker.messages == 3
    rig.broker.messages = 0  # the broker has lost them
    await rig.holds(lambda: rig.broker.messages == 3)


async def test_a_job_is_announced_again_when_its_claim_has_expired(rig: Rig) -> None:
    job_id = await rig.rendering()
    assert await rig.store.claim(job_id, "a worker", 0, 10**15) == 1
    rig.queue._unsent = 0  # its message was sent, and the worker has received it
    rig.queue.start()
    await rig.holds(lambda: rig.store.looks >= 3)  # they find no job that waits
    assert rig.broker.messages == 0
    await rig.store.renew_claims([job_id], "a worker", 1)  # it has died
    await rig.holds(lambda: rig.broker.messages == 1)


async def test_a_broker_that_is_away_is_tried_again(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "app")
    rig.broker.away = True
    rig.queue.start()
    await rig.rendering()
    await rig.holds(lambda: caplog.records)
    await rig.rendering()
    await asyncio.sleep(0.1)
    rig.broker.away = False
    await rig.holds(lambda: rig.broker.messages >= 2)
    assert [record.getMessage() for record in caplog.records] == [
        "the queue of the workers is away: refused",
        "the queue of the workers is back",
    ]
