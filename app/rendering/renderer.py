"""The contract between the service and a renderer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from app.rendering.storyboard import Storyboard


@dataclass(frozen=True, slots=True)
class RenderTask:
    """One storyboard to be rendered.

    `output` is the MP4 file to write, in a directory that exists. It appears complete or not at
    all, and replaces an older file. Two tasks with the same `output` must not run at the same time,
    because they would share the partial file.
    """

    job_id: int
    storyboard: Storyboard
    output: Path


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a task: `percent` is 0 to 100, `stage` and `message` are for people."""

    percent: float
    stage: str
    message: str


class RenderError(Exception):
    """The video cannot be made. The message is shown to the client: no paths, no traceback."""


class Renderer(Protocol):
    """Carries out render tasks, any number of them at the same time."""

    @property
    def makes_video(self) -> bool:
        """Whether `task.output` exists once a task has ended normally."""
        ...

    def render(self, task: RenderTask) -> AsyncGenerator[Progress, None]:
        """Do the work, and yield its progress.

        Yields progress that never decreases; the last is 100 percent. Ends normally once the work
        is done, and raises `RenderError` if it cannot be done.

        Closing the generator stops the work: when `aclose()` returns, no process and no partial
        file is left. The same holds when the iterating task is cancelled while it waits for the
        next step. Cancelled between two steps, it leaves the generator suspended, so iterate inside
        `contextlib.aclosing`.
        """
        ...
