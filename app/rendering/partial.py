"""The partial file of a video, which is renamed once it is complete."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def partial_path(output: Path) -> Path:
    """Return the file in which `output` grows: its name with `.part` added."""
    return output.with_name(output.name + ".part")


def remove_partial(output: Path) -> None:
    """Remove the file in which `output` grows, if there is one and it can be removed."""
    with suppress(OSError):
        partial_path(output).unlink()
