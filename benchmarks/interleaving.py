"""Lets subjects take turns, so that other work on the machine affects all of them equally."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.generator import WrongAnswer
from benchmarks.results import Missing, Series

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from benchmarks.results import Kind


@dataclass(frozen=True)
class Subject:
    """A measured subject. `Series` explains the attributes that are not explained here.

    Attributes:
        name: its name.
        kind: its role in the comparison.
        how: how it is set up.
        once: takes one turn; returns its sample and, by name, further figures.
        x: its position on the section's scale.
        samples: one for each turn; filled by `turn`.
        details: further figures of each turn.
    """

    name: str
    kind: Kind
    how: str
    once: Callable[[], Awaitable[tuple[float, dict[str, Any]]]]
    x: float | None = None
    samples: list[float] = field(default_factory=list)
    details: dict[str, list[Any]] = field(default_factory=dict)

    async def turn(self, *, counts: bool = True) -> None:
        """Take one turn; a turn that does not count is for warming up."""
        sample, details = await self.once()
        if counts:
            self.samples.append(sample)
            for name, figure in details.items():
                self.details.setdefault(name, []).append(figure)

    @property
    def series(self) -> Series:
        """Return the measured series."""
        return Series(self.name, self.kind, self.how, self.samples, self.x, self.details)


async def take_turns(
    subjects: Sequence[Subject], turns: int, *, missing: list[Missing] | None = None
) -> list[Series]:
    """Measure all subjects once in each turn, each turn beginning with another one.

    The first turn warms up connections and caches, and does not count.

    Args:
        subjects: what to measure.
        turns: how often.
        missing: takes the peers that failed, which are then left out; None: a failure is raised.

    Raises:
        WrongAnswer: a subject failed; the message names it.
    """
    failed = set()
    for number, one in _order(subjects, turns + 1):
        if one.name in failed:
            continue
        try:
            await one.turn(counts=number > 0)
        except WrongAnswer as error:
            if missing is None or one.kind not in {"peer", "tuned peer"}:
                raise WrongAnswer(f"{one.name}: {error}") from error
            failed.add(one.name)
            missing.append(Missing(one.name, f"{error}".splitlines()[0]))
    return [one.series for one in subjects if one.name not in failed]


def _order(subjects: Sequence[Subject], turns: int) -> Iterator[tuple[int, Subject]]:
    # A subject finds the processor's caches as the one before it has left them.
    for number in range(turns):
        start = number % len(subjects) if subjects else 0
        for one in [*subjects[start:], *subjects[:start]]:
            yield number, one


def cost(
    operations: int, work: Callable[[], Awaitable[object]]
) -> Callable[[], Awaitable[tuple[float, dict[str, Any]]]]:
    """Return a turn that does `operations` at once; its sample is the microseconds of each."""

    async def once() -> tuple[float, dict[str, Any]]:
        gc.collect()
        began = time.perf_counter_ns()
        await work()
        return (time.perf_counter_ns() - began) / 1000 / operations, {}

    return once
