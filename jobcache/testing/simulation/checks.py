"""Finds violations: stale reads, hidden commits, and callers that are left waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobcache.errors import LoadTimeout, SourceUnavailable
from jobcache.protocol.cell import Lease
from jobcache.testing.invariants import Violation
from jobcache.testing.scenarios import version_in
from jobcache.testing.simulation.actors import ACTOR

if TYPE_CHECKING:
    import asyncio

    from jobcache.protocol.entry import Entry
    from jobcache.testing.simulation.actors import Actor, Process, TierStack
    from jobcache.testing.simulation.state import State


class Checks:
    """Looks for what must not be.

    Args:
        state: of the simulation.
    """

    def __init__(self, state: State) -> None:
        self._state = state

    def after_step(self, *, known: bool) -> None:
        """Look for violations after a step.

        Args:
            known: the same schedule was found in order before, and only results are collected.

        Raises:
            Violation: there is one.
        """
        if self._state.loop.errors:
            raise Violation(f"a callback raised {self._state.loop.errors[0]!r}")
        for actor in self._state.actors:
            if actor.task is not None and actor.task.done() and not actor.process.dead:
                task, actor.task = actor.task, None
                self._ended(actor, task)
        if known:
            return
        quiet = self._quiet()
        if quiet:
            entry = self._state.carry_out(self._state.subject.backend.get(self._state.key))
            hidden = None if entry is None else self._state.invariants.hidden(version_in(entry))
            if entry is not None and hidden is not None:
                raise Violation(f"v{version_in(entry)} stays in the cache, and hides v{hidden}")
        for process in self._state.processes:
            if process.front is not None and not process.dead:
                behind = process.front.feed.behind
                self._check_local(process, process.front, settled=quiet and not behind)

    def at_end(self) -> None:
        """Look for violations when nothing more can be done.

        Raises:
            Violation: an actor still waits, or a task, a call or a lease was left behind.
        """
        for actor in self._state.actors:
            if actor.task is not None and not actor.process.dead:
                raise Violation(f"{actor.name} waits for ever")
        left = [
            task
            for task, context in self._state.loop.tasks.items()
            if not context[ACTOR].process.dead and context[ACTOR] in self._state.actors
        ]
        if left:
            raise Violation(f"{len(left)} tasks were left behind: {left[0].get_coro()}")
        for process in self._state.processes:
            cache = process.cache
            if (cache.reads.in_flight() or cache.values.in_flight()) and not process.dead:
                raise Violation(f"{process.name} still has a call under way")
        self._deliver_reports()

    def _deliver_reports(self) -> None:
        for process in self._state.processes:
            front = process.front
            if front is None or process.dead:
                continue
            if isinstance(front.held(self._state.key), Lease):
                raise Violation(f"a lease was left in the local tier of {process.name}")
            front.feed.catch_up()
        for process in self._state.processes:
            front = process.front
            if front is not None and not process.dead:
                front.feed.catch_up()  # again: others may owe a notification
                self._check_local(process, front, settled=True)

    def _check_local(self, process: Process, front: TierStack, *, settled: bool) -> None:
        """Check the entry that a read would get now from the local tier."""
        entry = front.backend.peek(self._state.key)
        if entry is None:
            return
        if self._state.simulator.postgres and not self._is_fresh(entry):
            return  # the next read confirms it, as it does after an interruption of the feed
        min_version, held = (
            self._state.min_version(process),
            f"v{version_in(entry)} stays in the local tier of {process.name}",
        )
        if version_in(entry) < min_version:
            raise Violation(f"{held}, although v{min_version} was visible")
        hidden = self._state.invariants.hidden(version_in(entry))
        if settled and hidden is not None:
            raise Violation(f"{held}, and hides v{hidden}")

    def _is_fresh(self, entry: Entry) -> bool:
        return self._state.now_ms < entry.stored_at_ms + entry.fresh_ms

    def _ended(self, actor: Actor, task: asyncio.Task[int]) -> None:
        line = actor.process.line
        if line is not None and actor.writes and (task.cancelled() or task.exception()):
            line.lost_entry()  # the writer has emptied the cell
        if task.cancelled():
            if not actor.cancelled:
                raise Violation(f"{actor.name} was cancelled, though nobody asked for it")
            return
        error = task.exception()
        if error is not None:
            expected = (
                isinstance(error, LoadTimeout)
                or (isinstance(error, SourceUnavailable) and self._state.load_failed)
                if not actor.writes
                else isinstance(error, ConnectionError)
            )
            if not expected:
                raise Violation(f"{actor.name} raised {error!r}") from error
            return
        version = task.result()
        # While the source is away, an entry past its freshness is served. One that was stored
        # before an interruption of the feed may be out of date.
        away = line is not None and self._state.load_failed
        if not actor.writes and version < actor.min_version and not away:
            raise Violation(
                f"{actor.name} returns v{version}, although v{actor.min_version} was visible when"
                " it began"
            )
        refused = actor.unannounced or (
            self._state.refused(actor)
            if self._state.simulator.guarded
            else version in actor.process.failed
        )
        if line is not None and actor.writes:
            if actor.hurried or refused:
                line.lost_entry()  # the writer has emptied the cell
            else:
                line.acknowledged(version)
        self._state.invariants.seen(actor.process.name, version, refused=refused)

    def _quiet(self) -> bool:
        """Return whether no writer is at work, and no operation of a writer is pending."""
        if any(actor.writes and self._at_work(actor) for actor in self._state.actors):
            return False
        if self._state.simulator.guarded:
            return not any(self._state.lives(step) for step in self._state.pending)
        return not any(
            step.actor.writes and self._state.lives(step) for step in self._state.pending
        )

    def _at_work(self, actor: Actor) -> bool:
        return actor.task is not None and not actor.process.dead
