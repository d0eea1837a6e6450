"""Storyboards to render, and a look at the encoder processes that are alive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import pytest

from app.rendering.storyboard import Storyboard, make_storyboard

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def storyboard() -> Storyboard:
    """Two short scenes, 24 frames in all."""
    return make_storyboard("The sun rises. A ship sails.", scenes=2, seconds_per_scene=0.5)


@pytest.fixture
def long_storyboard() -> Storyboard:
    """A minute of video: nobody here waits for its end."""
    return make_storyboard("A very long night", scenes=1, seconds_per_scene=60.0)


@pytest.fixture
def encoders() -> Callable[[], list[psutil.Process]]:
    """The encoder processes that this process has, zombies included."""

    def alive() -> list[psutil.Process]:
        return [child for child in psutil.Process().children() if _is_encoder(child)]

    return alive


def _is_encoder(process: psutil.Process) -> bool:
    try:
        # A zombie has no command line any more, and would be a leak all the same.
        zombie = process.status() == psutil.STATUS_ZOMBIE
        return zombie or "app.rendering.encode" in process.cmdline()
    except psutil.NoSuchProcess:
        return False
