"""What the load test's command makes of runs that went wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from loadtests import trial
from loadtests.__main__ import main
from loadtests.record import Record
from loadtests.table import complaints, failures, markdown


def row(**other: object) -> dict[str, Any]:
    around = {"users": 1, "backend": "memory"}
    counted = {"reads": 40, "hits": 39, "bypasses": 1, "cache_errors": 0}
    statements = {"selects_by_polls": 1, "statements": 60}
    return around | counted | statements | Record().report() | other


GOOD = row(jobs=2, completed=2)
FAILED = row(jobs=2, completed=2, failures={"poll": 2, "create": 1}, errors=["poll: why"])


def test_failures_and_unfinished_jobs_are_complained_of() -> None:
    assert complaints(GOOD) == []
    assert complaints(row(jobs=2, completed=1)) == [
        "1 users, memory: 1 of 2 jobs were seen to complete"
    ]
    assert failures(FAILED) == 3
    assert complaints(FAILED) == ["1 users, memory: 3 failures, such as ['poll: why']"]


def test_a_run_without_a_single_job_is_complained_of() -> None:
    assert complaints(row()) == ["1 users, memory: 0 of 0 jobs were seen to complete"]


def test_what_cannot_be_divided_is_a_dash() -> None:
    head, _, line, *_ = markdown([row(selects_by_polls=0)], []).splitlines()
    cells = dict(zip(head.split("|"), line.split("|"), strict=True))
    assert cells[" hit rate % "] == " 97.50 "
    assert cells[" polls per SELECT "] == cells[" p50 ms "] == " - "


@pytest.mark.parametrize(
    ("outcomes", "status", "complaint"),
    [
        ([GOOD, GOOD], 0, ""),
        ([GOOD, FAILED], 1, "FAILED: 1 users, memory: 3 failures"),
        ([trial.LocustFailed("no report"), GOOD], 1, "FAILED: 1 users, null: no report"),
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
    assert "| 1 | memory | " in text
    assert complaint in text
    assert ("FAILED" in text) == (status == 1)


@pytest.mark.parametrize(
    "options", ["--backends null,disk", "--users 0", "--interval 0", "--scenario none"]
)
def test_options_that_make_no_sense_are_refused(
    options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(options.split())
    assert refused.value.code == 2
    assert options.partition(" ")[0] in capsys.readouterr().err
