"""What can be done next in a simulation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobcache.testing.simulation.choices import WORDS, Option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobcache.testing.simulation.actors import TierStack
    from jobcache.testing.simulation.choices import Choice
    from jobcache.testing.simulation.state import State


class Options:
    """Finds what can be done next.

    Args:
        state: of the simulation.
    """

    def __init__(self, state: State) -> None:
        self._state = state

    def options(self) -> list[Option]:
        """Return all that can be done next, faults last; nothing if this is the end."""
        steps = self.steps()
        if self._state.focus is not None:
            ours = [(name, step) for name, step in steps if step.actor is self._state.focus]
            if ours:
                return [*self._plain(ours), *self._failing(ours), *self._deadline(ours)]
            self._state.focus = None
        if not self._state.simulator.guarded:
            settled = [(name, step) for name, step in steps if self._is_independent(step)]
            if settled:
                return [*self._plain(settled[:1]), *self._failing(settled[:1])]
        options = [*self._beginning(), *self._plain(steps)]
        postgres = self._state.simulator.postgres
        if not options and self._state.loop.waits_for_time() and not postgres:
            options.append(Option("time passes", "time"))
        options.extend(self._feed_options())
        options.extend(self._impatience())
        if self._state.faults_left:
            options.extend(self._failing(steps))
            options.extend(self._elsewhere(steps))
        return options

    def steps(self) -> list[tuple[str, Choice]]:
        """Return the steps that can be taken, each under a name of its own."""
        named: dict[str, Choice] = {}
        for step in self._state.pending:
            if self._state.lives(step) and (step.ready is None or step.ready()):
                name, number = step.label, 1
                while name in named:
                    number += 1
                    name = f"{step.label} #{number}"
                named[name] = step
        return list(named.items())

    def _is_independent(self, step: Choice) -> bool:
        """Return whether it makes no difference when `step` is taken; it is taken at once then.

        That holds for a load once no writer can commit any more, if no other actor shares it and
        its reader cannot be cancelled meanwhile.
        """
        if (
            step.reply is None
            or not step.label.endswith(" load")
            or "cancel" in self._state.simulator.kinds
        ):
            return False
        if any(other.process is step.actor.process for other in self._state.others(step.actor)):
            return False
        return all(other.reply is not None for other in self._state.pending) and not any(
            actor.writes and not actor.process.dead and (actor.turns_left or actor.task)
            for actor in self._state.actors
        )

    def _beginning(self) -> Iterator[Option]:
        # Readers are alike, and so are writers: where exchanging them changes nothing, they begin
        # in the order of their names.
        alike = len(self._state.processes) == 1 or len(self._state.processes) == len(
            self._state.actors
        )
        unused: set[str] = set()
        for actor in self._state.actors:
            if actor.task is None and actor.turns_left and not actor.process.dead:
                if actor.name[0] not in unused:
                    yield Option(f"{actor.name} begins", "begin", actor.name)
                if alike and not actor.begun:
                    unused.add(actor.name[0])

    def _plain(self, steps: list[tuple[str, Choice]]) -> Iterator[Option]:
        for name, step in steps:
            if not step.pause:
                yield Option(name, "step", name)
                continue
            # A read of an unchanged cell shows nothing new. But a pause may end at any time.
            if step.content_before != self._state.cell_of(step.actor):
                yield Option(f"{step.actor.name} looks again", "look", name)
            yield Option(f"{step.actor.name} waits no longer", "wait", name)

    def _failing(self, steps: list[tuple[str, Choice]]) -> Iterator[Option]:
        if self._state.faults_left:
            for name, step in steps:
                for fate in step.faults:
                    yield Option(f"{name} {WORDS[fate]}", "step", name, fate, step.kind(fate))

    def _deadline(self, steps: list[tuple[str, Choice]]) -> Iterator[Option]:
        possible = "time" in self._state.simulator.kinds and self._state.simulator.guarded
        if possible and self._state.faults_left and steps and self._state.loop.waits_for_time():
            yield Option("time passes", "time", fault="time")

    def _elsewhere(self, steps: list[tuple[str, Choice]]) -> Iterator[Option]:
        kinds = self._state.simulator.kinds
        if "evict" in kinds and self._state.content() is not None:
            yield Option("evict", "evict", fault="evict")
        if "age" in kinds and self._state.content() is not None:
            yield Option("age", "age", fault="age")
        yield from self._of_feeds()
        if self._state.simulator.postgres:
            yield from self._of_postgres()
        yield from self._deadline(steps)
        for actor in self._state.actors:
            if actor.task is None or actor.process.dead:
                continue
            name = actor.name
            if "cancel" in kinds and not actor.cancelled:
                under_way = any(step.actor is actor and step.changes for _, step in steps)
                for manner in ("", "sent", "late") if actor.writes and under_way else ("",):
                    label = f"cancel {name} {manner}".rstrip()
                    yield Option(label, "cancel", name, manner, "cancel")
            # The death of any other actor is like an actor that never takes its next step.
            if "die" in kinds and actor.fenced:
                name = actor.process.name
                yield Option(f"{name} dies", "die", name, fault="die")

    def _feed_options(self) -> Iterator[Option]:
        for name, front in self._fronts():
            for kind, word in front.feed.options():
                yield Option(f"{name}{word}", kind, name)

    def _impatience(self) -> Iterator[Option]:
        if self._state.simulator.postgres:
            for actor in self._state.actors:
                if self._state.waits_for_report(actor):
                    yield Option(f"{actor.name} waits no longer", "hurry", actor.name)

    def _of_feeds(self) -> Iterator[Option]:
        for name, front in self._fronts():
            for kind, word, fault in front.feed.faults():
                if fault in self._state.simulator.kinds:
                    yield Option(f"{name}{word}", kind, name, fault=fault)

    def _of_postgres(self) -> Iterator[Option]:
        kinds, servers = self._state.simulator.kinds, self._state.servers
        if "failover" in kinds and servers.demoted is None:
            yield Option("failover", "failover", fault="failover")
            yield Option("failover, late for the pools", "failover", "late", fault="failover")
        held = [name for name, front in self._fronts() if front.held(self._state.key) is not None]
        if "age" in kinds and held:
            yield Option("age", "age", fault="age")
        if "evict" in kinds:
            for name in held:
                yield Option(f"evict {name}'s cell", "lose", name, fault="evict")

    def _fronts(self) -> Iterator[tuple[str, TierStack]]:
        """Yield the processes with actors that may still read: there the order of reports matters.

        The other processes receive all reports at the end.
        """
        for process in self._state.processes:
            if process.front is not None and self._state.reads_on(process):
                yield process.name, process.front
