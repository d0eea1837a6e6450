"""The load: pollers and workers that share one schedule."""

from __future__ import annotations

import asyncio
import gc
import random
from array import array
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Self

from loadtests.open_loop import schedule
from loadtests.open_loop.clients import PolledJob, Poller, Worker
from loadtests.open_loop.precise_timers import new_event_loop
from loadtests.open_loop.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_CONNECTING = 100  # connections that are opened at the same time
_PATIENCE = 20.0  # seconds in which the last responses have to come
_LOOK = 0.01  # seconds between two looks for them
_WORKERS = 16


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The options of a load.

    Attributes:
        pollers: how many there are; each has a connection, and polls one of the jobs.
        interval: seconds between two polls of a poller.
        jobs: how many there are.
        update_interval: seconds between two updates of a job; None: there are none.
        conditional: whether pollers send ETags.
        seed: of the times of the polls.
    """

    pollers: int
    interval: float
    jobs: int
    update_interval: float | None
    conditional: bool
    seed: int = 1


@dataclass
class Seen:
    """What one run of the load has shown.

    Attributes:
        planned: the polls that were to be sent.
        record: the polls.
        delays: by how many seconds each request was made later than planned, because this process
            was busy.
        unanswered: polls and updates that were sent and not answered.
        planned_updates: the updates that were to be sent.
        updates: how many seconds each that was acknowledged took from its planned time.
        update_errors: what became of the others, by description.
        took: seconds from the first request to the last response.
    """

    planned: int
    planned_updates: int
    record: Record = field(default_factory=Record)
    delays: array[float] = field(default_factory=lambda: array("d"))
    unanswered: int = 0
    updates: array[float] = field(default_factory=lambda: array("d"))
    update_errors: Counter[str] = field(default_factory=Counter)
    took: float = 0.0


class Load:
    """Pollers and workers, connected to one service while a `with` block runs.

    Args:
        port: of the service, on this machine.
        versions: the jobs, and the version that each has.
        plan: the options.
    """

    def __init__(self, port: int, versions: dict[int, int], plan: Plan) -> None:
        self._port = port
        self._plan = plan
        self._random = random.Random(plan.seed)  # noqa: S311 - the same in every run
        self._jobs = [PolledJob(job, version) for job, version in versions.items()]
        self._pollers = [
            Poller(self._jobs[n % len(self._jobs)], Record(), conditional=plan.conditional)
            for n in range(plan.pollers)
        ]
        self._workers = [Worker() for _ in range(min(_WORKERS, len(self._jobs)))]
        self._runner = asyncio.Runner(loop_factory=new_event_loop)

    def __enter__(self) -> Self:
        try:
            self._runner.run(self._connect())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for client in self._clients():
                client.close()
        finally:
            self._runner.close()

    def run(self, seconds: float) -> Seen:
        """Poll and update for so many seconds, and wait for the last responses."""
        with _no_garbage_collection():
            return self._runner.run(self._run(seconds))

    async def _run(self, seconds: float) -> Seen:
        plan, loop = self._plan, asyncio.get_running_loop()
        polls = schedule.of_pollers(plan.pollers, plan.interval, seconds, self._random)
        updates = []
        if plan.update_interval is not None:
            updates = schedule.of_updates(len(self._jobs), plan.update_interval, seconds)
        seen = Seen(len(polls), len(updates))
        for poller in self._pollers:
            poller.record = seen.record
        for worker in self._workers:
            worker.start_counting()
        poll_pacer = schedule.Pacer(polls, self._poll)
        update_pacer = schedule.Pacer(updates, self._update)
        began = loop.time()
        async with asyncio.TaskGroup() as group:
            group.create_task(poll_pacer.run(began))
            group.create_task(update_pacer.run(began))
        seen.unanswered = await self._wait_for_last()
        seen.took = loop.time() - began
        seen.delays = poll_pacer.delays
        for worker in self._workers:
            seen.updates.extend(worker.seconds)
            seen.update_errors.update(worker.errors)
        return seen

    def _poll(self, planned: float, number: int) -> None:
        self._pollers[number].poll(planned)

    def _update(self, planned: float, number: int) -> None:
        # One worker for each job, so that no job has two updates at the same time.
        self._workers[number % len(self._workers)].report(self._jobs[number], planned)

    async def _wait_for_last(self) -> int:
        """Wait until all requests are answered, and return how many never were."""
        for _ in range(int(_PATIENCE / _LOOK)):
            if not any(client.waiting for client in self._clients()):
                break
            await asyncio.sleep(_LOOK)
        return sum(client.waiting for client in self._clients())

    async def _connect(self) -> None:
        door = asyncio.Semaphore(_CONNECTING)

        async def connect(client: Poller | Worker) -> None:
            async with door:
                await client.connect(self._port)

        async with asyncio.TaskGroup() as group:
            for client in self._clients():
                group.create_task(connect(client))

    def _clients(self) -> Iterable[Poller | Worker]:
        return chain(self._pollers, self._workers)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep the collector from pausing this process. The clients make no cycles."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
