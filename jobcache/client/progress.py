"""Progress bars for jobs and other operations, drawn by rich or tqdm."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TextIO
from urllib.parse import urlsplit

from jobcache.client.jobs import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from jobcache.client.core.snapshots import Snapshot

Library = Literal["rich", "tqdm"]


class ProgressBars:
    """Draws a bar for each job or URL; pass it as `on_progress`.

        with ProgressBars() as bars:
            jobs.wait_all([7, 8, 9], on_progress=bars)

    A bar moves if the document has a field for its progress (`Job.percent`, `Snapshot.percent`).

    Args:
        library: `rich` or `tqdm`; None takes rich if it is installed, and tqdm if not.
        describe: returns the text beside a bar; None shows the id of the job or the end of the
            URL, and the status.
        file: what to draw on; None draws on stderr.

    Raises:
        ImportError: the library is not installed.
    """

    def __init__(
        self,
        library: Library | None = None,
        *,
        describe: Callable[[Job | Snapshot], str] | None = None,
        file: TextIO | None = None,
    ) -> None:
        self._describe = _describe if describe is None else describe
        self._bars: _Bars = (_RichBars if _choose(library) == "rich" else _TqdmBars)(file)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, seen: Job | Snapshot) -> None:
        """Draw the progress of a document."""
        key: Hashable
        if isinstance(seen, Job):
            key, is_last = seen.id, seen.terminal
        else:
            key, is_last = seen.source, seen.is_final and seen.error is None
        percent = seen.percent
        if percent is None and is_last:
            percent = 100.0
        self._bars.show(key, self._describe(seen), percent)


class _Bars(Protocol):
    """Bars, one for each key."""

    def start(self) -> None:
        """Begin to draw."""

    def stop(self) -> None:
        """Leave the bars as they are."""

    def show(self, key: Hashable, text: str, percent: float | None) -> None:
        """Draw a bar; None as the percentage if it is unknown."""


class _RichBars:
    def __init__(self, file: TextIO | None) -> None:
        from rich.console import Console  # noqa: PLC0415 - an extra
        from rich.progress import (  # noqa: PLC0415 - an extra
            BarColumn,
            Progress,
            TaskID,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        self._tasks: dict[Hashable, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True) if file is None else Console(file=file),
        )

    def start(self) -> None:
        self._progress.start()

    def stop(self) -> None:
        self._progress.stop()

    def show(self, key: Hashable, text: str, percent: float | None) -> None:
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task(text, total=None)
        total = None if percent is None else 100
        self._progress.update(
            self._tasks[key], description=text, total=total, completed=percent or 0
        )


class _TqdmBars:
    _FORMAT = "{desc} {percentage:3.0f}%|{bar}| {elapsed}"

    def __init__(self, file: TextIO | None) -> None:
        self._tqdm: Any = import_module("tqdm")  # has few types
        self._file = file
        self._bars: dict[Hashable, Any] = {}

    def start(self) -> None:
        """Do nothing: a bar is drawn when it is made."""

    def stop(self) -> None:
        for bar in self._bars.values():
            bar.close()

    def show(self, key: Hashable, text: str, percent: float | None) -> None:
        if key not in self._bars:
            self._bars[key] = self._tqdm.tqdm(
                total=100, position=len(self._bars), file=self._file, bar_format=self._FORMAT
            )
        bar = self._bars[key]
        bar.n = percent or 0
        bar.set_description_str(text)


def _choose(library: Library | None) -> Library:
    if library not in {None, "rich", "tqdm"}:
        raise ValueError(f"library must be rich or tqdm, not {library!r}")
    wanted: tuple[Library, ...] = ("rich", "tqdm") if library is None else (library,)
    for each in wanted:
        if _is_installed(each):
            return each
    named = " or ".join(wanted)
    raise ImportError(f"progress bars need {named}; pip install 'jobcache[progress]' has rich")


def _describe(seen: Job | Snapshot) -> str:
    if isinstance(seen, Job):
        return f"job {seen.id}: {seen.status}"
    url = urlsplit(seen.source)
    name = url.path.rstrip("/").rpartition("/")[2] or url.hostname
    return f"{name}: {seen.label}"


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ValueError:  # None in `sys.modules` forbids the import
        return False
