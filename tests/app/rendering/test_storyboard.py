"""Any text becomes a storyboard, always the same one."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from app.rendering.clauses import readable
from app.rendering.storyboard import MAX_SCENES, Storyboard, make_storyboard

# ruff: noqa: RUF001 - the marks of other scripts are meant

ANY_TEXT = st.text(st.characters(exclude_categories=()), min_size=1, max_size=2000)
ODD_PROMPTS = [
    " ",
    "\n\t\r\n",
    "...",
    "?!?! ... --- !!!",
    "🙂",
    "👩‍👩‍👧‍👦🏳️‍🌈 " * 50,
    "مرحبا بالعالم. هذا فيديو قصير؟ نعم!",
    "שלום עולם",
    "日本の朝。船が港を出る！嵐が来る、灯台が光る。",
    "x" * 2000,
    "word " * 400,
    "a. " * 660,
    ", " * 1000,
    "\x00\x01\x1b[31m",
    "\ud800 lone \udfff",
    "e\u0301" * 1000,
    "\u202e\u200b\ufeff",
    "\n" * 2000,
    " " * 1999 + "x",
]


def without_spaces(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("prompt", ODD_PROMPTS)
@pytest.mark.parametrize("scenes", [None, 1, 2, 7, MAX_SCENES])
def test_an_odd_prompt_becomes_a_storyboard(prompt: str, scenes: int | None) -> None:
    made = make_storyboard(prompt, scenes=scenes)
    assert made == make_storyboard(prompt, scenes=scenes)
    assert all(scene.title and scene.text for scene in made.scenes)
    assert made.title
    assert Storyboard.model_validate_json(made.model_dump_json()) == made
    if scenes is None:
        assert 1 <= len(made.scenes) <= 6
    else:
        assert len(made.scenes) == scenes


@settings(max_examples=60, deadline=None)
@given(prompt=ANY_TEXT, scenes=st.integers(1, MAX_SCENES))
def test_there_are_exactly_as_many_scenes_as_asked_for(prompt: str, scenes: int) -> None:
    made = make_storyboard(prompt, scenes=scenes)
    assert [scene.index for scene in made.scenes] == list(range(1, scenes + 1))
    assert Storyboard.model_validate_json(made.model_dump_json()) == made


@settings(max_examples=60, deadline=None)
@given(prompt=ANY_TEXT | st.text("ab ,.!。、\n", min_size=1, max_size=600))
def test_the_scenes_tell_the_whole_text_once(prompt: str) -> None:
    made = make_storyboard(prompt)
    spoken = without_spaces("".join(scene.text for scene in made.scenes))
    assert spoken == (without_spaces(readable(prompt)) or "…")
    assert 1 <= len(made.scenes) <= 6


def test_sentences_become_scenes() -> None:
    made = make_storyboard("The sun rises. A ship sails! Who is aboard?\nNobody knows")
    texts = [scene.text for scene in made.scenes]
    assert texts == ["The sun rises.", "A ship sails!", "Who is aboard?", "Nobody knows"]
    assert made.title == "The sun rises."


def test_sentences_of_other_scripts_are_seen() -> None:
    made = make_storyboard("船が港を出る。嵐が来る！")
    assert [scene.text for scene in made.scenes] == ["船が港を出る。", "嵐が来る！"]


def test_a_sentence_is_cut_at_its_comma_if_more_scenes_are_wanted() -> None:
    made = make_storyboard("When the old sun rises, ships sail away.", scenes=2)
    assert [scene.text for scene in made.scenes] == ["When the old sun rises,", "ships sail away."]


def test_a_text_without_commas_is_cut_between_the_words_near_its_middle() -> None:
    made = make_storyboard("one two three four five six", scenes=2)
    assert [scene.text for scene in made.scenes] == ["one two three", "four five six"]


def test_sentences_are_joined_if_fewer_scenes_are_wanted() -> None:
    made = make_storyboard("One. Two. Three. Four.", scenes=2)
    assert [scene.text for scene in made.scenes] == ["One. Two.", "Three. Four."]


def test_a_text_with_fewer_words_than_scenes_begins_again() -> None:
    made = make_storyboard("Red boat", scenes=5)
    assert [scene.text for scene in made.scenes] == ["Red", "boat", "Red", "boat", "Red"]


def test_a_long_text_without_sentences_becomes_several_scenes() -> None:
    assert len(make_storyboard("word " * 60).scenes) == 4


def test_neighbouring_scenes_look_different() -> None:
    scenes = make_storyboard("A quiet sea", scenes=12).scenes
    for one, next_one in itertools.pairwise(scenes):
        assert one.background != next_one.background
        assert one.accent != next_one.accent
        assert one.motion != next_one.motion


def test_another_text_has_other_colours() -> None:
    one, other = make_storyboard("A quiet sea"), make_storyboard("A loud city")
    assert one.scenes[0].background != other.scenes[0].background


def test_another_process_makes_the_same_storyboard() -> None:
    """Hash randomisation, the usual culprit, is set to differ."""
    prompt = "The sun rises over Łódź. A ship sails, slowly! 🙂"
    script = (
        "import sys; from app.rendering.storyboard import make_storyboard;"
        "print(make_storyboard(sys.argv[1], scenes=4).model_dump_json())"
    )
    root = Path(sys.modules["app"].__path__[0]).parent
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script, prompt],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"},
            cwd=root,
            capture_output=True,
            check=True,
        )
        assert Storyboard.model_validate_json(done.stdout) == make_storyboard(prompt, scenes=4)


def test_a_storyboard_of_today_is_that_of_yesterday() -> None:
    """Pinned: a change here gives existing prompts new storyboards, and should be meant."""
    scene = make_storyboard("A lighthouse wakes at dawn.").scenes[0]
    assert scene.model_dump() == {
        "index": 1,
        "title": "Lighthouse wakes dawn",
        "text": "A lighthouse wakes at dawn.",
        "seconds": 2.0,
        "background": "#4c1d25",
        "accent": "#fabd82",
        "motion": "up",
    }


@pytest.mark.parametrize("scenes", [0, -1, MAX_SCENES + 1])
def test_a_wrong_number_of_scenes_is_refused(scenes: int) -> None:
    with pytest.raises(ValueError, match=f"scenes must be 1 to {MAX_SCENES}, not {scenes}"):
        make_storyboard("A quiet sea", scenes=scenes)


@pytest.mark.parametrize("seconds", [0.0, -2.0, 61.0, float("nan"), float("inf")])
def test_a_wrong_length_is_refused(seconds: float) -> None:
    with pytest.raises(ValidationError, match="seconds"):
        make_storyboard("A quiet sea", seconds_per_scene=seconds)


@pytest.mark.parametrize(
    "change", [{"width": 641}, {"height": 0}, {"fps": 0}, {"scenes": ()}, {"colour": "red"}]
)
def test_a_storyboard_that_cannot_be_encoded_is_refused(
    storyboard: Storyboard, change: object
) -> None:
    with pytest.raises(ValidationError):
        Storyboard.model_validate({**storyboard.model_dump(), **change})


def test_a_storyboard_cannot_be_changed(storyboard: Storyboard) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        storyboard.title = "Another"
    with pytest.raises(ValidationError, match="frozen"):
        storyboard.scenes[0].text = "Another"


def test_a_scene_lasts_for_the_nearest_number_of_frames_and_at_least_one() -> None:
    made = make_storyboard("A quiet sea", scenes=1, seconds_per_scene=0.1)
    assert made.frames(made.scenes[0]) == 2
    slow = made.model_copy(update={"fps": 1})
    assert slow.frames(slow.scenes[0]) == 1
