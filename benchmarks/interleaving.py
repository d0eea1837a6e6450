"""The driver: subjects take turns, so that whatever else the machine does meets all alike."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.results import Series

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from benchmarks.results import Kind


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        name: see `Series`.
        kind: see `Series`.
        how: see `Series`.
        once: one turn of it. Returns its sample and, by name, further figures.
        x: see `Series`.
        samples: see `Series`; filled by `turn`.
        details: see `Series`.
    """

    name: str
    kind: Kind
    how: str
    once: Callable[[], Awaitable[tuple[float, dict[str, Any]]]]
    x: float | None = None
    samples: list[float] = field(default_factory=list)
    details: dict[str, list[Any]] = field(default_factory=dict)

    async def turn(self, *, counts: bool = True) -> None:
        """Take one turn; one that does not count is for warming up."""
        sample, details = await self.once()
        if counts:
            self.samples.append(sample)
            for name, figure in details.items():
                self.details.setdefault(name, []).append(figure)

    @property
    def series(self) -> Series:
        """What was measured."""
        return Series(self.name, self.kind, self.how, self.samples, self.x, self.details)


async def take_turns(subjects: Sequence[Subject], turns: int) -> list[Series]:
    """Measure all subjects once in each turn, each turn beginning with another one.

    The first turn warms up connections and whatever else comes with use, and does not count.
    """
    for number, one in _order(subjects, turns + 1):
        await one.turn(counts=number > 0)
    return [one.series for one in subjects]


def _order(subjects: Sequence[Subject], turns: int) -> Iterator[tuple[int, Subject]]:
    # Whoever comes second finds the processor's caches as the first has left them.
    for number in range(turns):
        start = number % len(subjects) if subjects else 0
        for one in [*subjects[start:], *subjects[:start]]:
            yield number, one


def cost(
    operations: int, work: Callable[[], Awaitable[object]]
) -> Callable[[], Awaitable[tuple[float, dict[str, Any]]]]:
    """A turn that does `operations` in one go, and whose sample is microseconds for each."""

    async def once() -> tuple[float, dict[str, Any]]:
        gc.collect()
        began = time.perf_counter_ns()
        await work()
        return (time.perf_counter_ns() - began) / 1000 / operations, {}

    return once
