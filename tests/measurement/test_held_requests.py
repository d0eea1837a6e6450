"""The measurement of held requests, at a small scale."""

from __future__ import annotations

import pytest

from benchmarks.long_poll_scale import main


def test_a_change_is_one_notification_and_wakes_the_waiters_of_every_process(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two processes hold two waiters of each job; a third one changes the jobs."""
    options = "--backend postgres --held 12 --processes 2 --jobs 3 --rate 20 --seconds 1"
    # Delay and memory are measured, and not asserted on a busy machine.
    assert main(options.split()) != 2
    found = {
        name: figures
        for name, *figures in (
            line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()
        )
    }
    assert found["updates of 3 jobs"][0] == "20"
    assert found["answers due, and come"] == ["80, 80", "all"]
    assert found["notifications"] == ["20", "20"]
    assert found["connections that listen"] == ["3", "3"]
    # 20 for as many changes; more on a busy machine, where the feed may lose its proof meanwhile.
    # A load for each answer would be 40.
    assert 1 <= int(found["most loads by a process"][0]) < 40


def test_one_process_holds_all_where_entries_are_not_shared() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--backend", "memory", "--processes", "2"])
    assert ended.value.code == 2
