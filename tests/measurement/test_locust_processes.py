"""Locust with a master and workers, without its page: nothing that a worker saw is lost."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from app.devservers import free_port
from benchmarks.service import Service
from tests.measurement.locust_process import master_port, run_locust
from tests.measurement.stub_service import PollAnswer, stub_service


def test_workers_count_what_the_service_counts(
    tmp_path: Path, forked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a busy machine: the master says that all users are spawned before a worker reports one.
    monkeypatch.setenv("LOCUST_WAIT_FOR_WORKERS_REPORT_AFTER_RAMP_UP", "0")
    report = tmp_path / "report.json"
    with Service({"JOBCACHE_BACKEND": "memory"}) as service:
        service.wait_until_ready()
        status, printed = run_locust(
            tmp_path,
            *("--processes", "2", *master_port(free_port())),
            *("--host", service.url, "--report", str(report)),
            *("--users", "5", "--spawn-rate", "50", "--stop-timeout", "60"),
            *("--shared-jobs", "2", "--jobs-per-user", "1", "--run-time", "60s"),
            *("--poll-interval", "0.1", "--job-seconds", "1", "--job-updates", "4"),
        )
        counted = service.stats()["statistics"]
    assert status == 0, printed
    seen = json.loads(report.read_text())
    assert seen["failures"] == {}
    assert seen["cut_off"] == 0
    assert seen["ends_seen"] == 5
    assert seen["jobs"] == seen["completed"] == 2
    assert seen["outcomes"].pop("held") == 0
    assert seen["outcomes"] == {name: counted[name] for name in seen["outcomes"]}
    assert seen["outcomes"]["hits"] >= 1  # how many more is the machine's affair
    assert "Poll latencies" in printed


def test_polls_that_end_after_the_test_are_counted(tmp_path: Path) -> None:
    """A master of Locust waits half a second for the last reports of its workers."""
    report = tmp_path / "report.json"

    def slow() -> PollAnswer:
        time.sleep(2)
        return PollAnswer(200, 6, "storyboard_ready")

    with stub_service(slow) as service:
        status, printed = run_locust(
            tmp_path,
            *("--processes", "2", *master_port(free_port())),
            *("--host", service.url, "--report", str(report), "--renderer", "service"),
            *("--users", "4", "--spawn-rate", "50", "--run-time", "6s", "--stop-timeout", "60"),
            *("--poll-interval", "0.1", "--json-file", str(tmp_path / "locust")),
        )
    assert status == 0, printed
    seen = json.loads(report.read_text())
    assert seen["cut_off"] == 0
    assert seen["polls"] == len(service.asked) > 4
    rows = json.loads((tmp_path / "locust.json").read_text())
    polls = sum(row["num_requests"] for row in rows if row["name"].startswith("poll: "))
    assert polls == len(service.asked)


def test_a_master_whose_workers_polled_nothing_fails(tmp_path: Path) -> None:
    status, printed = run_locust(
        tmp_path,
        *("--processes", "2", *master_port(free_port())),
        *("--host", f"http://127.0.0.1:{free_port()}"),
        *("--users", "2", "--spawn-rate", "2", "--run-time", "2s", "--poll-interval", "0.1"),
        *("--exit-code-on-error", "0"),
    )
    assert status == 1
    assert "no poll was answered" in printed
