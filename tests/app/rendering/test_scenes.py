"""What the frames of a scene show."""

from __future__ import annotations

import pytest
from PIL import Image, ImageChops

from app.rendering.scenes import SceneArtist, _text_layer
from app.rendering.storyboard import Scene, Storyboard, make_storyboard

PROMPTS = [
    "A quiet sea",
    "x" * 2000,
    "word " * 400,
    "🙂 👩‍👩‍👧‍👦",
    "مرحبا بالعالم",
    "日本の朝。",
    " ",
    "\x00",
]
SIZES = [(640, 360), (64, 64), (360, 640), (1280, 720)]


def with_motion(storyboard: Storyboard, motion: str) -> tuple[Storyboard, Scene]:
    scene = storyboard.scenes[0].model_copy(update={"motion": motion})
    return storyboard.model_copy(update={"scenes": (scene, *storyboard.scenes[1:])}), scene


def is_same(one: Image.Image, other: Image.Image) -> bool:
    return ImageChops.difference(one, other).getbbox() is None


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_any_text_is_drawn_without_being_clipped(prompt: str, size: tuple[int, int]) -> None:
    made = make_storyboard(prompt, scenes=1)
    scene = made.scenes[0]
    storyboard = made.model_copy(update={"width": size[0], "height": size[1]})
    frame = SceneArtist(storyboard, scene).draw(0)
    assert (frame.size, frame.mode) == (size, "RGB")

    # The panel is translucent, letters are not.
    letters = _text_layer(scene, 1, size).getchannel("A").point([0] * 110 + [255] * 146).getbbox()
    margin = size[1] // 12
    assert letters is not None
    left, top, right, bottom = letters
    assert left >= margin
    assert top >= margin
    assert right <= size[0] - margin
    assert bottom <= size[1] - margin


@pytest.mark.parametrize("motion", ["left", "right", "up", "down", "diagonal"])
def test_the_background_moves(storyboard: Storyboard, motion: str) -> None:
    changed, scene = with_motion(storyboard, motion)
    artist = SceneArtist(changed, scene)
    corner = (0, 0, 640, 20)  # above the text
    assert not is_same(artist.draw(5).crop(corner), artist.draw(11).crop(corner))


def test_the_text_fades_in(storyboard: Storyboard) -> None:
    artist = SceneArtist(storyboard, storyboard.scenes[0])
    masks = [artist._mask(frame).getextrema()[1] for frame in range(6)]
    assert masks[0] < masks[1] < masks[2] < masks[4] == masks[5] == 255


def test_the_stripe_grows_over_the_whole_video(storyboard: Storyboard) -> None:
    def stripe(number: int, frame: int) -> int:
        scene = storyboard.scenes[number]
        picture = SceneArtist(storyboard, scene).draw(frame)
        accent = Image.new("RGB", (1, 1), scene.accent).getpixel((0, 0))
        return sum(picture.getpixel((x, 358)) == accent for x in range(640))

    widths = [stripe(0, 0), stripe(0, 11), stripe(1, 0), stripe(1, 11)]
    assert widths == [640 // 24, 640 * 12 // 24, 640 * 13 // 24, 640]


def test_the_same_frame_is_drawn_twice(storyboard: Storyboard) -> None:
    one = SceneArtist(storyboard, storyboard.scenes[1]).draw(7)
    other = SceneArtist(storyboard, storyboard.scenes[1])
    other.draw(3)
    assert is_same(one, other.draw(7))
