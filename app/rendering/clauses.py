"""Cuts a text into the pieces that become scenes.

A text is split into its sentences. If more pieces are needed, the longest piece is cut near its
middle: after a comma if there is one, otherwise between two words. If fewer are needed, neighbours
are joined.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

# ruff: noqa: RUF001 - the marks of other scripts are meant

_SENTENCE_END = re.compile(r"(?<=[.!?…;؟؛।])\s+|(?<=[。！？；])\s*|\n")
_PAUSES = (re.compile(r"(?<=[,:،–—])\s+|(?<=[、，：])\s*"), re.compile(r"\s+"))
_LINE_BREAKS = "\n\r\v\f\x85\u2028\u2029"


def readable(text: str) -> str:
    """Return `text` as it can be stored and shown anywhere.

    Lone surrogates are replaced. Line breaks of all kinds become a newline, other control
    characters a space.
    """
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return "".join(_readable_character(character) for character in whole)


def sentences(text: str) -> list[str]:
    """Return the sentences of a readable text, with single spaces.

    A piece without letters and digits stays with the sentence before it. Only a blank text has no
    sentences.
    """
    found: list[str] = []
    for part in _SENTENCE_END.split(text):
        sentence = " ".join(part.split())
        if not sentence:
            continue
        if found and not (_has_words(sentence) and _has_words(found[-1])):
            found[-1] = f"{found[-1]} {sentence}"
        else:
            found.append(sentence)
    return found


def cut_into(pieces: list[str], wanted: int) -> list[str]:
    """Return `wanted` pieces, or fewer if there are no more words, by joining or cutting some."""
    if len(pieces) > wanted:
        bounds = [len(pieces) * number // wanted for number in range(wanted + 1)]
        return [" ".join(pieces[start:end]) for start, end in pairwise(bounds)]
    cut = list(pieces)
    while len(cut) < wanted:
        for longest in sorted(range(len(cut)), key=lambda number: -len(cut[number])):
            halves = _halves(cut[longest])
            if halves is not None:
                cut[longest : longest + 1] = halves
                break
        else:
            break
    return cut


def _halves(piece: str) -> tuple[str, str] | None:
    middle = len(piece) / 2
    for pause in _PAUSES:
        gaps = [gap for gap in pause.finditer(piece) if gap.start() > 0 and gap.end() < len(piece)]
        if gaps:
            gap = min(gaps, key=lambda gap: abs(gap.start() - middle))
            return piece[: gap.start()], piece[gap.end() :]
    return None


def _readable_character(character: str) -> str:
    if character in _LINE_BREAKS:
        return "\n"
    return " " if unicodedata.category(character) == "Cc" else character


def _has_words(text: str) -> bool:
    return any(character.isalnum() for character in text)
