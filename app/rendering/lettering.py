"""Sets text into a box with Pillow's built-in font.

The font is the same on every machine, and small: ASCII, some punctuation, and a box for the rest.
Text is first reduced to these characters: accents are removed, dashes and ligatures are spelled
out, symbols such as emoji are dropped. Other letters are drawn as boxes, to show that there is
text. Rejected: a font of the machine, because the same storyboard would give different videos.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from PIL import ImageFont

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# ruff: noqa: RUF001 - this file is about characters that look alike

_IN_THE_FONT = frozenset(map(chr, range(32, 127))) | frozenset("©«±´·»‘’“”…‹›⁄™ﬁﬂ")
_SPELLED_OUT = str.maketrans(
    {
        "ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "đ": "d",
        "Đ": "D", "ł": "l", "Ł": "L", "ı": "i", "þ": "th", "Þ": "Th", "ð": "d", "Ð": "D",
        "‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "-", "−": "-", "×": "x", "•": "·",
        "¿": "?", "¡": "!", "„": "“", "‚": "‘", "′": "'", "″": '"', "€": "EUR", "£": "GBP",
    }
)  # fmt: skip
_SHRINK = 0.9
_LINE_HEIGHT = 1.3


@dataclass(frozen=True, slots=True)
class Lettering:
    """Lines that fit into their box; `line_height` and the size of `font` are in pixels."""

    lines: tuple[str, ...]
    font: ImageFont.FreeTypeFont
    line_height: int


def built_in_font(size: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font, `size` pixels high. Raises `RuntimeError` without FreeType."""
    font = ImageFont.load_default(size=size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, which draws the text")  # noqa: TRY004 - no argument is wrong
    return font


def drawable(text: str) -> str:
    """Return `text` in characters that can be drawn; letters that the font lacks stay."""
    spelled = (_drawable_character(character) for character in text.translate(_SPELLED_OUT))
    return " ".join("".join(spelled).split())


def fit(text: str, width: int, height: int, largest: int, smallest: int) -> Lettering:
    """Set `text` as large as it fits into `width` by `height` pixels, between two font sizes.

    Words longer than a line are cut. A text that does not fit at the smallest size ends in an
    ellipsis.
    """
    shown = drawable(text)
    size = max(largest, smallest)
    while True:
        font = built_in_font(size)
        line_height = round(size * _LINE_HEIGHT)
        lines = _wrapped(shown, font, width)
        room = height // line_height
        if len(lines) <= room:
            return Lettering(tuple(lines), font, line_height)
        if size <= smallest:
            return Lettering(_cut_short(lines, room, font, width), font, line_height)
        size = max(smallest, int(size * _SHRINK))


def _drawable_character(character: str) -> str:
    if character in _IN_THE_FONT:
        return character
    if character.isspace():
        return " "
    simpler = "".join(
        part for part in unicodedata.normalize("NFKD", character) if part in _IN_THE_FONT
    )
    if simpler.strip():
        return simpler
    return character if character.isalnum() else ""


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    advance = cache(font.getlength)  # widths add up: the font has no table of kerning
    parts = (part for word in text.split() for part in _no_wider(word, advance, width))
    lines: list[str] = []
    line = ""
    for part in parts:
        longer = f"{line} {part}" if line else part
        if line and sum(map(advance, longer)) > width:
            lines.append(line)
            line = part
        else:
            line = longer
    return [*lines, line] if line else lines


def _no_wider(word: str, advance: Callable[[str], float], width: float) -> Iterator[str]:
    """Yield the word, cut into parts where it is wider than a line."""
    part, taken = "", 0.0
    for character in word:
        if part and taken + advance(character) > width:
            yield part
            part, taken = "", 0.0
        part += character
        taken += advance(character)
    yield part


def _cut_short(
    lines: list[str], room: int, font: ImageFont.FreeTypeFont, width: float
) -> tuple[str, ...]:
    if room == 0:
        return ()
    last = lines[room - 1]
    while last and font.getlength(last + "…") > width:
        last = last[:-1]
    return (*lines[: room - 1], last.rstrip() + "…")
