"""Lets pytest-benchmark measure operations of an event loop, and report the time of one.

pytest-benchmark calls a function many times in a round, and divides the time of the round by the
number of calls. A call that starts and stops an event loop would take longer than most operations
of a cache. So a round is one coroutine here, which awaits the operation that many times, as
`bench_async_func` of pyperf does. Calibration, the number of rounds, statistics and all options of
the command line remain those of pytest-benchmark.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    Timer = Callable[[], float]

T = TypeVar("T")


class Benchmark(Protocol):
    """The used part of pytest-benchmark's fixture, which has no types."""

    group: str | None
    extra_info: dict[str, Any]
    _timer: Timer
    _disable_gc: bool

    def __call__(self, function: Callable[[], T]) -> T:
        """Measure the function, and return what one more call returns."""


class OneOperation:
    """Measures a coroutine function; every figure is for one call of it.

    Args:
        benchmark: the fixture of pytest-benchmark.
        runner: the event loop.
    """

    def __init__(self, benchmark: Benchmark, runner: asyncio.Runner) -> None:
        self._benchmark = benchmark
        self._runner = runner

    def __call__(self, group: str, operation: Callable[[], Awaitable[T]], **labels: str) -> T:
        """Measure the operation, and return what one more call of it returns.

        Args:
            group: the benchmarks that it is compared with.
            operation: is awaited again and again, by one coroutine in each round.
            labels: further properties, for the JSON of the results.
        """

        def make_runner(*_: object) -> Callable[[range], float]:
            return lambda calls: self._round(operation, len(calls))

        self._benchmark.group = group
        self._benchmark.extra_info |= {"operation": group, **labels}
        self._runner.run(_once(operation))  # a first call connects: that is not calibrated with
        with pytest.MonkeyPatch.context() as patch:
            # The fixture has no public way to replace a round. This fails if it has no such method.
            patch.setattr(self._benchmark, "_make_runner", make_runner)
            return self._benchmark(lambda: self._runner.run(_once(operation)))

    def _round(self, operation: Callable[[], Awaitable[object]], calls: int) -> float:
        """Return the seconds that so many calls take, one after the other."""
        collecting = gc.isenabled()
        if self._benchmark._disable_gc:  # noqa: SLF001 - the option has no public name
            gc.disable()
        try:
            timer = self._benchmark._timer  # noqa: SLF001 - nor has the timer
            return self._runner.run(_timed(operation, calls, timer))
        finally:
            if collecting:
                gc.enable()


async def _timed(operation: Callable[[], Awaitable[object]], calls: int, timer: Timer) -> float:
    started = timer()
    for _ in range(calls):
        await operation()
    return timer() - started


async def _once(operation: Callable[[], Awaitable[T]]) -> T:
    return await operation()
