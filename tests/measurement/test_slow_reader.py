"""The comparison of caches: the loads that a change has overtaken."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.peers import slow_reader

DOCUMENT = Path(__file__).parents[2] / "docs" / "comparison.md"


@pytest.mark.parametrize(
    ("name", "reads"),
    [("jobcache", "the new value"), ("cachetools, condition", "the old value")],
)
async def test_what_a_cache_reads_is_documented(name: str, reads: str) -> None:
    _, make = slow_reader.SUBJECTS[name]
    assert await slow_reader.serves_the_old_value(make) == (reads == "the old value")
    assert await slow_reader.loads_at_once(make) == 1
    text = DOCUMENT.read_text("utf-8")
    (row,) = (line for line in text.splitlines() if line.startswith(f"| {name} |"))
    assert row.endswith(f"| {reads} | 1 |")


async def test_callers_at_once_are_counted() -> None:
    _, make = slow_reader.SUBJECTS["cachetools"]
    assert await slow_reader.loads_at_once(make) > 1


async def test_a_cache_that_is_not_installed_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(slow_reader.SUBJECTS, "none", ("no-such-distribution", lambda load: None))
    assert await slow_reader.row("none") == "| none | not installed | | |"


def test_the_document_has_a_row_for_each_cache() -> None:
    text = DOCUMENT.read_text("utf-8")
    assert [name for name in slow_reader.SUBJECTS if text.count(f"\n| {name} |") != 1] == []
