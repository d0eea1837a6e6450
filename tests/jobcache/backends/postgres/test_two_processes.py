"""Two processes on one database: reports come late, feeds break, commits fail, writers die.

A state machine makes the schedules. It knows what the database holds, and checks that no process
goes back, that no process misses its own write, and that nothing is outdated once all reports have
come. For each rule of the backend there is a schedule that goes wrong without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from jobcache.backends.memory import MemoryBackend
from jobcache.backends.postgres.backend import PostgresBackend
from jobcache.protocol.backend import PublishResult
from jobcache.protocol.entry import Entry
from jobcache.testing.scenarios import entry_of
from tests.jobcache.backends.postgres.hand_feed import HandFeed

T = TypeVar("T")
KEY = "job:1:progress"
which = st.integers(0, 1)
readers = st.sampled_from(["r0", "r1"])
writers = st.sampled_from(["w0", "w1", "w2"])
HEARTBEAT = "a heartbeat"


@dataclass
class Read:
    """A read under way: the least that it may return, and the version that it has selected."""

    at_least: int
    token: str
    selected: int | None = None


@dataclass
class Write:
    """A write that has not been acknowledged, and its version once it is committed."""

    number: int
    token: str
    announced: bool
    version: int = 0
    publishing: asyncio.Task[PublishResult] | None = None


@dataclass
class Process:
    feed: HandFeed
    backend: PostgresBackend
    connected: bool = True
    inbox: list[str] = field(default_factory=list)
    seen: int = 0
    reads: dict[str, Read] = field(default_factory=dict)


class Processes(RuleBasedStateMachine):
    """`backend` and `loop` are set by the test that runs it."""

    loop: ClassVar[asyncio.AbstractEventLoop]
    backend: ClassVar[type[PostgresBackend]] = PostgresBackend

    def __init__(self) -> None:
        super().__init__()
        self.database = 1
        self.tokens = 0
        self.writes: dict[str, Write] = {}
        self.processes = [self._process() for _ in range(2)]

    def _process(self) -> Process:
        feed = HandFeed()
        feed.writers.on_sent = self._commit
        return Process(feed, self.backend(MemoryBackend(), feed))

    def _commit(self, payload: str) -> None:
        """A notification reaches each process that listens, some time."""
        for process in self.processes:
            if process.connected:
                process.inbox.append(payload)

    def run(self, operation: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(operation)

    def token(self) -> str:
        self.tokens += 1
        return f"t{self.tokens}"

    def returned(self, process: Process, version: int, at_least: int) -> None:
        assert version >= at_least, f"v{version} after v{at_least} in the same process"
        process.seen = max(process.seen, version)

    # --- readers ---

    @rule(number=which, reader=readers)
    def begin(self, number: int, reader: str) -> None:
        process = self.processes[number]
        if reader in process.reads:
            return
        read = Read(process.seen, self.token())
        found = self.run(process.backend.lease(KEY, read.token))
        if isinstance(found, Entry):
            # Served now; or, past its freshness, while the source is away. Else it is loaded again.
            self.returned(process, found.version, read.at_least)
            if found.fresh_ms > 0:
                return
            assert not process.feed.live
        process.reads[reader] = read

    @rule(number=which, reader=readers)
    def select(self, number: int, reader: str) -> None:
        read = self.processes[number].reads.get(reader)
        if read is not None and read.selected is None:
            read.selected = self.database

    @rule(number=which, reader=readers)
    def finish(self, number: int, reader: str) -> None:
        process = self.processes[number]
        read = process.reads.get(reader)
        if read is None or read.selected is None:
            return
        del process.reads[reader]
        self.run(process.backend.publish(KEY, read.token, entry_of(read.selected)))
        self.returned(process, read.selected, read.at_least)

    @rule(number=which)
    def load_at_once(self, number: int) -> None:
        self.begin(number, "r0")
        self.select(number, "r0")
        self.finish(number, "r0")

    # --- writers ---

    @rule(number=which, writer=writers, announced=st.booleans())
    def write(self, number: int, writer: str, announced: bool = True) -> None:  # noqa: FBT001, FBT002 - of a schedule
        if writer not in self.writes:
            write = self.writes[writer] = Write(number, self.token(), announced)
            backend = self.processes[number].backend
            self.run(begin_write(backend, write.token, announced=announced))

    @rule(writer=writers)
    def commit(self, writer: str) -> None:
        write = self.writes.get(writer)
        if write is None or write.version:
            return
        self.database += 1
        write.version = self.database
        if write.announced:
            backend = self.processes[write.number].backend
            self._commit(backend.notification([KEY], write.token).payload)

    @rule(writer=writers)
    def publish(self, writer: str) -> None:
        write = self.writes.get(writer)
        if write is not None and write.version and write.publishing is None:
            publish = self.processes[write.number].backend.publish
            write.publishing = self.loop.create_task(
                publish(KEY, write.token, entry_of(write.version))
            )
        self.acknowledge()

    @rule(writer=writers)
    def fail(self, writer: str) -> None:
        """The commit, made or not, has raised an error."""
        write = self.writes.get(writer)
        if write is not None and write.publishing is None:
            del self.writes[writer]
            backend = self.processes[write.number].backend
            self.run(backend.abandon(KEY, write.token))

    @rule(writer=writers)
    def roll_back(self, writer: str) -> None:
        write = self.writes.get(writer)
        if write is not None and not write.version:
            del self.writes[writer]
            self.run(self.processes[write.number].backend.publish(KEY, write.token, None))

    @rule(writer=writers)
    def die(self, writer: str) -> None:
        """The task of a writer is lost; its notification is not."""
        write = self.writes.get(writer)
        if write is not None and write.announced and write.publishing is None:
            del self.writes[writer]

    def acknowledge(self) -> None:
        """Acknowledge the writes whose publish has returned."""
        self.run(ticks())
        for writer, write in list(self.writes.items()):
            if write.publishing is not None and write.publishing.done():
                write.publishing.result()
                del self.writes[writer]
                process = self.processes[write.number]
                process.seen = max(process.seen, write.version)

    # --- feeds ---

    @rule(number=which)
    def deliver(self, number: int) -> None:
        process = self.processes[number]
        if process.inbox:
            payload = process.inbox.pop(0)
            if payload == HEARTBEAT:
                process.feed.up()
            else:
                process.feed.deliver(payload)
        self.acknowledge()

    @rule(number=which)
    def heartbeat(self, number: int) -> None:
        """Connect, if need be, and send a heartbeat."""
        process = self.processes[number]
        process.connected = True
        if HEARTBEAT not in process.inbox:
            process.inbox.append(HEARTBEAT)

    @rule(number=which)
    def cut(self, number: int) -> None:
        process = self.processes[number]
        process.connected = False
        process.inbox.clear()
        process.feed.cut()
        self.acknowledge()

    @rule(number=which)
    def lapse(self, number: int) -> None:
        self.processes[number].feed.lapse()

    @rule(number=which)
    def time_out(self, number: int) -> None:
        self.processes[number].feed.time_out()
        self.acknowledge()

    # --- what is served ---

    @invariant()
    def no_process_goes_back(self) -> None:
        for process in self.processes:
            entry = process.backend.peek(KEY)
            if entry is not None:
                self.returned(process, entry.version, process.seen)

    @invariant()
    def nothing_is_outdated_once_all_is_reported(self) -> None:
        late = [each for process in self.processes for each in process.inbox]
        unfinished = [each for each in self.writes.values() if each.version]
        if set(late) - {HEARTBEAT} or unfinished:
            return
        for process in self.processes:
            entry = process.backend.peek(KEY)
            assert entry is None or entry.version == self.database

    def teardown(self) -> None:
        for process in self.processes:
            process.feed.cut()
        tasks = [each.publishing for each in self.writes.values() if each.publishing is not None]
        if tasks:
            self.run(asyncio.wait_for(asyncio.gather(*tasks), 10))


async def begin_write(backend: PostgresBackend, token: str, *, announced: bool) -> None:
    if announced:
        backend.announce(KEY, token)
    else:
        await backend.fence(KEY, token)


async def ticks() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


def test_no_schedule_goes_wrong(*, long: bool) -> None:
    with asyncio.Runner() as runner:
        run_state_machine_as_test(
            type("Machine", (Processes,), {"loop": runner.get_loop()}),
            settings=settings(
                max_examples=5000 if long else 40,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


def keeps_leases_of_others(backend: type[PostgresBackend]) -> None:
    async def publish(self: Any, key: str, token: str, entry: Entry | None) -> PublishResult:
        if (key, token) not in self._writing and not self._feed.live:
            return PublishResult.NOTHING
        return await PostgresBackend.publish(self, key, token, entry)

    backend.publish = publish  # type: ignore[method-assign]


def keeps_entries_when_cut(backend: type[PostgresBackend]) -> None:
    backend.resumed = lambda _: None  # type: ignore[method-assign]
    backend.interrupted = lambda _: None  # type: ignore[method-assign]


def keeps_entries_for_loads_that_began_before(backend: type[PostgresBackend]) -> None:
    backend.resumed = lambda _: None  # type: ignore[method-assign]


def takes_leases_while_not_live(backend: type[PostgresBackend]) -> None:
    async def lease(self: Any, key: str, token: str) -> Any:
        return await self._local.lease(key, token)

    backend.lease = lease  # type: ignore[method-assign]
    backend.resumed = lambda _: None  # type: ignore[method-assign]


def does_not_wait_for_its_own_report(backend: type[PostgresBackend]) -> None:
    async def committed(self: Any, key: str, token: str, *, announced: bool) -> None:
        self._feed.forget(key, token)
        if not announced:
            await self._feed.notify((key,), token)

    backend._committed = committed  # type: ignore[method-assign]


def ignores_reports(backend: type[PostgresBackend]) -> None:
    backend.changed = lambda *_: None  # type: ignore[method-assign]


def keeps_the_cell_without_a_report(backend: type[PostgresBackend]) -> None:
    async def committed(self: Any, key: str, token: str, *, announced: bool) -> None:
        if not announced:
            await self._feed.notify((key,), token)
        await self._feed.arrived(key, token)

    backend._committed = committed  # type: ignore[method-assign]


def forgets_writes_that_failed(backend: type[PostgresBackend]) -> None:
    async def abandon(self: Any, key: str, token: str) -> None:
        self._feed.forget(key, token)

    backend.abandon = abandon  # type: ignore[method-assign]


def fills_cells_after_a_report(backend: type[PostgresBackend]) -> None:
    async def publish(self: Any, key: str, token: str, entry: Entry | None) -> PublishResult:
        if entry is not None and (key, token) not in self._writing and self._feed.live:
            await self._local.lease(key, token)
        return await PostgresBackend.publish(self, key, token, entry)

    backend.publish = publish  # type: ignore[method-assign]


Mutate = Callable[[type[PostgresBackend]], None]
SCHEDULES: dict[Mutate, str] = {
    ignores_reports: (
        "begin 0 r0, select 0 r0, finish 0 r0, write 1 w0, commit w0, die w0, deliver 0, deliver 1"
    ),
    fills_cells_after_a_report: (
        "begin 0 r0, select 0 r0, write 1 w0, commit w0, die w0, deliver 0, deliver 1, finish 0 r0"
    ),
    keeps_leases_of_others: (
        "begin 0 r0, select 0 r0, finish 0 r0, lapse 0, heartbeat 0, write 1 w0, commit w0,"
        " begin 0 r1, select 0 r1, finish 0 r1, deliver 0"
    ),
    does_not_wait_for_its_own_report: (
        "begin 0 r0, select 0 r0, finish 0 r0, write 0 w0, commit w0, publish w0"
    ),
    keeps_the_cell_without_a_report: (
        "begin 0 r0, select 0 r0, finish 0 r0, write 0 w0, commit w0, publish w0, time_out 0"
    ),
    keeps_entries_when_cut: (
        "begin 0 r0, select 0 r0, finish 0 r0, cut 0, write 1 w0, commit w0, die w0, deliver 1,"
        " heartbeat 0, deliver 0"
    ),
    keeps_entries_for_loads_that_began_before: (
        "begin 0 r0, select 0 r0, finish 0 r0, cut 0, begin 0 r0, select 0 r0, write 1 w0,"
        " commit w0, die w0, deliver 1, heartbeat 0, deliver 0, finish 0 r0"
    ),
    takes_leases_while_not_live: (
        "cut 0, begin 0 r0, select 0 r0, write 1 w0, commit w0, die w0, deliver 1, heartbeat 0,"
        " deliver 0, finish 0 r0"
    ),
    forgets_writes_that_failed: (
        "begin 0 r0, select 0 r0, finish 0 r0, write 1 w0 unannounced, commit w0, fail w0"
    ),
}
"""By the rule whose absence each one catches."""


def play(backend: type[PostgresBackend], schedule: str) -> None:
    with asyncio.Runner() as runner:
        machine = type("Machine", (Processes,), {"loop": runner.get_loop(), "backend": backend})()
        try:
            for step in schedule.split(", "):
                name, *words = step.split()
                arguments = [int(each) if each.isdigit() else each for each in words]
                if arguments[-1] == "unannounced":
                    arguments[-1] = False
                getattr(machine, name)(*arguments)
                machine.no_process_goes_back()
                machine.nothing_is_outdated_once_all_is_reported()
        finally:
            machine.teardown()


@pytest.mark.parametrize("mutate", SCHEDULES, ids=lambda each: each.__name__)
def test_each_rule_is_needed(mutate: Mutate) -> None:
    play(PostgresBackend, SCHEDULES[mutate])
    broken = type("Broken", (PostgresBackend,), {})
    mutate(broken)
    with pytest.raises(AssertionError):
        play(broken, SCHEDULES[mutate])
