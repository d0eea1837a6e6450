"""Draws the frames of one scene.

The constant parts are drawn once: a background larger than the frame, and a layer of text. A frame
is a window of the background with the text on it, and a stripe at the bottom that shows the
progress of the video.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from app.rendering.lettering import built_in_font, drawable, fit

if TYPE_CHECKING:
    from app.rendering.storyboard import Motion, Scene, Storyboard

_SLACK = 0.25  # share of the frame's size by which the window moves over the background
_PATHS: dict[Motion, tuple[tuple[int, int], tuple[int, int]]] = {
    "left": ((1, 0), (0, 0)),
    "right": ((0, 1), (1, 1)),
    "up": ((0, 1), (0, 0)),
    "down": ((1, 0), (1, 1)),
    "diagonal": ((0, 0), (1, 1)),
}
_WHITE = (255, 255, 255, 255)
_FAINT_WHITE = (255, 255, 255, 150)
_PANEL = (0, 0, 0, 105)
_STRIPE_GROUND = (12, 12, 16)
_FADE_SECONDS = 0.4
_GLOWS = 3
# Pillow's radial gradient grows from 0 in the middle to 180 at the edge's nearest point. The square
# makes the light end softly.
_GLOW_LIGHT = [round(120 * max(0.0, 1 - distance / 180) ** 2) for distance in range(256)]
_CORNERS = (0, 25, 50, 130)  # share of the accent colour, of 255


class SceneArtist:
    """Draws any frame of `scene`, one of the scenes of `storyboard`."""

    def __init__(self, storyboard: Storyboard, scene: Scene) -> None:
        self._size = (storyboard.width, storyboard.height)
        self._frames = storyboard.frames(scene)
        earlier = storyboard.scenes[: scene.index - 1]
        self._frames_before = sum(storyboard.frames(each) for each in earlier)
        self._total_frames = storyboard.total_frames
        self._fade_frames = min(round(_FADE_SECONDS * storyboard.fps), self._frames // 3)
        self._stripe_height = max(2, storyboard.height // 60)
        self._accent = scene.accent
        self._path = _PATHS[scene.motion]
        self._background = _background(scene, self._size)
        layer = _text_layer(scene, len(storyboard.scenes), self._size)
        self._letters, self._letters_mask = layer.convert("RGB"), layer.getchannel("A")

    def draw(self, frame: int) -> Image.Image:
        """Return frame number `frame` of the scene, counted from 0, as an RGB image."""
        picture = self._background.crop(self._window(frame))
        picture.paste(self._letters, (0, 0), self._mask(frame))
        self._paste_stripe(picture, self._frames_before + frame + 1)
        return picture

    def _window(self, frame: int) -> tuple[int, int, int, int]:
        """Return the part of the background to be seen: left, top, right, bottom."""
        width, height = self._size
        way = frame / max(1, self._frames - 1)
        (from_x, from_y), (to_x, to_y) = self._path
        left = round((self._background.width - width) * (from_x + (to_x - from_x) * way))
        top = round((self._background.height - height) * (from_y + (to_y - from_y) * way))
        return left, top, left + width, top + height

    def _mask(self, frame: int) -> Image.Image:
        if frame >= self._fade_frames:
            return self._letters_mask
        share = (frame + 1) / (self._fade_frames + 1)
        return self._letters_mask.point([round(alpha * share) for alpha in range(256)])

    def _paste_stripe(self, picture: Image.Image, frames_shown: int) -> None:
        width, height = self._size
        top = height - self._stripe_height
        picture.paste(_STRIPE_GROUND, (0, top, width, height))
        picture.paste(self._accent, (0, top, width * frames_shown // self._total_frames, height))


def _background(scene: Scene, frame_size: tuple[int, int]) -> Image.Image:
    """Return a slope from one colour towards the other, with a few glows on it."""
    size = (round(frame_size[0] * (1 + _SLACK)), round(frame_size[1] * (1 + _SLACK)))
    corners = Image.new("L", (2, 2))
    corners.putdata(_CORNERS)
    slope = corners.resize(size, Image.Resampling.BICUBIC)
    ground = Image.new("RGB", size, scene.background)
    picture = Image.composite(Image.new("RGB", size, scene.accent), ground, slope)
    # Colours and number of a scene determine the glows, so that scenes differ.
    seed = f"{scene.background}{scene.accent}{scene.index}".encode()
    numbers = hashlib.sha256(seed).digest()
    for glow in range(_GLOWS):
        across, along, breadth = numbers[3 * glow : 3 * glow + 3]
        diameter = round(size[1] * (0.6 + breadth / 256))
        light = Image.radial_gradient("L").point(_GLOW_LIGHT).resize((diameter, diameter))
        corner = (
            size[0] * across // 256 - diameter // 2,
            size[1] * along // 256 - diameter // 2,
        )
        picture.paste(scene.accent, (*corner, corner[0] + diameter, corner[1] + diameter), light)
    return picture


def _text_layer(scene: Scene, scenes: int, size: tuple[int, int]) -> Image.Image:
    """Return the title, the text and the scene's number on a dark panel; the rest is clear."""
    width, height = size
    margin = height // 12
    padding = height // 18
    layer = Image.new("RGBA", size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    panel = (margin, margin, width - margin, height - margin)
    draw.rounded_rectangle(panel, radius=height // 30, fill=_PANEL)
    left, top = margin + padding, margin + padding
    inner_width = width - 2 * left

    number_font = built_in_font(max(6, height // 26))
    number = f"{scene.index} / {scenes}"
    draw.text(
        (width - left, height - top), number, font=number_font, fill=_FAINT_WHITE, anchor="rd"
    )
    floor = height - top - round(number_font.size * 1.5)

    title = fit(
        drawable(scene.title), inner_width, height // 8, max(6, height // 13), max(6, height // 26)
    )
    for line in title.lines:
        draw.text((left, top), line, font=title.font, fill=scene.accent)
        top += title.line_height
    rule = top + padding // 3
    draw.rectangle((left, rule, left + inner_width // 5, rule + height // 180), fill=scene.accent)
    top = rule + padding

    text = fit(scene.text, inner_width, floor - top, max(6, height // 9), max(6, height // 24))
    top += (floor - top - len(text.lines) * text.line_height) // 2
    for line in text.lines:
        draw.text((left, top), line, font=text.font, fill=_WHITE)
        top += text.line_height
    return layer
