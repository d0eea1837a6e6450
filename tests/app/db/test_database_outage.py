"""What the log says of a database that goes away and comes back."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from app.db.outage_logger import OutageLogger
from tests.subjects import FakeClock


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    said: list[str] = []
    with caplog.at_level(logging.WARNING, "app"):
        handler = logging.Handler()
        handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("app").addHandler(handler)
        yield said
        logging.getLogger("app").removeHandler(handler)


def test_an_outage_that_goes_on_is_logged_again_with_a_count(lines: list[str]) -> None:
    clock = FakeClock(100)
    outage = OutageLogger(quiet=10, clock=clock)
    for _ in range(5):
        outage.note("refused")
    clock.now = 109.9
    outage.note("refused")
    clock.now = 110.0
    outage.note("refused")
    assert [line.rpartition(": ")[2] for line in lines] == ["1", "6"]
    assert lines[0].startswith("the database is away (refused); ")


def test_each_outage_has_a_line_for_its_beginning_and_one_for_its_end(lines: list[str]) -> None:
    clock = FakeClock(100)
    outage = OutageLogger(clock=clock)
    outage.answered()
    assert lines == []
    for _ in range(2):
        outage.note("refused")
        clock.now += 5
        for _ in range(3):
            outage.answered()
    assert [line.split(" (")[0] for line in lines] == [
        "the database is away",
        "the database is back after 5.0 s",
    ] * 2


def test_an_answer_that_was_on_its_way_does_not_end_an_outage(lines: list[str]) -> None:
    clock = FakeClock(100)
    outage = OutageLogger(settled=1, clock=clock)
    outage.note("refused")
    clock.now += 0.1
    outage.answered()
    assert len(lines) == 1


def test_a_database_that_is_full_is_not_said_to_be_back_after_every_read(lines: list[str]) -> None:
    clock = FakeClock(100)
    outage = OutageLogger(quiet=10, settled=1, clock=clock)
    for _ in range(19):
        outage.note("disk full")
        clock.now += 0.5
        outage.answered()
    assert len(lines) == 1
