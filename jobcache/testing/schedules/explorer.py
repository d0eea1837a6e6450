"""Goes through the schedules of a world: all of them, or as many as a seed leads to.

A schedule is replayed from the labels of its steps. There is no copying a coroutine, so every
branch begins anew; and a state that was met before is not gone into again, which is why worlds of
some ten thousand states are gone through in seconds.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from jobcache.testing.schedules.promise import Violation
from jobcache.testing.schedules.world import Parts, Run, World

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable, Sequence

    from jobcache.testing.conformance import Subject
    from jobcache.testing.schedules.world import Option

ARROW = " -> "


@dataclass(frozen=True, slots=True)
class Finding:
    """A schedule that goes wrong, and how."""

    world: World
    schedule: tuple[str, ...]
    reason: str
    seed: str = ""

    def __str__(self) -> str:
        return f"{ARROW.join(self.schedule)}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Report:
    """What was gone through.

    Attributes:
        world: where.
        schedules: how many were played, in whole or to where a state was met again.
        steps: how many steps of them were new.
        states: how many different states were met; 0 where they were not told apart.
        complete: whether that was all there is.
        finding: the first that went wrong, made short; None if none did.
    """

    world: World
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
        return f"{self.world}, {self.world.faults} faults: {counts}: {end}"


def at_once(operation: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401 - of any operation
    """Run an operation that never waits, such as those of the memory backend.

    Raises:
        RuntimeError: it does wait.
    """
    try:
        operation.send(None)
    except StopIteration as end:
        return end.value
    operation.close()
    raise RuntimeError("this operation waits for something")


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
        parts: Parts | None = None,
    ) -> None:
        self._subject = subject
        self._loop = asyncio.new_event_loop() if waits else None
        self._carry_out = at_once if self._loop is None else self._loop.run_until_complete
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

    def _start(self, world: World) -> Run:
        self._keys += 1
        key = f"job:{self._keys}:progress"
        return Run(world, self._subject, key, self._carry_out, self._snapshot, self._parts)

    # --- all schedules ---

    def exhaust(self, world: World, *, most: int | None = None) -> Report:
        """Play every schedule of `world`, or `most` of them.

        Depth first, in the order of the options. Two states are one if the cell, the source and
        all that anybody was told in them, in order, are the same.
        """
        met: set[int] = set()
        path: list[tuple[Sequence[Option], int]] = []
        schedules = steps = 0
        complete = False
        while most is None or schedules < most:
            run = self._start(world)
            schedules += 1
            last = path[-1][0][path[-1][1]] if path else None
            try:
                for options, chosen in path:
                    run.take(options[chosen], known=options[chosen] is not last)
                steps += bool(path)
                while (mark := run.fingerprint()) not in met:
                    met.add(mark)
                    new = run.options()
                    if not new:
                        run.finish()
                        break
                    path.append(([*new], 0))
                    steps += 1
                    run.take(new[0])
            except Violation as violation:
                finding = self._shorten(Finding(world, tuple(run.taken), str(violation)))
                return Report(world, schedules, steps, len(met), complete=False, finding=finding)
            finally:
                run.close()
            while path and path[-1][1] + 1 == len(path[-1][0]):
                path.pop()
            if not path:
                complete = True
                break
            options, chosen = path[-1]
            path[-1] = options, chosen + 1
        return Report(world, schedules, steps, len(met), complete=complete, finding=None)

    # --- some schedules ---

    def search(self, world: World, *, seed: int | str, runs: int) -> Report:
        """Play `runs` schedules of `world` that are picked at random; the same for the same seed."""
        steps = 0
        for number in range(runs):
            name = f"{seed}.{number}"
            finding, taken = self._wander(world, name)
            steps += taken
            if finding is not None:
                return Report(world, number + 1, steps, 0, complete=False, finding=finding)
        return Report(world, runs, steps, 0, complete=False, finding=None)

    def _wander(self, world: World, seed: str) -> tuple[Finding | None, int]:
        chance = random.Random(seed)  # noqa: S311 - it is to be repeated
        faulty = chance.choice((0.03, 0.1, 0.3))
        faithful = chance.choice((0.0, 0.5, 0.8))  # how often whoever moved last moves again
        run = self._start(world)
        last = ""
        try:
            while options := run.options():
                faults = [option for option in options if option.fault]
                plain = [option for option in options if not option.fault]
                if faults and (not plain or chance.random() < faulty):
                    option = chance.choice(faults)
                else:
                    same = [option for option in plain if option.label.split()[0] == last]
                    option = chance.choice(same if same and chance.random() < faithful else plain)
                    last = option.label.split()[0]
                run.take(option)
            run.finish()
        except Violation as violation:
            finding = Finding(world, tuple(run.taken), str(violation), seed)
            return self._shorten(finding), len(run.taken)
        finally:
            run.close()
        return None, len(run.taken)

    # --- one schedule ---

    def replay(self, world: World, schedule: str | Sequence[str]) -> None:
        """Play one schedule, as it was printed, and go on without faults to its end.

        Raises:
            Violation: it goes wrong.
            LookupError: it has a step that cannot be taken there.
        """
        labels = schedule.split(ARROW) if isinstance(schedule, str) else schedule
        run = self._start(world)
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
        run = self._start(finding.world)
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
