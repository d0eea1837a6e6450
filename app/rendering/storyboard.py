"""The storyboard: the scenes of a video, and how they are derived from a prompt."""

from __future__ import annotations

import hashlib
import math
import re
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from app.rendering.clauses import cut_into, readable, sentences
from app.rendering.palette import scene_colours

Motion = Literal["left", "right", "up", "down", "diagonal"]
"""Where the background of a scene drifts."""

Colour = Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]

MAX_SCENES = 100
MAX_SCENE_SECONDS = 60.0

_MOTIONS: tuple[Motion, ...] = get_args(Motion)
_MOST_SCENES_UNASKED = 6
_CHARACTERS_A_SCENE = 90
_TITLE_LENGTH = 60
_KEYWORDS = 3
_WORD = re.compile(r"[^\W_]+(?:['\N{RIGHT SINGLE QUOTATION MARK}-][^\W_]+)*")


class Scene(BaseModel):
    """One scene: its text on a moving background for `seconds`, to the nearest frame."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int = Field(ge=1)
    title: str
    text: str
    seconds: float = Field(ge=0.1, le=MAX_SCENE_SECONDS, allow_inf_nan=False)
    background: Colour
    accent: Colour
    motion: Motion


class Storyboard(BaseModel):
    """A whole video: its scenes in order, and its size in pixels, even because of yuv420p."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    width: int = Field(default=640, ge=64, le=3840, multiple_of=2)
    height: int = Field(default=360, ge=64, le=2160, multiple_of=2)
    fps: int = Field(default=24, ge=1, le=60)
    scenes: tuple[Scene, ...] = Field(min_length=1, max_length=MAX_SCENES)

    def frames(self, scene: Scene) -> int:
        """Return how many frames `scene` is shown for: at least one."""
        return max(1, round(scene.seconds * self.fps))

    @property
    def total_frames(self) -> int:
        """Return how many frames the video has."""
        return sum(self.frames(scene) for scene in self.scenes)


def make_storyboard(
    prompt: str, *, scenes: int | None = None, seconds_per_scene: float = 2.0
) -> Storyboard:
    """Derive a storyboard from any text; the same arguments give the same one everywhere.

    With `scenes`, it has exactly that many; a text with fewer words is repeated. Without
    it, there are one to six scenes, depending on sentences and length.

    Raises `ValueError` if `scenes` is not 1 to `MAX_SCENES`, or `seconds_per_scene` (of which
    pydantic's `ValidationError` tells) not 0.1 to `MAX_SCENE_SECONDS`; never because of the text.
    """
    if scenes is not None and not 1 <= scenes <= MAX_SCENES:
        raise ValueError(f"scenes must be 1 to {MAX_SCENES}, not {scenes}")
    text = readable(prompt)
    found = sentences(text) or ["…"]
    wanted = _scenes_for(found) if scenes is None else scenes
    pieces = cut_into(found, wanted)
    digest = hashlib.sha256(text.encode()).digest()
    return Storyboard(
        title=_shortened(found[0], _TITLE_LENGTH),
        scenes=tuple(
            _scene(digest, number, pieces[number % len(pieces)], seconds_per_scene)
            for number in range(len(pieces) if scenes is None else scenes)
        ),
    )


def _scenes_for(found: list[str]) -> int:
    length = sum(map(len, found))
    by_length = math.ceil(length / _CHARACTERS_A_SCENE)
    return min(max(len(found), by_length), _MOST_SCENES_UNASKED)


def _scene(digest: bytes, number: int, text: str, seconds: float) -> Scene:
    background, accent = scene_colours(digest, number)
    return Scene(
        index=number + 1,
        title=_keywords(text) or f"Scene {number + 1}",
        text=text,
        seconds=seconds,
        background=background,
        accent=accent,
        motion=_MOTIONS[(digest[2] + number) % len(_MOTIONS)],
    )


def _keywords(text: str) -> str:
    """Return the longest few words in the order of the text."""
    words = list(dict.fromkeys(_WORD.findall(text)))
    longest = sorted(range(len(words)), key=lambda number: -len(words[number]))[:_KEYWORDS]
    title = " ".join(words[number] for number in sorted(longest))
    return _shortened(title[:1].upper() + title[1:], _TITLE_LENGTH)


def _shortened(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    head = text[: length - 1]
    return (head.rsplit(" ", 1)[0] if " " in head else head).rstrip(" ,;:") + "…"
