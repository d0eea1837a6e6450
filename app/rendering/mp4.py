"""Makes the MP4 of a storyboard, frame by frame.

The format is H.264 in yuv420p with the index at the front, which browsers play while they download
it. One thread and fixed settings give the same bytes for the same storyboard. The file grows under
another name and is renamed once it is complete.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import av
from av.video.reformatter import ColorRange, Colorspace

from app.rendering.partial import partial_path, remove_partial
from app.rendering.renderer import Progress, RenderError
from app.rendering.scenes import SceneArtist

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterator, Mapping
    from pathlib import Path

    from PIL import Image

    from app.rendering.storyboard import Storyboard

_DRAWN = 99.0  # percent; the rest is for closing and renaming the file
_BT709 = 1  # as H.264 numbers primaries, transfer and matrix


@dataclass(frozen=True, slots=True)
class Encoder:
    """An H.264 encoder by its FFmpeg name, with its options."""

    name: str
    options: Mapping[str, str]


# Best first. Encoders that need a certain graphics card are missing, because FFmpeg lists them even
# where they do not work.
_ENCODERS = (
    Encoder("libx264", {"preset": "veryfast", "crf": "21"}),
    Encoder("libopenh264", {"rc_mode": "quality"}),
    Encoder("h264_videotoolbox", {"allow_sw": "1"}),
)


def choose_encoder(available: Collection[str]) -> Encoder:
    """Return the best H.264 encoder among the codecs named. Raises `RenderError` without any."""
    for encoder in _ENCODERS:
        if encoder.name in available:
            return encoder
    raise RenderError("no H.264 encoder is installed")


def make_mp4(storyboard: Storyboard, output: Path) -> Generator[Progress, None, None]:
    """Encode the video, one step per frame; `output` exists after the last step, 100.

    Closing the iterator early, or any error, removes the partial file. Raises `OSError` or
    `av.FFmpegError` if the file cannot be written, and `RenderError` without an encoder.
    """
    encoder = choose_encoder(av.codecs_available)
    partial = partial_path(output)
    try:
        yield Progress(0.0, "starting", f"{storyboard.total_frames} frames to draw")
        yield from _encode(storyboard, partial, encoder)
        yield Progress(_DRAWN, "finishing", "closing the file")
        _flush_to_disk(partial)
        partial.replace(output)
    finally:
        remove_partial(output)
    yield Progress(100.0, "finished", f"{storyboard.total_frames} frames")


def _encode(storyboard: Storyboard, partial: Path, encoder: Encoder) -> Iterator[Progress]:
    with av.open(
        os.fspath(partial), "w", format="mp4", options={"movflags": "+faststart"}
    ) as container:
        container.metadata["title"] = storyboard.title
        added = container.add_stream(
            encoder.name, rate=storyboard.fps, options=dict(encoder.options)
        )
        stream = cast("av.VideoStream", added)
        context = stream.codec_context
        context.width, context.height = storyboard.width, storyboard.height
        context.pix_fmt = "yuv420p"
        context.thread_count = 1
        context.gop_size = 2 * storyboard.fps
        context.color_range = ColorRange.MPEG
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        time_base = Fraction(1, storyboard.fps)
        for number, (picture, progress) in enumerate(_pictures(storyboard)):
            container.mux(stream.encode(_video_frame(picture, number, time_base)))
            yield progress
        container.mux(stream.encode(None))


def _pictures(storyboard: Storyboard) -> Iterator[tuple[Image.Image, Progress]]:
    total = storyboard.total_frames
    drawn = 0
    for scene in storyboard.scenes:
        artist = SceneArtist(storyboard, scene)
        stage = f"drawing scene {scene.index} of {len(storyboard.scenes)}"
        for frame in range(storyboard.frames(scene)):
            drawn += 1
            percent = _DRAWN * drawn / total
            yield artist.draw(frame), Progress(percent, stage, f"frame {drawn} of {total}")


def _video_frame(picture: Image.Image, number: int, time_base: Fraction) -> av.VideoFrame:
    from_image = cast("Callable[[Image.Image], av.VideoFrame]", av.VideoFrame.from_image)
    frame = from_image(picture).reformat(
        format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
    )
    frame.pts, frame.time_base = number, time_base
    return frame


def _flush_to_disk(path: Path) -> None:
    """Flush to disk, so that a power cut cannot leave an empty file under the final name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
