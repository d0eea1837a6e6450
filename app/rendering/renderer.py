"""The contract between the service and whatever moves a render job along."""

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

    `output` is the MP4 to be made, in a directory that exists. It appears whole or not at all, and
    replaces what was there. Two tasks with the same `output` may not run at the same time: they
    would share the file in which it grows.
    """

    job_id: int
    storyboard: Storyboard
    output: Path


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task has come: `percent` is 0 to 100, `stage` and `message` are for people."""

    percent: float
    stage: str
    message: str


class RenderError(Exception):
    """The video cannot be made. The text is fit for the client: no paths, no traceback."""


class Renderer(Protocol):
    """Carries out render tasks, any number of them at the same time."""

    @property
    def makes_video(self) -> bool:
        """Whether `task.output` exists once a task has ended normally."""
        ...

    def render(self, task: RenderTask) -> AsyncGenerator[Progress, None]:
        """Do the work, and tell how it goes.

        Yields progress that never decreases; the last is 100 percent. Ends normally once the work
        is done, and raises `RenderError` if it cannot be done.

        Closing the generator stops the work: when `aclose()` returns, no process and no partial
        file is left. The same holds when the iterating task is cancelled while it waits for the
        next step. Cancelled between two steps, it leaves the generator suspended, so iterate inside
        `contextlib.aclosing`.
        """
        ...
