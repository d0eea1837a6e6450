"""Progress of the runs, with the remaining time."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.progress import Task
    from rich.progress_bar import ProgressBar


class Schedule:
    """How far the runs are, by the time that each is expected to take.

    Args:
        seconds: the expected time of each run, in their order.
        clock: in seconds.
    """

    def __init__(
        self, seconds: Sequence[float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = list(seconds)
        self._clock = clock
        self._run = -1
        self._began = 0.0

    @property
    def total(self) -> float:
        """The expected seconds of all runs."""
        return sum(self._seconds)

    def next_run(self) -> int:
        """Begin the next run; return its number, from 1."""
        self._run += 1
        self._began = self._clock()
        return self._run + 1

    def remaining(self) -> float:
        """Return the expected seconds until the last run has ended.

        A run that takes longer than expected makes it stand still.
        """
        if self._run < 0:
            return self.total
        left = self._seconds[self._run] - (self._clock() - self._began)
        return max(0.0, left) + sum(self._seconds[self._run + 1 :])


class RunProgress:
    """Shows the progress: on a terminal as a bar, elsewhere as a line for each run.

    Args:
        schedule: of the runs.
        console: where to show it; stderr by default.
    """

    def __init__(self, schedule: Schedule, runs: int, console: Console | None = None) -> None:
        self._schedule = schedule
        self._runs = runs
        self._console = Console(stderr=True) if console is None else console
        self._progress = Progress(
            TextColumn("{task.description}"),
            _Bar(schedule),
            _Remaining(schedule),
            console=self._console,
            disable=not self._console.is_terminal,
            refresh_per_second=2,
        )
        self._task = self._progress.add_task("", total=schedule.total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @contextmanager
    def run(self, name: str) -> Iterator[None]:
        """Show a run while the block lasts."""
        number = self._schedule.next_run()
        title = f"run {number} of {self._runs}: {name}"
        if self._console.is_terminal:
            self._progress.update(self._task, description=title)
        else:
            left = in_words(self._schedule.remaining())
            self._console.print(f"{title}, {left} left", highlight=False, soft_wrap=True)
        yield


class _Bar(BarColumn):
    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self._schedule = schedule

    def render(self, task: Task) -> ProgressBar:
        task.completed = self._schedule.total - self._schedule.remaining()
        return super().render(task)


class _Remaining(ProgressColumn):
    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self._schedule = schedule

    def render(self, _task: Task) -> Text:
        return Text(f"{in_words(self._schedule.remaining())} left")


def in_words(seconds: float) -> str:
    """Return a time as text, such as `3 min 20 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
