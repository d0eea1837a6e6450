"""The file that comes out, opened again."""

from __future__ import annotations

import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING

import av
import pytest

from app.rendering.mp4 import choose_encoder, make_mp4
from app.rendering.renderer import RenderError
from app.rendering.scenes import SceneArtist
from app.rendering.storyboard import Storyboard, make_storyboard

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.mark.parametrize(
    ("size", "fps"), [((640, 360), 24), ((360, 640), 25), ((64, 64), 30), ((98, 66), 10)]
)
def test_the_video_is_what_the_storyboard_says(
    tmp_path: Path, size: tuple[int, int], fps: int
) -> None:
    made = make_storyboard("The sun rises. A ship sails.", seconds_per_scene=0.5)
    storyboard = made.model_copy(update={"width": size[0], "height": size[1], "fps": fps})
    output = tmp_path / "video.mp4"
    for _ in make_mp4(storyboard, output):
        pass

    with av.open(str(output)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert (stream.width, stream.height) == size
        assert stream.average_rate == fps
        assert container.duration is not None
        assert abs(container.duration / av.time_base - 1.0) <= 1 / fps + 1e-6
        assert sum(1 for _ in container.decode(stream)) == storyboard.total_frames


def test_the_index_comes_first_so_that_browsers_can_play_at_once(
    storyboard: Storyboard, tmp_path: Path
) -> None:
    output = tmp_path / "video.mp4"
    for _ in make_mp4(storyboard, output):
        pass
    content = output.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_the_colours_are_those_drawn(storyboard: Storyboard, tmp_path: Path) -> None:
    """BT.709 in limited range, and said so: players that have to guess get it wrong.

    The colours are strong ones, which another matrix or range would shift by far more than
    encoding does. The place is a smooth one, above the text.
    """
    scene = storyboard.scenes[0].model_copy(update={"background": "#ff0000", "accent": "#0000ff"})
    vivid = storyboard.model_copy(update={"scenes": (scene,)})
    output = tmp_path / "video.mp4"
    for _ in make_mp4(vivid, output):
        pass
    with av.open(str(output)) as container:
        context = container.streams.video[0].codec_context
        frame = list(container.decode(video=0))[11]
    assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)
    assert context.color_range == 1

    drawn = SceneArtist(vivid, scene).draw(11)
    luma, chroma_blue, chroma_red = map(memoryview, frame.planes)
    for x in range(0, 640, 40):
        red, green, blue = (channel / 255 for channel in drawn.getpixel((x, 10)))
        grey = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        chroma_at = 5 * frame.planes[1].line_size + x // 2
        assert luma[10 * frame.planes[0].line_size + x] == pytest.approx(16 + 219 * grey, abs=5)
        assert chroma_blue[chroma_at] == pytest.approx(128 + 224 * (blue - grey) / 1.8556, abs=5)
        assert chroma_red[chroma_at] == pytest.approx(128 + 224 * (red - grey) / 1.5748, abs=5)


def test_the_same_storyboard_gives_the_same_bytes(storyboard: Storyboard, tmp_path: Path) -> None:
    for name in ("one.mp4", "other.mp4"):
        for _ in make_mp4(storyboard, tmp_path / name):
            pass
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "other.mp4").read_bytes()


def test_the_video_appears_only_when_it_is_whole(storyboard: Storyboard, tmp_path: Path) -> None:
    output = tmp_path / "video.mp4"
    output.write_bytes(b"an older video")
    for step in make_mp4(storyboard, output):
        assert (output.read_bytes() == b"an older video") == (step.percent < 100)
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]


def test_closing_early_leaves_no_file(storyboard: Storyboard, tmp_path: Path) -> None:
    steps = make_mp4(storyboard, tmp_path / "video.mp4")
    while next(steps).percent < 50:
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4.part"]
    steps.close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_and_leaves_no_file(storyboard: Storyboard, tmp_path: Path) -> None:
    with file_size_limit(4096), pytest.raises(OSError, match="too large"):
        for _ in make_mp4(storyboard, tmp_path / "video.mp4"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_x264_is_preferred_and_others_will_do() -> None:
    assert choose_encoder({"libopenh264", "libx264", "h264_nvenc"}).name == "libx264"
    assert choose_encoder({"libopenh264", "h264_nvenc"}).name == "libopenh264"
    with pytest.raises(RenderError, match=r"no H\.264 encoder"):
        choose_encoder({"h264", "h264_nvenc", "mpeg4"})


@contextmanager
def file_size_limit(limit_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
