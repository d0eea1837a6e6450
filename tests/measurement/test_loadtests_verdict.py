"""What the load test's command makes of runs that went wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from loadtests import trial
from loadtests.__main__ import main
from loadtests.pollers.record import Record
from loadtests.table import complaints, failures, markdown, worth_of_waiting

OUTCOMES = {"hits": 39, "misses": 0, "bypasses": 1, "stale_served": 0, "coalesced": 0, "held": 0}


def row(**other: object) -> dict[str, Any]:
    around = {"users": 1, "backend": "memory", "mode": "plain"}
    counted = {"reads": 40, "cache_errors": 0} | OUTCOMES
    statements = {"selects_by_polls": 1, "statements": 60}
    seen = Record().report() | {"polls": 40, "outcomes": OUTCOMES, "ends_seen": 1}
    return around | counted | statements | seen | other


GOOD = row(jobs=2, completed=2)
FAILED = row(jobs=2, completed=2, failures={"poll": 2, "create": 1}, errors=["poll: why"])


def test_failures_and_unfinished_jobs_are_complained_of() -> None:
    assert complaints(GOOD) == []
    assert complaints(row(jobs=2, completed=1)) == [
        "1 users, memory, plain: 1 of 2 jobs were seen to complete"
    ]
    assert failures(FAILED) == 3
    assert complaints(FAILED) == ["1 users, memory, plain: 3 failures, such as ['poll: why']"]


def test_a_run_without_a_single_job_is_complained_of() -> None:
    assert complaints(row()) == ["1 users, memory, plain: 0 of 0 jobs were seen to complete"]


def test_a_user_that_missed_the_end_of_its_job_is_complained_of() -> None:
    assert complaints(row(jobs=1, completed=1, users=2)) == [
        "2 users, memory, plain: 1 of 2 users saw the end of their job"
    ]


@pytest.mark.parametrize("counter", ["hits", "misses", "bypasses", "stale_served", "coalesced"])
def test_counts_of_users_and_service_that_differ_are_complained_of(counter: str) -> None:
    seen = OUTCOMES | {counter: 7}
    assert complaints(GOOD | {"outcomes": seen}) == [
        f"1 users, memory, plain: {counter}: users counted 7, the service {OUTCOMES[counter]}"
    ]
    # What the service read for a poll that it held, or whose answer nobody waited for, is unknown.
    assert complaints(GOOD | {"outcomes": seen | {"held": 1}}) == []
    assert complaints(GOOD | {"outcomes": seen, "cut_off": 1}) == []


def test_what_cannot_be_divided_is_a_dash() -> None:
    head, _, line, *_ = markdown([row(selects_by_polls=0)], []).splitlines()
    cells = dict(zip(head.split("|"), line.split("|"), strict=True))
    assert cells[" hit rate % "] == " 97.50 "
    assert cells[" polls per SELECT "] == cells[" p50 ms "] == " - "


def waited(mode: str, delay_ms: float, polls: int, **other: Any) -> dict[str, Any]:
    counted = {"mode": mode, "update_polls": polls, "updates": 100, "delay_ms": {"p50": delay_ms}}
    return row(**counted, **other)


def test_waiting_is_worth_it_or_not() -> None:
    plain, etag = waited("plain", 1500, 400), waited("etag", 1400, 400)
    assert worth_of_waiting([plain, etag]) == ([], [])
    assert worth_of_waiting([plain, etag, waited("wait", 140, 120)]) == (
        [
            "1 users, memory, wait: 1.20 requests per user and update (at most 1.2)",
            "1 users, memory, wait: median delay 11 times smaller than plain's (at least 10)",
            "1 users, memory, wait: median delay 10 times smaller than etag's (at least 10)",
        ],
        [],
    )
    _, short = worth_of_waiting([plain, etag, waited("wait", 145, 121)])
    assert short == [
        "1 users, memory, wait: 1.21 requests per user and update (at most 1.2)",
        "1 users, memory, wait: median delay 10 times smaller than etag's (at least 10)",
    ]


def test_waiting_is_compared_with_the_like_and_not_judged_where_nothing_can_wake_it() -> None:
    others = [waited("plain", 10, 400, users=2), waited("plain", 10, 400, backend="redis")]
    assert worth_of_waiting([*others, waited("wait", 140, 1)])[1] == []
    asleep = [waited(mode, 10, 400, backend="null") for mode in ("plain", "wait")]
    assert worth_of_waiting(asleep) == ([], [])


def test_waiting_without_a_single_update_falls_short() -> None:
    assert len(worth_of_waiting([row(mode="wait")])[1]) == 1
    plain = waited("plain", 1500, 400)
    assert len(worth_of_waiting([plain, row(mode="wait")])[1]) == 2


@pytest.mark.parametrize(
    ("outcomes", "status", "complaint"),
    [
        ([GOOD, GOOD], 0, ""),
        ([GOOD, FAILED], 1, "FAILED: 1 users, memory, plain: 3 failures"),
        ([GOOD, GOOD | {"mode": "wait"}], 1, "FAILED: 1 users, memory, wait: inf requests"),
        ([trial.LocustFailed("no report"), GOOD], 1, "FAILED: 1 users, null, plain: no report"),
    ],
)
def test_anything_wrong_makes_the_command_fail_and_is_kept(
    outcomes: list[Any],
    status: int,
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The runs after a failed one take place all the same."""
    play = Mock(side_effect=outcomes)
    monkeypatch.setattr(trial, "run", play)
    options = "--backends null,memory --users 1 --database sqlite"
    assert main([*options.split(), "--results", str(tmp_path / "new")]) == status
    assert play.call_count == 2
    (kept,) = (tmp_path / "new").glob("*.md")
    text = kept.read_text()
    assert "| 1 | memory | plain | " in text
    assert complaint in text
    assert ("FAILED" in text) == (status == 1)


@pytest.mark.parametrize(
    "options",
    ["--backends null,disk", "--modes plain,slow", "--users 0", "--interval 0", "--scenario none"],
)
def test_options_that_make_no_sense_are_refused(
    options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(options.split())
    assert refused.value.code == 2
    assert options.partition(" ")[0] in capsys.readouterr().err
