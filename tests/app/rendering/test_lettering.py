"""Any text fits its box."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.rendering.lettering import _IN_THE_FONT, built_in_font, drawable, fit

# ruff: noqa: RUF001 - lookalikes are what is tested


def test_the_characters_thought_to_be_in_the_font_are() -> None:
    font = built_in_font(30)
    box = bytes(font.getmask("\u4e00"))
    assert [character for character in _IN_THE_FONT if bytes(font.getmask(character)) == box] == []


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("Café Łódź Straße", "Cafe Lodz Strasse"),
        ("from — to", "from - to"),
        ("a 🙂 smile", "a smile"),
        ("朝の海", "朝の海"),
        ("한국", "한국"),
        ("½", "1⁄2"),
        ("a\u200db\ufe0f\u202e", "ab"),
        ("tab\tand\x00null", "tab andnull"),
        ("🙂", ""),
    ],
)
def test_a_text_is_brought_down_to_what_can_be_drawn(text: str, drawn: str) -> None:
    assert drawable(text) == drawn


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=()), max_size=2000)
    | st.text("abc WM.", max_size=2000),
    width=st.integers(40, 700),
    height=st.integers(0, 400),
)
def test_every_line_fits_the_box(text: str, width: int, height: int) -> None:
    lettering = fit(text, width, height, largest=40, smallest=14)
    assert all(lettering.font.getlength(line) <= width for line in lettering.lines)
    assert len(lettering.lines) * lettering.line_height <= height


def test_a_short_text_is_set_large_and_a_long_one_smaller() -> None:
    short = fit("A quiet sea", 500, 200, largest=40, smallest=14)
    long = fit("A quiet sea under a pale sky " * 8, 500, 200, largest=40, smallest=14)
    assert short.font.size == 40
    assert 14 <= long.font.size < 40
    assert " ".join(long.lines) == ("A quiet sea under a pale sky " * 8).strip()


def test_a_text_that_does_not_fit_at_all_ends_in_an_ellipsis() -> None:
    lettering = fit("A quiet sea under a pale sky " * 60, 200, 100, largest=40, smallest=14)
    assert lettering.font.size == 14
    assert lettering.lines[-1].endswith("…")


def test_a_word_wider_than_a_line_is_cut_and_not_lost() -> None:
    lettering = fit("W" * 120, 200, 400, largest=20, smallest=14)
    assert "".join(lettering.lines) == "W" * 120
    assert len(lettering.lines) > 1
