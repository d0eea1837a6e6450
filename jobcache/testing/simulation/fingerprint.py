"""Tells the states of a simulation apart, so that none is explored twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobcache.testing.simulation.choices import summarize

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from jobcache.testing.simulation.state import State


def fingerprint(state: State) -> int:
    """Two runs with the same one have the same futures (but for a collision of hashes)."""
    return hash(
        (
            state.content(),
            summarize(state.cell),
            state.database,
            state.invariants.state(),
            state.now_ms,
            state.faults_left,
            None if state.row_lock is None else state.row_lock.actor.name,
            tuple(sorted(step.identity for step in state.pending if step.reply is None)),
            tuple(_remembered(state)),
            tuple(
                (
                    actor.turns_left,
                    actor.process.dead,
                    actor.task is not None and actor.min_version,
                    actor.task is not None and state.refused(actor),
                    actor.unknown,
                    not actor.process.dead and frozenset(actor.process.failed),
                )
                for actor in state.actors
            ),
            tuple(_in_front(state)),
            tuple(_listening(state)),
            state.focus and state.focus.name,
        )
    )


def _remembered(state: State) -> Iterator[int]:
    actors = [*state.actors, *(process.ahead for process in state.processes)]
    for memory in dict.fromkeys(actor.memory for actor in actors):
        awake = state.simulator.guarded or any(actor.task is not None for actor in memory.actors)
        waited_for = {step.actor for step in state.pending if step.reply is not None}
        dead = memory.actors[0].process.dead
        done = dead or not (awake or waited_for.intersection(memory.actors))
        yield 0 if done else memory.hash


def _listening(state: State) -> Iterator[Hashable]:
    """Yield what is not in the memory of actors: reports wake them without a step."""
    if not state.simulator.postgres:
        return
    yield state.servers.fingerprint()
    yield tuple(sorted(step.identity for step in state.pending if state.lives(step)))
    for actor in state.actors:
        if actor.writes and actor.task is not None:
            yield state.waits_for_report(actor), actor.hurried


def _in_front(state: State) -> Iterator[Hashable]:
    for process in state.processes:
        front = process.front
        if process.dead or front is None:
            yield None
        elif state.reads_on(process) or state.simulator.postgres:
            ahead = front.ahead(state.key) if state.simulator.tiered else None
            yield front.held(state.key), ahead, front.feed.fingerprint()
        else:
            yield front.held(state.key), front.feed.behind
