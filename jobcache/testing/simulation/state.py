"""The state of a simulation: its processes, its store, its source, and the pending steps."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Protocol, TypeVar

from jobcache.testing.invariants import Invariants
from jobcache.testing.simulation.actors import ACTOR
from jobcache.testing.simulation.choices import Choice
from jobcache.testing.simulation.notifications import Servers
from jobcache.testing.simulation.stepped_feed import SteppedFeed
from jobcache.testing.simulation.virtual_loop import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable, Iterator, Sequence
    from typing import Any

    from jobcache.protocol.cell import Cell
    from jobcache.testing.simulation.actors import Actor, Process
    from jobcache.testing.simulation.configuration import Simulator
    from jobcache.testing.subject import Subject

T = TypeVar("T")
START_MS = 1_700_000_000_000


class CarryOut(Protocol):
    """Runs one operation of a backend to its end."""

    def __call__(self, operation: Coroutine[Any, Any, T], /) -> T:
        """Return its result, or raise its error."""


class OpenTransaction(Protocol):
    """A transaction that holds the lock of the row."""

    @property
    def actor(self) -> Actor:
        """The writer."""

    def commit(self) -> None:
        """Commit."""

    def roll_back(self) -> None:
        """Roll back."""


class State:
    """Everything at one point of a schedule.

    Args:
        simulator: what is explored.
        subject: the backend, and a way to lose a cell.
        key: whose cell; empty.
        carry_out: runs one operation of the subject to its end.
        snapshot: returns the content of a cell; None: the transition table tells it.

    Attributes:
        database: the version that the source holds.
        cell: what the cell has to hold, by the transition table.
        now_ms: the wall clock.
        row_lock: the transaction that has raised the version and not ended.
        tokens: which writer fenced with a token.
        pending: the steps that actors wait for.
        faults_left: how many faults may still happen.
        focus: the actor that goes on next, if it can: where nobody would notice another order.
        load_failed: whether a load has ever failed.
        servers: with `postgres`, the servers that notify.
        closing: whether the simulation is over, so that waiting actors are cancelled.
    """

    def __init__(
        self,
        simulator: Simulator,
        subject: Subject,
        key: str,
        carry_out: CarryOut,
        snapshot: Callable[[str], Hashable] | None,
    ) -> None:
        self.simulator = simulator
        self.subject = subject
        self.key = key
        self.carry_out = carry_out
        self._snapshot = snapshot
        self._seen: Hashable = None
        self._unseen = True
        self.loop = VirtualLoop()  # type: ignore[abstract] # there is nothing to read or to signal
        self.invariants = Invariants(
            remembers=simulator.guarded or simulator.tiered or simulator.postgres
        )
        self.processes: list[Process] = []
        self.actors: list[Actor] = []
        self.database = 1
        self.cell: Cell = None
        self.now_ms = START_MS
        self.row_lock: OpenTransaction | None = None
        self.tokens: dict[str, Actor] = {}
        self.pending: list[Choice] = []
        self.faults_left = simulator.faults
        self.focus: Actor | None = None
        self.load_failed = False
        self.servers = Servers(self)
        self.closing = False

    def content(self) -> Hashable:
        """Return the content of the cell."""
        if self._snapshot is None:
            return self.cell
        if self._unseen:
            self._seen, self._unseen = self._snapshot(self.key), False
        return self._seen

    def cell_of(self, actor: Actor) -> Hashable:
        """Return the content of the cell that an actor uses."""
        front = actor.process.front
        if front is not None and self.simulator.postgres:
            return front.held(self.key)
        return self.content()

    def ask(self, operation: Coroutine[Any, Any, T]) -> T:
        """Carry out an operation of the backend that may change the cell."""
        if not self.simulator.tiered:
            self._unseen = True
            return self.carry_out(operation)
        before, visible = self.content(), self.invariants.visible
        self._unseen = True
        result = self.carry_out(operation)
        if self._snapshot is None or self.content() != before:
            for process in self.processes:
                # A process without readers never fills its local tier.
                front = process.front
                if front is not None and process.reads and not process.dead:
                    assert isinstance(front.feed, SteppedFeed)
                    front.feed.report(visible)
        return result

    def deliver(self, process: Process, feed: SteppedFeed) -> None:
        """Deliver the next report to a process."""
        context = contextvars.copy_context()
        context.run(ACTOR.set, process.ahead)
        self.loop.call_soon(feed.deliver, context=context)
        self.loop.run_ready()

    def evict(self) -> None:
        """Lose the cell."""
        self.cell = None
        self.ask(self.subject.evict(self.key))

    async def step(
        self,
        label: str,
        act: Callable[[], T],
        *,
        detail: str = "",
        error: type[Exception] | None = None,
        faults: Sequence[str] = (),
        changes: bool = False,
        version: int | None = None,
        ready: Callable[[], bool] | None = None,
        abandon: Callable[[], None] = lambda: None,
    ) -> T:
        """Wait until the explorer has `act` done, or not done."""
        if self.closing:
            raise asyncio.CancelledError
        actor = ACTOR.get()
        reply: asyncio.Future[T] = self.loop.create_future()
        name = f"{actor.name} {label}"
        step = Choice(
            name,
            name + detail,
            actor,
            act,
            reply,
            error=error,
            faults=tuple(faults),
            changes=changes,
            version=version,
            ready=ready,
            abandon=abandon,
        )
        if step.pause:
            step.content_before = self.cell_of(actor)
        self.pending.append(step)
        try:
            return await reply
        finally:
            if step in self.pending:
                self.pending.remove(step)

    async def pause(self, label: str, seconds: float) -> None:
        """Wait until the explorer ends a pause."""
        del seconds  # the explorer decides how long it is
        await self.step(label, lambda: None)

    def fates(self, *, changes: bool) -> Iterator[str]:
        """Yield the ways in which an operation of the backend can fail."""
        kinds = self.simulator.kinds
        guarded, tiered = self.simulator.guarded, self.simulator.tiered
        if "lose" in kinds and (guarded or not tiered):
            yield "lost"
            if changes:
                yield "unanswered"
        if "late" in kinds and changes and not (guarded or tiered):
            yield "late"
        if "slow" in kinds and (guarded or tiered):
            yield "slow"

    def note(self, actor: Actor, what: str, result: Hashable) -> None:
        """Add to the memory of an actor what happened to it."""
        memory, front = actor.memory, actor.process.front
        # A reader sees the local tier without a step, but only when it runs.
        local: Hashable = None
        if (
            front is not None
            and not actor.writes
            and (what[-5:] != " load" or not self.simulator.postgres)
        ):
            local = front.held(self.key), front.feed.live
        memory.hash = hash((memory.hash, what, result, local, self.now_ms, self.loop.time()))

    def lives(self, step: Choice) -> bool:
        """Return whether a step can still happen: its process lives, or the step was sent."""
        return step.reply is None or not step.actor.process.dead

    def others(self, actor: Actor) -> list[Actor]:
        """Return all actors but this one."""
        return [other for other in self.actors if other is not actor]

    def reads_on(self, process: Process) -> bool:
        """Return whether a reader of a process may still read."""
        if process.dead:
            return False
        readers = [actor for actor in self.actors if actor.process is process and not actor.writes]
        return any(actor.turns_left or actor.task for actor in readers) or any(
            step.actor in readers for step in self.pending
        )

    def min_version(self, process: Process) -> int:
        """Return the least version that a read which begins now in a process may return."""
        front = process.front
        if process.line is not None:
            return process.line.min_version(self.invariants.min_version(process.name, 0))
        feed = None if front is None else front.feed
        assert feed is None or isinstance(feed, SteppedFeed)
        return self.invariants.min_version(process.name, None if feed is None else feed.reported)

    def waits_for_report(self, actor: Actor) -> bool:
        """Return whether a writer waits for the report of its own change."""
        return (
            actor.writes
            and not actor.process.dead
            and self.loop.has_timer(lambda context: context.get(ACTOR) is actor)
        )

    def cut_off(self, actor: Actor, version: int) -> bool:
        """Return whether a writer can no longer publish the `version` that it committed."""
        if actor.process.dead or actor.unknown:
            return True
        return not self.simulator.guarded and version in actor.process.failed

    def refused(self, actor: Actor) -> bool:
        """Return whether the cache has counted an error since the actor began."""
        return actor.process.cache.statistics.errors > actor.errors
