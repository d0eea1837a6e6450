"""Clients that poll and clients that write, each in a task of one process that sees all responses.

They share a `Watch`, which sends requests, has the responses checked, and counts. There is no await
between the arrival of a response and its check, so it is known before another request is sent.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import defaultdict, deque
from dataclasses import replace
from typing import TYPE_CHECKING

from app.jobs.cache_keys import progress_key
from loadtests.connection import Response, get, post
from loadtests.freshness.checker import Finding, Kind, Ledger, PendingRequest
from loadtests.freshness.connection import LastingConnection, NoAnswer
from loadtests.freshness.history import History
from loadtests.freshness.tally import Scope, Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from loadtests.freshness.cluster import Service

_OK, _NOT_MODIFIED, _NOT_FOUND, _CONFLICT, _UNAVAILABLE = 200, 304, 404, 409, 503
_CHANGED = {200, 202}
_JOBS = "/api/v2/jobs"
_RECENT = 24  # jobs that have ended and are still polled
_PAUSE_AFTER_FAILURE = 0.05  # seconds after a request that was not answered
_GIVE_UP = 20.0  # seconds for a job's storyboard, and for its last change
_TRY_AGAIN = 0.2  # seconds until a change of unknown outcome is repeated
_ACTIVE_SHARE = 0.75  # of polls are for jobs that move
_BATCHES = 1 / 12  # of a client's requests are for many jobs at once
_BATCH = 25
_MOST_WORKERS = 3
_SWEEP = 1.0  # seconds between two looks for overdue answers


class Watch:
    """Sends requests for clients, and has every response checked.

    Args:
        services: the processes.

    Attributes:
        ledger: everything that is known about all jobs.
        scope: the present fault; set by the code that injects faults.
        tallies: counts, by the fault's name.
        active: jobs that move.
        recent: jobs that have ended recently.
        reads: versions checked so far.
        history: what explains a violation.
    """

    def __init__(self, services: Sequence[Service]) -> None:
        self.services = services
        self.ledger = Ledger(time.monotonic)
        self.scope = Scope()
        self.tallies: defaultdict[str, Tally] = defaultdict(Tally)
        self.active: list[int] = []
        self.recent: deque[int] = deque(maxlen=_RECENT)
        self.reads = 0
        self.history = History(services)
        self._connections: list[LastingConnection] = []

    def connections(self) -> list[LastingConnection]:
        """Return a client's connections, one to each process."""
        mine = [LastingConnection(service.port) for service in self.services]
        self._connections += mine
        return mine

    def close(self) -> None:
        """Close all connections; waiting requests get no response."""
        for connection in self._connections:
            connection.close()

    async def sweep(self) -> None:
        """Abandon overdue responses, in an endless loop."""
        while True:
            await asyncio.sleep(_SWEEP)
            now = time.monotonic()
            for connection in self._connections:
                connection.give_up(now)

    def up(self, rng: random.Random) -> Service:
        """Return a running process that accepts changes."""
        running = [each for each in self.services if not (each.down or each.reads_only)]
        return rng.choice(running or self.services)

    # --- asking ---

    async def poll(
        self,
        client: str,
        connection: LastingConnection,
        service: Service,
        job_id: int,
        tag: int = 0,
    ) -> int:
        """Send a poll and check it; return the version, or 0 if there was none."""
        request = get(f"{_JOBS}/{job_id}", tag)
        scope, began = self.scope, time.perf_counter()
        pending = self.ledger.begin(client, job_id, tag)
        answer = await self._send(pending, connection, service, request)
        if answer is None:
            return 0
        how = f"poll, {answer.status}, {answer.cache_status.decode(errors='replace')}"
        self._record(pending, service, how, answer.version)
        tally = self.tallies[self.scope.fault]
        self.reads += 1
        tally.reads += 1
        tally.times[self.scope.phase].append(time.perf_counter() - began)
        tally.hits += answer.hit
        if service.version is not None:
            tally.older_reads += 1
            tally.older_hits += answer.hit
        tally.stale_marked += answer.stale
        if answer.status in {_OK, _NOT_MODIFIED}:
            tally.not_modified += answer.status == _NOT_MODIFIED
            body = answer.body if answer.status == _OK else None
            findings = self.ledger.answered(pending, answer.version, body)
            if findings:
                self.judge(findings, scope, service, answer)
            return answer.version
        tally.statuses[str(answer.status)] += 1
        self.judge(self._refused(pending, answer, scope), scope, service, answer)
        await asyncio.sleep(_PAUSE_AFTER_FAILURE)
        return 0

    async def change(
        self,
        pending: PendingRequest,
        connection: LastingConnection,
        service: Service,
        request: bytes,
        *,
        changes: bool,
    ) -> Response | None:
        """Send a write and check it; return the response, or None if the outcome is unknown."""
        scope = self.scope
        answer = await self._write(pending, connection, service, request)
        if answer is None:
            return None
        self._record(pending, service, f"change, {answer.status}", answer.version)
        if answer.status in _CHANGED:
            findings = self.ledger.acknowledged(
                pending, answer.version, answer.body, changes=changes
            )
            self.judge(findings, scope, service, answer)
        return answer

    async def make(
        self, client: str, connection: LastingConnection, service: Service, body: bytes, key: str
    ) -> int | None:
        """Create a job, or find the one with this key; return its id, or None if it is unknown."""
        request = post(_JOBS, body, Idempotency_Key=key)
        scope, pending = self.scope, self.ledger.begin_unknown(client, 0)
        answer = await self._write(pending, connection, service, request)
        if answer is None or answer.status not in _CHANGED:
            return None
        job_id = int(json.loads(answer.body)["id"])
        pending = replace(pending, job_id=job_id)
        findings = self.ledger.acknowledged(pending, answer.version, answer.body, changes=False)
        self.judge(findings, scope, service, answer)
        return job_id

    async def find(
        self, client: str, connection: LastingConnection, service: Service, ids: Sequence[int] = ()
    ) -> None:
        """Read many jobs at once: these from the cache, or all active ones from the database."""
        scope = self.scope
        pending = {
            each: self.ledger.begin(client, each) for each in ids or (*self.active, *self.recent)
        }
        blindly = self.ledger.begin_unknown(client, 0)
        query = f"ids={','.join(map(str, ids))}" if ids else "status=rendering&limit=100"
        answer = await self._send(blindly, connection, service, get(f"{_JOBS}?{query}"))
        if answer is None:
            return
        if answer.status != _OK:
            self.judge(self._refused(blindly, answer, scope), scope, service, answer)
            await asyncio.sleep(_PAUSE_AFTER_FAILURE)
            return
        tally = self.tallies[self.scope.fault]
        for job_id, version, body in _items(answer.body):
            if ids:
                self.reads += 1
                tally.reads += 1
                tally.batched += 1
                tally.older_reads += service.version is not None
            else:
                tally.listed += 1
            one = pending.get(job_id) or replace(blindly, job_id=job_id)
            self._record(one, service, "in a batch" if ids else "in a list", version)
            findings = self.ledger.answered(one, version, body)
            if findings:
                self.judge(findings, scope, service, answer)
        for job_id in json.loads(answer.body).get("missing", ()):
            self.judge(self.ledger.not_found(pending[job_id]), scope, service, answer)

    async def _write(
        self,
        pending: PendingRequest,
        connection: LastingConnection,
        service: Service,
        request: bytes,
    ) -> Response | None:
        """Return the response to a write, or None if the outcome is unknown."""
        scope = self.scope
        tally = self.tallies[scope.fault]
        tally.writes += 1
        tally.older_writes += service.version is not None
        answer = await self._send(pending, connection, service, request)
        if answer is None:
            tally.unknown_writes += 1
            return None
        if answer.status in _CHANGED or answer.status == _CONFLICT:
            return answer
        self.judge(self._refused(pending, answer, scope), scope, service, answer)
        tally.unknown_writes += 1
        return None

    async def _send(
        self,
        pending: PendingRequest,
        connection: LastingConnection,
        service: Service,
        request: bytes,
    ) -> Response | None:
        """Return the response, or None if there was none."""
        scope, doomed = self.scope, service.doomed
        try:
            return await connection.send(request)
        except NoAnswer as error:
            self.tallies[self.scope.fault].unanswered += 1
            if not (doomed or service.doomed):
                findings = [Finding(Kind.UNANSWERED, pending.job_id, str(error))]
                self.judge(findings, scope, service, None)
            await asyncio.sleep(_PAUSE_AFTER_FAILURE)
            return None

    # --- judging ---

    def judge(
        self,
        findings: Iterable[Finding],
        began: Scope,
        service: Service,
        answer: Response | None,
        key_of: Callable[[int], str] = progress_key,
    ) -> None:
        """Count findings under the weaker promise of two faults: at the request, and now.

        Args:
            findings: of one response.
            began: the fault when the request was sent.
            service: which process has responded.
            answer: the response, if there was one.
            key_of: returns the cache key of a finding's `job_id`.
        """
        scope = self.scope
        if (scope.bound or 0) < (began.bound or 0):
            scope = began
        at = f"process {service.number}, {scope.phase} {scope.fault or 'nothing'}"
        if answer is not None:
            at += f", {answer.status} {answer.cache_status.decode(errors='replace') or 'in a list'}"
        for broken in self.tallies[scope.fault].judge(findings, scope, service.number, at):
            violation = f"{broken.kind}: job {broken.job_id}: {broken.detail} ({at})"
            self.history.explain(key_of(broken.job_id), violation)

    def _record(self, pending: PendingRequest, service: Service, how: str, version: int) -> None:
        what = f"{pending.client}, process {service.number}, {how}: version {version}"
        self.history.responded(progress_key(pending.job_id), pending.at, what)

    def _refused(self, pending: PendingRequest, answer: Response, began: Scope) -> list[Finding]:
        if answer.status == _NOT_FOUND:
            return self.ledger.not_found(pending)
        away = began.source_away or self.scope.source_away
        if answer.status == _UNAVAILABLE and away and answer.retry_after:
            return []
        detail = f"{answer.status} {answer.body[:200]!r}"
        return [Finding(Kind.REFUSED, pending.job_id, detail)]


async def poll_for_ever(
    watch: Watch,
    number: int,
    seed: int,
    *,
    tags: bool,
    stays: bool = False,
    poll_pause: float = 0.0,
) -> None:
    """Poll as a client: any job, any process, in an endless loop.

    Args:
        watch: checks the responses.
        number: the number of the client.
        seed: the seed of its choices.
        tags: whether it sends `If-None-Match`.
        stays: whether it sends requests without a minimum version to one process only.
        poll_pause: seconds between two requests.
    """
    rng = random.Random(f"{seed} poller {number}")  # noqa: S311 - to be repeatable
    home = watch.services[number % len(watch.services)]
    name, connections, seen = f"poller {number}", watch.connections(), dict[int, int]()
    while True:
        if poll_pause:
            await asyncio.sleep(poll_pause)
        moving = watch.active and (not watch.recent or rng.random() < _ACTIVE_SHARE)
        jobs = watch.active if moving else watch.recent
        if not jobs:
            await asyncio.sleep(_PAUSE_AFTER_FAILURE)
            continue
        job_id = rng.choice(jobs)
        service = home if stays and not tags else rng.choice(watch.services)
        if rng.random() < _BATCHES:
            # A batch has no tags: what came by other ways may have been from another process.
            client, pending = (f"{name} in batches", home) if stays and tags else (name, service)
            ids = rng.sample(jobs := [*watch.active, *watch.recent], min(len(jobs), _BATCH))
            await watch.find(client, connections[pending.number], pending, ids)
            continue
        tag = seen.get(job_id, 0) if tags else 0
        version = await watch.poll(name, connections[service.number], service, job_id, tag)
        seen[job_id] = max(version, tag)


async def list_for_ever(watch: Watch, number: int, seed: int, pause: float) -> None:
    """List many jobs from the database, in an endless loop.

    A list may show a commit that is not published yet. From then on the cache must not hide it.

    Args:
        watch: checks the responses.
        number: the number of the client.
        seed: the seed of its choices.
        pause: seconds between two lists.
    """
    rng = random.Random(f"{seed} lister {number}")  # noqa: S311 - to be repeatable
    name, connections = f"lister {number}", watch.connections()
    while True:
        await asyncio.sleep(rng.uniform(0, 2 * pause))
        service = rng.choice(watch.services)
        await watch.find(name, connections[service.number], service)


class Writer:
    """Creates one job after the other and drives each to its end, sometimes with several workers.

    Args:
        watch: checks the responses.
        number: the number of the author.
        seed: the seed of its choices.
        pause: the mean number of seconds between two reports of a worker.
        stop: set when no new job must be created; jobs then end early.
    """

    def __init__(
        self, watch: Watch, number: int, seed: int, pause: float, stop: asyncio.Event
    ) -> None:
        self._watch = watch
        self._name = f"writer {number}"
        self._chance = random.Random(f"{seed} {self._name}")  # noqa: S311 - to be repeatable
        self._pause = pause
        self._stop = stop
        # One set for each worker of a job, who are at it at the same time.
        self._connections = [watch.connections() for _ in range(_MOST_WORKERS)]
        self._numbers = itertools.count()

    async def write(self) -> None:
        """Create jobs and drive them until `stop` is set."""
        while not self._stop.is_set():
            job_id = await self._make()
            if job_id is None:
                continue
            self._watch.active.append(job_id)
            try:
                await self._move(job_id)
            finally:
                self._watch.active.remove(job_id)
                self._watch.recent.append(job_id)

    async def _make(self) -> int | None:
        number = next(self._numbers)
        prompt = f"{self._name} tells story {number}. It ends well."
        body = {"client_id": "acme", "prompt": prompt, "renderer": "external"}
        while not self._stop.is_set():
            service = self._watch.up(self._chance)
            job_id = await self._watch.make(
                self._name,
                self._connections[0][service.number],
                service,
                json.dumps(body).encode(),
                f"{self._name}-{number}".replace(" ", "-"),
            )
            if job_id is not None:
                return job_id
            await asyncio.sleep(_TRY_AGAIN)
        return None

    async def _move(self, job_id: int) -> None:
        # The service writes the storyboard: version 3. What shows that it has is the next step.
        for step in ("approve", "render"):
            if not await self._until_done(job_id, step):
                return
        workers = self._chance.choice((1, 1, 2, _MOST_WORKERS))
        reports = self._chance.randrange(4, 24)
        await asyncio.gather(
            *(self._work(job_id, worker, workers, reports) for worker in range(workers))
        )

    async def _work(self, job_id: int, worker: int, workers: int, reports: int) -> None:
        """Report progress; the first worker ends the job while others may still report."""
        connections = self._connections[worker]
        client = f"{self._name} worker {worker}"
        for number in range(reports):
            await asyncio.sleep(self._chance.expovariate(1 / self._pause))
            if self._stop.is_set():
                break
            body = {
                "percent": round(100 * number / reports, 1),
                "stage": f"{worker} of {workers}",
                "message": f"{client}, report {number}",
            }
            service = self._watch.up(self._chance)
            answer = await self._watch.change(
                self._watch.ledger.begin(client, job_id),
                connections[service.number],
                service,
                post(f"{_JOBS}/{job_id}/progress", json.dumps(body).encode()),
                changes=True,
            )
            if answer is not None and answer.status == _CONFLICT:
                return  # another worker has ended it
        if worker == 0:
            step = self._chance.choices(("complete", "fail", "cancel"), (3, 1, 1))[0]
            await self._until_done(job_id, step)

    async def _until_done(self, job_id: int, step: str) -> bool:
        """Repeat a step until it is acknowledged; return False if it never was."""
        body = b'{"error": "It did not end well."}' if step == "fail" else b""
        deadline = time.monotonic() + _GIVE_UP
        while time.monotonic() < deadline:
            service = self._watch.up(self._chance)
            answer = await self._watch.change(
                self._watch.ledger.begin(self._name, job_id),
                self._connections[0][service.number],
                service,
                post(f"{_JOBS}/{job_id}/{step}", body),
                changes=False,
            )
            if answer is not None and answer.status in _CHANGED:
                return True
            await asyncio.sleep(_TRY_AGAIN if answer is None else _PAUSE_AFTER_FAILURE)
        return False


def _items(body: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Return id, version and bytes of each job in a list, to compare the bytes with polls."""
    text = body.decode()
    decoder = json.JSONDecoder()
    at = text.index("[") + 1
    while text[at] != "]":
        job, end = decoder.raw_decode(text, at)
        yield job["id"], job["version"], text[at:end].encode()
        at = end + (text[end] == ",")
