"""Real videos from real processes, and what happens when those fail."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import av
import pytest

from app.rendering import video
from app.rendering.renderer import Progress, RenderError, RenderTask
from app.rendering.storyboard import Storyboard, make_storyboard
from app.rendering.video import VideoRenderer

if TYPE_CHECKING:
    from collections.abc import Callable

    import psutil

ROOT = Path(sys.modules["app"].__path__[0]).parent


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def render(task: RenderTask) -> list[Progress]:
    return [step async for step in VideoRenderer().render(task)]


async def test_a_video_is_made_and_its_progress_reported(
    tmp_path: Path,
    encoders: Callable[[], list[psutil.Process]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    storyboard = make_storyboard("The sun rises. A ship sails.", seconds_per_scene=2.5)
    output = tmp_path / "video.mp4"
    steps = await render(RenderTask(7, storyboard, output))

    percents = [step.percent for step in steps]
    assert percents == sorted(percents)
    assert percents[0] == 0.0
    assert percents[-1] == 100.0
    assert 90 <= len(percents) <= 102  # of 120 frames: about once a percent
    assert {step.stage for step in steps} == {
        "starting",
        "drawing scene 1 of 2",
        "drawing scene 2 of 2",
        "finished",
    }
    with av.open(str(output)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert (stream.width, stream.height, stream.frames) == (640, 360, 120)
    assert names(tmp_path) == ["video.mp4"]
    assert encoders() == []
    assert caplog.records == []
    assert VideoRenderer().makes_video


async def test_several_videos_are_made_at_the_same_time(
    storyboard: Storyboard, tmp_path: Path
) -> None:
    tasks = [RenderTask(number, storyboard, tmp_path / f"{number}.mp4") for number in range(2)]
    await asyncio.gather(*map(render, tasks))
    assert len({task.output.read_bytes() for task in tasks}) == 1


async def test_it_does_not_matter_where_the_service_was_started(
    storyboard: Storyboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even beside another package called `app`; a relative output is relative to here."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("raise ImportError('the wrong app')")
    monkeypatch.chdir(tmp_path)
    await render(RenderTask(1, storyboard, Path("video.mp4")))
    assert (tmp_path / "video.mp4").exists()


@pytest.mark.parametrize(
    ("place", "reason"),
    [("missing/video.mp4", "No such file"), ("file/video.mp4", "Not a directory")],
)
async def test_an_output_that_cannot_be_written_is_an_error_without_paths(
    storyboard: Storyboard, tmp_path: Path, place: str, reason: str
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RenderError, match=f"the video could not be written: {reason}") as caught:
        await render(RenderTask(1, storyboard, tmp_path / place))
    assert str(tmp_path) not in str(caught.value)
    assert names(tmp_path) == ["file"]


async def test_an_output_that_is_a_directory_is_an_error(
    storyboard: Storyboard, tmp_path: Path
) -> None:
    (tmp_path / "video.mp4").mkdir()
    with pytest.raises(RenderError, match="could not be written: Is a directory"):
        await render(RenderTask(1, storyboard, tmp_path / "video.mp4"))
    assert names(tmp_path) == ["video.mp4"]


async def test_an_encoder_that_is_killed_is_an_error_and_leaves_the_old_video(
    long_storyboard: Storyboard, tmp_path: Path, encoders: Callable[[], list[psutil.Process]]
) -> None:
    output = tmp_path / "video.mp4"
    output.write_bytes(b"an older video")

    async def render_and_kill() -> None:
        async for step in VideoRenderer().render(RenderTask(1, long_storyboard, output)):
            if step.percent > 0:
                assert names(tmp_path) == ["video.mp4", "video.mp4.part"]
                for encoder in encoders():
                    os.kill(encoder.pid, signal.SIGKILL)

    with pytest.raises(RenderError, match=r"^the encoder ended with signal 9$"):
        await render_and_kill()
    assert names(tmp_path) == ["video.mp4"]
    assert output.read_bytes() == b"an older video"
    assert encoders() == []


async def test_an_encoder_that_cannot_be_started_is_an_error(
    storyboard: Storyboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(RenderError, match=r"^the encoder could not be started: No such file"):
        await render(RenderTask(1, storyboard, tmp_path / "video.mp4"))


async def test_an_encoder_that_floods_stderr_is_not_stuck_and_its_last_words_are_logged(
    storyboard: Storyboard,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A stand-in for the encoder, which itself has no reason to say so much."""
    stand_in = tmp_path / "app" / "rendering" / "encode.py"
    stand_in.parent.mkdir(parents=True)
    for package in (stand_in.parent.parent, stand_in.parent):
        (package / "__init__.py").touch()  # or Python would go on to look for one that is a package
    stand_in.write_text(
        "import sys\n"
        "sys.stderr.write('first words ' + 'x' * 1_000_000 + ' last words')\n"
        "sys.exit(3)\n"
    )
    monkeypatch.setattr(video, "_IMPORT_ROOT", tmp_path)
    with pytest.raises(RenderError, match=r"^the encoder ended with exit code 3$"):
        async with asyncio.timeout(60):
            await render(RenderTask(7, storyboard, tmp_path / "video.mp4"))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("job 7: the encoder wrote: x")
    assert record.getMessage().endswith("x last words")
    assert len(record.getMessage()) < 2100


def test_the_service_does_not_carry_the_encoder() -> None:
    script = (
        "import app.rendering.video, sys; sys.exit('av' in sys.modules or 'PIL' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
