"""Entity tags are recognised in every spelling, and nothing else is."""

from __future__ import annotations

import time

import pytest

from jobcache.http.conditional_get import conditions, holds, listed_tags
from tests.jobcache.http.tag_spellings import spellings


@pytest.mark.parametrize("spelling", spellings('"7-0"'))
def test_every_spelling_is_read(spelling: str) -> None:
    for text in (
        spelling,
        f" {spelling} ",
        f'"other", {spelling}',
        f'{spelling},"other"',
        f'"3-0-br" ,{spelling} , W/"2-1"',
        f"rubbish, {spelling}",
    ):
        assert (7, 0) in conditions(text).tags, text
        assert conditions(text).min_version == 7, text


@pytest.mark.parametrize(
    "text",
    [
        '"7-0-other"',
        '"7-0-"',
        '"-gzip"',
        '"7-gzip"',
        '"x7-0-gzip"',
        '"7-0 gzip"',
        '"7-0-gzip',
        "7-0-gzip",
        'X/"7-0"',
        '"7-0"x',
        '"abc"7-0"def"',
        '"\u0667-0"',
        '"7-0-gzip-gzip-gzip-gzip"',
        '"' + "7" * 17 + '-0"',
        '"9007199254740993-0-gzip"',
        "",
        ",,,",
        "*-gzip",
    ],
)
def test_what_is_no_tag_of_ours_raises_nothing(text: str) -> None:
    assert conditions(text).min_version == 0
    assert (7, 0) not in conditions(text).tags
    assert not conditions(text).any


def test_a_list_made_to_be_slow_to_read_is_not() -> None:
    began = time.perf_counter()
    for evil in (
        '"' * 16000,
        '"a,' * 5000,
        " " * 16000,
        '"1-0-gzip' * 1800,
        "," * 16000,
        "-gz" * 5000,
    ):
        listed_tags(evil)
        holds(evil, '"a"')
        holds(f'"{evil}"', '"a"')
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("spelling", spellings('"abc0"'))
def test_the_tag_of_a_file_is_recognised_in_every_spelling(spelling: str) -> None:
    assert holds(spelling, '"abc0"')
    assert holds(f'"x", {spelling}', '"abc0"')
    assert not holds(spelling, '"abc1"')
