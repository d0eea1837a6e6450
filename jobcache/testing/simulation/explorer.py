"""Plays the schedules of a simulation: all of them, or as many as a seed leads to.

A schedule is replayed from the labels of its steps. A coroutine cannot be copied, so every branch
begins anew. A state that was met before is not explored again. So simulations of some ten thousand
states take seconds.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self, TypeVar

from jobcache.testing.invariants import Violation
from jobcache.testing.simulation.configuration import OF_POSTGRES
from jobcache.testing.simulation.run import Run
from jobcache.testing.simulation.virtual_loop import at_once

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from jobcache.testing.simulation.choices import Option
    from jobcache.testing.simulation.configuration import Components, Simulator
    from jobcache.testing.simulation.state import CarryOut
    from jobcache.testing.subject import Subject

T = TypeVar("T")
ARROW = " -> "


@dataclass(frozen=True, slots=True)
class Finding:
    """A schedule that goes wrong, and how."""

    simulator: Simulator
    schedule: tuple[str, ...]
    reason: str
    seed: str = ""

    def __str__(self) -> str:
        return f"{ARROW.join(self.schedule)}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Report:
    """The result of an exploration.

    Attributes:
        simulator: the simulation.
        schedules: how many schedules were played, to their end or to a state that was known.
        steps: how many of their steps were new.
        states: how many different states were met; 0 if states were not told apart.
        complete: whether every schedule was played.
        finding: the first schedule that goes wrong, made short; None if none does.
    """

    simulator: Simulator
    schedules: int
    steps: int
    states: int
    complete: bool
    finding: Finding | None

    def __str__(self) -> str:
        met = f", {self.states} states" if self.states else ""
        what = "every schedule" if self.complete else "not all"
        counts = f"{self.schedules} schedules, {self.steps} steps{met} ({what})"
        end = "nothing wrong" if self.finding is None else f"WRONG: {self.finding}"
        return f"{self.simulator}, {self.simulator.faults} faults: {counts}: {end}"


@dataclass(slots=True)
class _Fork:
    """What could be done at one point of a schedule, and which of it is being done."""

    options: Sequence[Option]
    switches: int | None
    last: str
    busy: bool
    chosen: int = 0

    @classmethod
    def of(cls, options: Sequence[Option], switches: int | None, last: str) -> _Fork:
        busy = any(option.actor == last and not option.fault for option in options)
        if switches == 0 and busy:
            options = [option for option in options if option.actor in {last, ""}]
        return cls(options, switches, last, busy)

    @property
    def option(self) -> Option:
        return self.options[self.chosen]

    def turn(self) -> bool:
        """Go on to the next option, if there is one."""
        self.chosen += 1
        return self.chosen < len(self.options)

    def after(self) -> tuple[int | None, str]:
        """Return how many switches are left after this option, and the actor that moved last."""
        mover = self.option.actor
        if self.switches is None or mover in {"", self.last}:
            return self.switches, self.last
        return self.switches - self.busy, mover


class Explorer:
    """Plays schedules on one backend; each on a key of its own.

    Args:
        subject: the backend, and a way to lose a cell.
        waits: whether its operations wait for anything. Those that do are run in a loop of the
            explorer's own.
        snapshot: what the cell of a key holds, in any hashable form. Without it two states are
            told apart by what the protocol says it should hold, which hides the faults of a
            backend that does not keep it: then trust `search` rather than `exhaust`.
        parts: what processes are made of.
    """

    def __init__(
        self,
        subject: Subject,
        *,
        waits: bool = True,
        snapshot: Callable[[str], Hashable] | None = None,
        parts: Components | None = None,
    ) -> None:
        self._subject = subject
        self._loop = asyncio.new_event_loop() if waits else None
        self._carry_out: CarryOut = at_once if self._loop is None else self._loop.run_until_complete
        self._snapshot = snapshot
        self._parts = parts
        self._keys = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the backend and the loop its operations ran in."""
        self._carry_out(self._subject.backend.aclose())
        if self._loop is not None:
            self._loop.close()

    def _start(self, simulator: Simulator) -> Run:
        self._keys += 1
        key = f"job:{self._keys}:progress"
        return Run(
            simulator,
            self._subject,
            key,
            self._carry_out,
            snapshot=self._snapshot,
            parts=self._parts,
        )

    # --- all schedules ---

    def exhaust(
        self, simulator: Simulator, *, switches: int | None = None, most: int | None = None
    ) -> Report:
        """Play every schedule of `simulator`.

        Depth first, in the order of the options. Two states are the same if their cell, their
        source, and all results that actors were given, in order, are the same.

        Args:
            simulator: what is explored.
            switches: leave out schedules in which somebody who could go on has to wait for
                another more often than this. Most faults need few.
            most: give up after so many schedules.
        """
        met: set[Hashable] = set()
        path: list[_Fork] = []
        schedules = steps = 0
        complete = False
        while most is None or schedules < most:
            run = self._start(simulator)
            schedules += 1
            try:
                for known in path:
                    run.take(known.option, known=known is not path[-1])
                steps += bool(path)
                fork = path[-1] if path else None
                while True:
                    options = run.options()
                    left, last = (switches, "") if fork is None else fork.after()
                    mark = run.fingerprint(), left, last if left is not None else ""
                    if mark in met:
                        break
                    met.add(mark)
                    if all(option.fault for option in options):
                        run.finish()  # faults after the end make no difference
                        break
                    fork = _Fork.of(options, left, last)
                    path.append(fork)
                    steps += 1
                    run.take(fork.option)
            except Violation as violation:
                finding = self._shorten(Finding(simulator, tuple(run.taken), str(violation)))
                return Report(
                    simulator, schedules, steps, len(met), complete=False, finding=finding
                )
            finally:
                run.close()
            while path and not path[-1].turn():
                path.pop()
            if not path:
                complete = switches is None
                break
        return Report(simulator, schedules, steps, len(met), complete=complete, finding=None)

    # --- some schedules ---

    def search(self, simulator: Simulator, *, seed: int | str, runs: int) -> Report:
        """Play `runs` schedules picked at random; the same ones for the same seed."""
        steps = 0
        for number in range(runs):
            name = f"{seed}.{number}"
            finding, taken = self._wander(simulator, name)
            steps += taken
            if finding is not None:
                return Report(simulator, number + 1, steps, 0, complete=False, finding=finding)
        return Report(simulator, runs, steps, 0, complete=False, finding=None)

    def _wander(self, simulator: Simulator, seed: str) -> tuple[Finding | None, int]:
        chance = random.Random(seed)  # noqa: S311 - it is to be repeated
        # Each run has a character of its own: few kinds of faults, and so more of each; more or
        # fewer of them; and how often the last actor moves again.
        listens = simulator.tiered or simulator.postgres
        impossible = frozenset() if simulator.postgres else OF_POSTGRES
        kinds = sorted(simulator.kinds - impossible - (set() if listens else {"feed"}))
        kinds = chance.sample(kinds, min(len(kinds), chance.choice((1, 2, 3, len(kinds)))))
        faulty = chance.choice((0.05, 0.15, 0.4))
        faithful = chance.choice((0.0, 0.5, 0.8, 0.95))
        lagging = chance.choice((0.0, 0.8, 0.95)) if listens else 0.0
        run = self._start(simulator)
        last = ""
        try:
            while options := run.options():
                faults = [option for option in options if option.fault in kinds]
                plain = [option for option in options if not option.fault]
                if not plain:
                    break
                if faults and chance.random() < faulty:
                    option = chance.choice(faults)
                else:
                    if lagging and chance.random() < lagging:
                        plain = [option for option in plain if option.kind != "report"] or plain
                    same = [option for option in plain if option.actor == last]
                    option = chance.choice(same if same and chance.random() < faithful else plain)
                    last = option.actor
                run.take(option)
            run.finish()
        except Violation as violation:
            finding = Finding(simulator, tuple(run.taken), str(violation), seed)
            return self._shorten(finding), len(run.taken)
        finally:
            run.close()
        return None, len(run.taken)

    # --- one schedule ---

    def replay(self, simulator: Simulator, schedule: str | Sequence[str]) -> None:
        """Play one schedule, as it was printed, and go on without faults to its end.

        Raises:
            Violation: it goes wrong.
            LookupError: it has a step that cannot be taken there.
        """
        labels = schedule.split(ARROW) if isinstance(schedule, str) else schedule
        run = self._start(simulator)
        try:
            for label in labels:
                self._follow(run, label)
            self._complete(run)
        finally:
            run.close()

    def _follow(self, run: Run, label: str) -> None:
        for option in run.options():
            if option.label == label:
                run.take(option)
                return
        could = ", ".join(option.label for option in run.options())
        raise LookupError(f"{label!r} cannot be done here, after {ARROW.join(run.taken)}: {could}")

    def _complete(self, run: Run) -> None:
        while plain := [option for option in run.options() if not option.fault]:
            run.take(plain[0])
        run.finish()

    # --- making it short ---

    def _shorten(self, finding: Finding) -> Finding:
        """Leave out whatever can be left out; swap what can be swapped to fewer switches."""
        best, shorter = finding, True
        while shorter:
            shorter = False
            for size in (4, 2, 1):
                for start in range(len(best.schedule)):
                    fewer = best.schedule[:start] + best.schedule[start + size :]
                    tried = self._try(replace(best, schedule=fewer))
                    if tried is not None and _cost(tried) < _cost(best):
                        best, shorter = tried, True
                        break
        return best

    def _try(self, finding: Finding) -> Finding | None:
        """Play as much of the schedule as can be played."""
        run = self._start(finding.simulator)
        try:
            for label in finding.schedule:
                for option in run.options():
                    if option.label == label:
                        run.take(option)
                        break
            if not finding.reason.startswith("v") and "returns" not in finding.reason:
                self._complete(run)
        except Violation as violation:
            return replace(finding, schedule=tuple(run.taken), reason=str(violation))
        finally:
            run.close()
        return None


def _cost(finding: Finding) -> tuple[int, int]:
    switches = sum(
        one.split()[0] != other.split()[0]
        for one, other in zip(finding.schedule, finding.schedule[1:], strict=False)
    )
    return len(finding.schedule), switches
