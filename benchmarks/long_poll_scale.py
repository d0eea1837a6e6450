"""Hold thousands of polls with `Prefer: wait`: delay and cost of their updates.

One process of the service holds all requests, several for each job; with `--processes` several do,
and each job is waited for in all of them. Updates of the jobs come at a steady rate. A waiter that
gets a response asks again at once, with the version that it received. The measured delay is what a
user notices: from the acknowledgement of the writer to the response of the waiter, or 0 if the
response came first. Memory is the growth of the processes since before the first request, divided
by the number of requests.

With `--backend memory` the updates go to the process that holds the requests. With the others they
go to another process on the same database and Redis, so the change feed wakes the waiters. With
`postgres` the notifications are counted, too, and the connections that listen to them: each gets
each notification once. Entries do not expire, so every load is for a change.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import random
import re
import resource
import shlex
import sys
import time
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import TYPE_CHECKING, cast

import asyncpg
import uvloop

from app.devservers import PostgresServer, RedisServer, ServerFailed
from benchmarks.machine import surroundings
from benchmarks.process import exit_at_sigterm
from benchmarks.process_cpu import processor_seconds, resident
from benchmarks.service import HOST, Service, ServiceFailed
from jobcache.backends.postgres.factory import APPLICATION_NAME
from jobcache.backends.postgres.payloads import channel_of
from loadtests import percentiles
from loadtests.arguments import count, positive

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

P99_MS = 50.0
HELD_KB = 40.0

_PATIENCE = 20.0  # seconds for what must not take so long
_KEPT = 2.0  # seconds that a connection is kept unused: fewer than the service keeps it
_LIFETIME = "3600"  # seconds of entries: more than a run takes
_AT_ONCE = 100  # connections being made
_OTHER_FILES = 500
_FIELDS = re.compile(rb'\r\n(?:content-length: (\d+)|etag: "(\d+)-)', re.IGNORECASE)
_PROMPT = "A cat sits on a mat. A dog runs over a hill."


class Wrong(Exception):  # noqa: N818 - says what is the matter
    """A response was wrong, or there was none."""


class _Wire(asyncio.Protocol):
    """A keep-alive connection, and whom to tell of each answer: status, version by its ETag."""

    def __init__(self, told: Callable[[int, int], None]) -> None:
        self.told = told
        self.lost = False
        self._received = b""

    def ask(self, request: bytes) -> None:
        self._transport.write(request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - asyncio's name
        self.lost = True
        self.told(0, 0)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, whole, body = self._received.partition(b"\r\n\r\n")
        if not whole:
            return
        length = version = 0
        for digits, tag in _FIELDS.findall(head):
            length, version = int(digits or length), int(tag or version)
        if len(body) >= length:
            self._received = b""
            self.told(int(head[9:12]), version)

    def close(self) -> None:
        self.told = lambda *_: None
        self._transport.close()


@dataclass
class Seen:
    """What the clients have received of one job.

    Attributes:
        acknowledged: of each update its version, and when it was sent and acknowledged.
        answers: by waiter, versions and times, in order.
    """

    acknowledged: list[tuple[int, float, float]] = field(default_factory=list)
    answers: list[tuple[list[int], list[float]]] = field(default_factory=list)

    def answered(self) -> Iterable[tuple[float, float] | None]:
        """Of each update and each waiter: seconds from its sending, and from its acknowledgement.

        The latter is below 0 if the answer came first. None: there was no answer.
        """
        for version, sent, acknowledged in self.acknowledged:
            for versions, times in self.answers:
                first = bisect_left(versions, version)
                if first == len(versions):
                    yield None
                else:
                    yield times[first] - sent, times[first] - acknowledged


class Waiters:
    """Clients that each wait with a poll, of the jobs in turn, and repeat it after a response.

    Args:
        ports: of the processes. A job's first client is a client of the first one, and so on.
        versions: of the jobs, by their numbers.
    """

    def __init__(self, ports: Sequence[int], versions: dict[int, int]) -> None:
        self._ports = ports
        self._versions = versions
        self._wires: list[_Wire] = []
        self.seen: dict[int, Seen] = defaultdict(Seen)
        self.failures: list[str] = []

    async def come(self, count: int) -> None:
        """Connect, and start to wait."""
        door = asyncio.Semaphore(_AT_ONCE)
        everywhere = ((port, job) for port in self._ports for job in self._versions)

        async def one(port: int, job: int) -> None:
            async with door:
                await self._one(port, job)

        await asyncio.gather(*(one(*each) for each in islice(cycle(everywhere), count)))

    async def _one(self, port: int, job: int) -> None:
        versions: list[int] = []
        times: list[float] = []
        self.seen[job].answers.append((versions, times))
        held = self._versions[job]

        def told(status: int, version: int) -> None:
            nonlocal held
            if status == 200:
                versions.append(version)
                times.append(time.perf_counter())
                held = version
            elif status != 304:
                self.failures.append(f"job {job} was answered {status}")
                return
            wire.ask(_wait(job, held))

        wire = _Wire(told)
        await asyncio.get_running_loop().create_connection(lambda: wire, HOST, port)
        self._wires.append(wire)
        wire.ask(_wait(job, held))

    def go(self) -> None:
        """Hang up."""
        for wire in self._wires:
            wire.close()


class Writer:
    """Reports progress of the jobs, in random order, at a steady rate."""

    def __init__(self, port: int, waiters: Waiters, jobs: Sequence[int], seed: int) -> None:
        self._port = port
        self._waiters = waiters
        self._idle: list[tuple[float, _Wire]] = []
        order = list(jobs)
        random.Random(seed).shuffle(order)  # noqa: S311 - an order, not a secret
        self._jobs = cycle(order)
        self._percents = cycle(range(100))
        self.took: list[float] = []

    async def write(self, rate: float, seconds: float) -> None:
        """Send updates when they are due, at the given rate."""
        began = time.perf_counter()
        async with asyncio.timeout(seconds + _PATIENCE), asyncio.TaskGroup() as updates:
            for number in range(round(rate * seconds)):
                await asyncio.sleep(began + number / rate - time.perf_counter())
                updates.create_task(self._update())

    async def _update(self) -> None:
        job = next(self._jobs)
        body = b'{"percent":%d}' % next(self._percents)
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[tuple[int, int, float]] = loop.create_future()
        wire = await self._connected()
        wire.told = lambda status, version: answered.set_result(
            (status, version, time.perf_counter())
        )
        sent = time.perf_counter()
        wire.ask(
            b"POST /api/v2/jobs/%d/progress HTTP/1.1\r\nHost: %b\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (job, HOST.encode(), len(body), body)
        )
        status, version, at = await answered
        if status != 200:
            raise Wrong(f"an update of job {job} was answered {status}")
        wire.told = lambda *_: None
        self._idle.append((at, wire))
        self.took.append(at - sent)
        self._waiters.seen[job].acknowledged.append((version, sent, at))

    async def _connected(self) -> _Wire:
        while self._idle:
            used, idle = self._idle.pop()
            if time.perf_counter() - used < _KEPT:
                return idle
            idle.close()
        wire = _Wire(lambda *_: None)
        await asyncio.get_running_loop().create_connection(lambda: wire, HOST, self._port)
        return wire

    def close(self) -> None:
        """Hang up."""
        for _, wire in self._idle:
            wire.close()


def _wait(job: int, version: int) -> bytes:
    return (
        f"GET /api/v2/jobs/{job} HTTP/1.1\r\nHost: {HOST}\r\n"
        f'If-None-Match: "{version}-0"\r\nPrefer: wait=60\r\n\r\n'
    ).encode()


@dataclass
class Notified:
    """What a connection beside those of the service has seen of PostgreSQL's notifications.

    Attributes:
        count: how many there were, without heartbeats.
        listeners: how many connections of the service listen.
    """

    count: int = 0
    listeners: int = 0


@contextlib.asynccontextmanager
async def listening(server: PostgresServer | None) -> AsyncIterator[Notified | None]:
    """Count the notifications until the end of the block."""
    if server is None:
        yield None
        return
    notified = Notified()

    def add(*_: object) -> None:
        notified.count += 1

    connection = await asyncpg.connect(host=str(server.socket_directory), user="postgres")
    try:
        await connection.add_listener(channel_of(""), add)
        notified.listeners = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1", APPLICATION_NAME
        )
        yield notified
        await connection.fetchval("SELECT 1")  # whatever was sent before has come now
    finally:
        await connection.close()


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a run.

    Attributes:
        held: requests held at the same time.
        processes: that hold them.
        jobs: for so many jobs.
        updates: acknowledged ones.
        delays_ms: of each update and each of its waiters, from the acknowledgement on, sorted.
        spans_ms: the same, from the sending on.
        missed: waiters that never got an update.
        failures: answers that were neither 200 nor 304.
        writes_ms: how long each update took, sorted.
        cpu: processor time of the processes that hold, a second.
        interruptions: of the feeds, during the updates; None without one.
        loads: by each process that holds, during the updates.
        notified: what was counted of PostgreSQL's notifications; None without them.
        held_kb: memory per held request, at first and at the end of the run, the larger of both.
    """

    held: int
    processes: int
    jobs: int
    updates: int
    delays_ms: list[float]
    spans_ms: list[float]
    missed: int
    failures: list[str]
    writes_ms: list[float]
    cpu: float
    interruptions: int | None
    loads: list[int]
    notified: Notified | None
    held_kb: float

    def broken(self) -> list[str]:
        """Return the limits that were not kept, as sentences."""
        p99 = percentile(self.delays_ms, 99)
        found = [f"wrong answer: {failure}" for failure in self.failures[:5]]
        if self.missed or not self.delays_ms:
            found.append(f"{self.missed} waiters have missed an update")
        if p99 >= P99_MS:
            found.append(f"p99 is {p99:.1f} ms, not below {P99_MS:g}")
        if self.held_kb >= HELD_KB:
            found.append(f"a held request takes {self.held_kb:.1f} kB, not below {HELD_KB:g}")
        if max(self.loads) > self.updates:
            found.append(f"{max(self.loads)} loads by a process, for {self.updates} updates")
        if self.notified is not None:
            if self.notified.count != self.updates:
                found.append(f"{self.notified.count} notifications of {self.updates} updates")
            if self.notified.listeners != self.processes + 1:
                found.append(
                    f"{self.notified.listeners} connections listen, not one of each process"
                )
        return found


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the percentile of the values; not a number if there are none."""
    found = percentiles.percentile(values, percent)
    return math.nan if found is None else found


async def run(
    options: argparse.Namespace,
    holding: Sequence[Service],
    written: Service,
    notifying: PostgresServer | None,
) -> Result:
    """Hold the requests, send the updates, and record the responses."""
    versions = written.rendering(options.jobs, _PROMPT)
    processes: list[int] = [service.stats()["process"] for service in holding]
    for service in holding:
        for job in versions:
            service.call("GET", f"/api/v2/jobs/{job}")  # so that its memory has every entry before
    before = sum(map(resident, processes))
    waiters = Waiters([service.port for service in holding], versions)
    writer = Writer(written.port, waiters, list(versions), options.seed)
    try:
        await waiters.come(options.held)
        await _held(holding, options.held)
        grown = sum(map(resident, processes)) - before
        interrupted, spent = _interruptions(holding), sum(map(processor_seconds, processes))
        loaded = [_loads(service) for service in holding]
        async with listening(notifying) as notified:
            await writer.write(options.rate, options.seconds)
            cpu = sum(map(processor_seconds, processes)) - spent
            await _told(waiters)
        loads = [
            _loads(service) - earlier for service, earlier in zip(holding, loaded, strict=True)
        ]
        await _held(holding, options.held)
        grown = max(grown, sum(map(resident, processes)) - before)
    finally:
        writer.close()
        waiters.go()
    answered = [each for seen in waiters.seen.values() for each in seen.answered()]
    came = [each for each in answered if each is not None]
    return Result(
        held=options.held,
        processes=len(holding),
        jobs=len(versions),
        updates=len(writer.took),
        delays_ms=sorted(1000 * max(0.0, delay) for _, delay in came),
        spans_ms=sorted(1000 * span for span, _ in came),
        missed=len(answered) - len(came),
        failures=waiters.failures,
        writes_ms=sorted(1000 * took for took in writer.took),
        cpu=cpu / options.seconds,
        interruptions=None if interrupted is None else (_interruptions(holding) or 0) - interrupted,
        loads=loads,
        notified=notified,
        held_kb=grown / options.held / 1000,
    )


async def _held(services: Sequence[Service], count: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    while (held := await asyncio.to_thread(_waits, services)) != count:
        if time.monotonic() > deadline:
            raise Wrong(f"{held} requests are held instead of {count}")
        await asyncio.sleep(0.1)


def _waits(services: Sequence[Service]) -> int:
    return sum(service.stats()["held"]["waits"] for service in services)


def _loads(service: Service) -> int:
    return int(service.stats()["statistics"]["misses"])


async def _told(waiters: Waiters) -> None:
    # an update that has not arrived by then counts as missed
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if all(None not in seen.answered() for seen in waiters.seen.values()):
            return
        await asyncio.sleep(0.2)


def _interruptions(services: Sequence[Service]) -> int | None:
    feeds = [service.stats()["statistics"]["feed"] for service in services]
    return None if None in feeds else sum(int(feed["interruptions"]) for feed in feeds)


def report(result: Result, backend: str) -> list[str]:
    """Return the figures as a table."""
    delays, spans, writes = result.delays_ms, result.spans_ms, result.writes_ms
    due = len(delays) + result.missed
    cuts = result.interruptions
    feed = [] if cuts is None else [f"| interruptions of the feed | {cuts} | |"]
    if result.notified is not None:
        each = result.processes + 1
        feed += [
            f"| notifications | {result.notified.count} | {result.updates} |",
            f"| connections that listen | {result.notified.listeners} | {each} |",
        ]
    place = "one process" if result.processes == 1 else f"{result.processes} processes"
    how = "by itself" if backend == "memory" else "by another one, through the feed"
    return [
        f"## {result.held} requests held in {place}, on {backend}, woken {how}",
        "",
        "| | | limit |",
        "| --- | --- | --- |",
        f"| updates of {result.jobs} jobs | {result.updates} | |",
        f"| answers due, and come | {due}, {len(delays)} | all |",
        f"| p50 from acknowledgement to answer, ms | {percentile(delays, 50):.1f} | |",
        f"| p99, ms | {percentile(delays, 99):.1f} | {P99_MS:g} |",
        f"| longest, ms | {percentile(delays, 100):.1f} | |",
        f"| p50 from sending the update to answer, ms | {percentile(spans, 50):.1f} | |",
        f"| p99, ms | {percentile(spans, 99):.1f} | |",
        f"| p50 from sending the update to acknowledgement, ms | {percentile(writes, 50):.1f} | |",
        f"| p99, ms | {percentile(writes, 99):.1f} | |",
        f"| processor time a second, s | {result.cpu:.2f} | |",
        *feed,
        f"| most loads by a process | {max(result.loads)} | {result.updates} |",
        f"| memory per held request, kB | {result.held_kb:.1f} | {HELD_KB:g} |",
        "",
    ]


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        most = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def main(arguments: Sequence[str]) -> int:
    """Run the measurement and print its table; return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.backend == "memory" and options.processes > 1:
        parser.error("argument --processes: with the backend memory there is one")
    around, load = surroundings(), os.getloadavg()[0]
    _allow_files(options.held + _OTHER_FILES)
    try:
        with contextlib.ExitStack() as stack:
            settings = {
                "JOBCACHE_BACKEND": options.backend,
                "JOBCACHE_RENDERER": "simulated",
                "JOBCACHE_TTL": _LIFETIME,
            }
            postgres = None
            if options.backend != "memory":
                if options.backend != "postgres":
                    settings["REDIS_URL"] = stack.enter_context(RedisServer()).url
                postgres = stack.enter_context(PostgresServer())
                settings["DATABASE_URL"] = postgres.url()
            holding = [stack.enter_context(Service(settings)) for _ in range(options.processes)]
            # In one process a waiter is woken by the write itself, and not by the feed.
            written = holding[0] if postgres is None else stack.enter_context(Service(settings))
            for service in {*holding, written}:
                service.wait_until_ready()
            runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
            notifying = postgres if options.backend == "postgres" else None
            result = runner.run(run(options, holding, written, notifying))
    except (ServerFailed, ServiceFailed, Wrong) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    broken = result.broken()
    lines = [
        *report(result, options.backend),
        f"Taken with: {', '.join(f'{k} {v}' for k, v in around.items())}.",
        f"Command: `python -m benchmarks.long_poll_scale {shlex.join(arguments)}".rstrip() + "`",
        f"Load of the machine: {load:.1f} before, {os.getloadavg()[0]:.1f} at the end.",
        *([""] if broken else []),
        *broken,
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if broken else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.long_poll_scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--backend", choices=["memory", "redis", "tiered", "postgres"], default="memory"
    )
    parser.add_argument("--held", type=count, default=5000, help="requests at a time; 5000")
    parser.add_argument("--processes", type=count, default=1, help="that hold them; 1")
    parser.add_argument("--jobs", type=count, default=1000, help="they wait for; 1000")
    parser.add_argument("--rate", type=positive, default=100.0, help="updates a second; 100")
    parser.add_argument("--seconds", type=positive, default=30.0, help="of updates; 30")
    parser.add_argument("--seed", type=int, default=1, help="of the order of jobs; 1")
    return parser


if __name__ == "__main__":
    exit_at_sigterm()
    sys.exit(main(sys.argv[1:]))
