"""Whatever ends a render early, nothing of it is left."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop

from app.rendering.renderer import RenderTask
from app.rendering.video import VideoRenderer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import psutil

    from app.rendering.storyboard import Storyboard

ROOT = Path(sys.modules["app"].__path__[0]).parent
SOON = 60.0  # seconds; it takes some milliseconds


@pytest.fixture
def task(long_storyboard: Storyboard, tmp_path: Path) -> RenderTask:
    return RenderTask(1, long_storyboard, tmp_path / "video.mp4")


def files(task: RenderTask) -> list[str]:
    return sorted(path.name for path in task.output.parent.iterdir())


async def iterate(task: RenderTask, encoding: asyncio.Event) -> None:
    async for step in VideoRenderer().render(task):
        if step.percent > 0:
            encoding.set()


async def test_closing_the_generator_leaves_nothing(
    task: RenderTask, encoders: Callable[[], list[psutil.Process]]
) -> None:
    async with aclosing(VideoRenderer().render(task)) as steps:
        async for step in steps:
            if step.percent > 0:
                break
        assert len(encoders()) == 1
        assert files(task) == ["video.mp4.part"]
    assert encoders() == []
    assert files(task) == []


async def test_cancelling_the_iterating_task_leaves_nothing(
    task: RenderTask, encoders: Callable[[], list[psutil.Process]]
) -> None:
    encoding = asyncio.Event()
    iterating = asyncio.create_task(iterate(task, encoding))
    await encoding.wait()
    assert len(encoders()) == 1
    iterating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await iterating
    assert encoders() == []
    assert files(task) == []


async def test_cancelling_twice_leaves_nothing_either(
    task: RenderTask, encoders: Callable[[], list[psutil.Process]]
) -> None:
    """The second one arrives while the first is clearing up, which goes on by itself."""
    encoding = asyncio.Event()
    iterating = asyncio.create_task(iterate(task, encoding))
    await encoding.wait()
    iterating.cancel()
    await asyncio.sleep(0)
    iterating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await iterating
    deadline = time.monotonic() + SOON
    while (encoders() or files(task)) and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert encoders() == []
    assert files(task) == []


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_cancelling_at_the_very_beginning_leaves_nothing(
    task: RenderTask,
    encoders: Callable[[], list[psutil.Process]],
    run: Callable[[Coroutine[None, None, None]], None],
) -> None:
    """Before, while and after the process is started: the loop gets so many turns.

    The service may run on either loop. uvloop does not wait for a process whose start it gave up,
    but such a process may be gone in time by luck: hence several rounds.
    """

    async def cancel_after(turns: int) -> None:
        iterating = asyncio.create_task(iterate(task, asyncio.Event()))
        for _ in range(turns):
            await asyncio.sleep(0)
        iterating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await iterating
        assert encoders() == []
        assert files(task) == []

    async def cancel_early() -> None:
        for turns in 3 * list(range(7)):
            await cancel_after(turns)

    run(cancel_early())


def test_a_service_that_is_killed_leaves_no_encoder(task: RenderTask) -> None:
    """Nobody is left to clear up but the encoder itself."""
    script = """
import asyncio, os, signal, sys
from pathlib import Path
from app.rendering.renderer import RenderTask
from app.rendering.storyboard import Storyboard
from app.rendering.video import VideoRenderer

async def main():
    storyboard = Storyboard.model_validate_json(sys.argv[1])
    async for step in VideoRenderer().render(RenderTask(1, storyboard, Path(sys.argv[2]))):
        if step.percent > 0:
            assert Path(sys.argv[2] + ".part").exists()
            print("encoding", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    service = subprocess.run(
        [sys.executable, "-c", script, task.storyboard.model_dump_json(), str(task.output)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=False,
    )
    assert service.returncode == -9
    assert service.stdout == b"encoding\n"
    deadline = time.monotonic() + SOON
    while files(task) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert files(task) == []
