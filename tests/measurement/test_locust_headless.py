"""The locustfile without its web page: rows, failures and exit status."""

from __future__ import annotations

import csv
import itertools
import json
import time
from pathlib import Path
from typing import Any

from app.devservers import free_port
from benchmarks.service import Service
from tests.measurement.locust_process import WITHIN, locust, run_locust
from tests.measurement.stub_service import PollAnswer, stub_service

MISTAKES = [
    PollAnswer(200, 3, "storyboard_ready"),
    PollAnswer(200, 6, "rendering"),
    PollAnswer(200, 5, "rendering", "fwd=bypass"),  # older than what was shown before
    PollAnswer(500, 0, ""),
    PollAnswer(200, 8, "completed", "fwd=miss"),
]


def results(place: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    """Run Locust; return its exit status, its results and what it printed."""
    report = place / "report.json"
    status, printed = run_locust(place, "--report", str(report), *options)
    return status, json.loads(report.read_text()), printed


def test_wrong_answers_are_failures(tmp_path: Path) -> None:
    polls = itertools.chain(MISTAKES, itertools.repeat(MISTAKES[-1]))
    with stub_service(lambda: next(polls)) as service:
        status, seen, _ = results(
            tmp_path,
            *("--host", service.url, "--users", "1", "--run-time", "30s", "--renderer", "service"),
            *("--jobs-per-user", "1", "--poll-interval", "0.05", "--poll-mode", "wait"),
        )
    assert status == 1
    polled = {"poll: hit": 3, "poll: during a change": 1, "poll: miss": 1}
    changed = {"job: create": 1, "job: approve": 1, "job: render": 1}
    assert seen["requests"] == polled | changed
    assert seen["failures"] == {"poll: during a change": 1, "poll: hit": 1}
    assert seen["errors"] == [
        "poll: during a change: version 5 after 6",
        "poll: hit: status 500, not 200",
    ]
    assert (seen["jobs"], seen["completed"], seen["ends_seen"], seen["changes"]) == (1, 1, 1, 8)
    assert (seen["first_polls"], seen["first_polls_missed"]) == (2, 1)
    assert service.asked == [(None, None)] * 2 + [('"6-0"', "wait=25")] * 3
    assert (seen["update_polls"], seen["updates"]) == (4, 2)  # from version 6 to 8
    assert seen["delay_ms"]["max"] > 0
    assert seen["received_bytes"] > 8 * 100 < seen["sent_bytes"]


def test_an_end_that_polls_do_not_show_is_a_failure(tmp_path: Path) -> None:
    polls = itertools.chain(
        [PollAnswer(200, 3, "storyboard_ready")],
        itertools.repeat(PollAnswer(200, 6, "rendering"), 60),
        itertools.repeat(PollAnswer(200, 7, "completed")),
    )
    with stub_service(lambda: next(polls)) as service:
        status, seen, _ = results(
            tmp_path,
            *("--host", service.url, "--users", "1", "--run-time", "30s", "--jobs-per-user", "1"),
            *("--poll-interval", "0.05", "--job-seconds", "0.1", "--job-updates", "2"),
            *("--stale-after", "0.1"),
        )
    assert status == 1
    assert 0 < seen["failures"].pop("poll: hit") < seen["requests"]["poll: hit"]
    assert not seen["failures"]
    assert seen["errors"][0] == "poll: hit: version 6, long after 7 was acknowledged"
    assert seen["ends_seen"] == 1
    assert seen["requests"]["job: report progress"] == 2


def test_a_shared_job_that_cannot_be_completed_has_a_successor(tmp_path: Path) -> None:
    polls = itertools.chain(
        [PollAnswer(404, 0, "")],  # to the client that waits for the storyboard of the first job
        itertools.repeat(PollAnswer(200, 3, "storyboard_ready")),
    )
    with stub_service(lambda: next(polls)) as service:
        service.refused.add("complete")
        status, seen, _ = results(
            tmp_path,
            *("--host", service.url, "--users", "1", "--run-time", "5s", "--shared-jobs", "1"),
            *("--poll-interval", "0.05", "--job-seconds", "0.05", "--job-updates", "1"),
        )
    assert status == 1
    created = service.changes.count("/api/v2/jobs")
    refused = service.changes.count("/api/v2/jobs/1/complete")
    assert 2 <= refused <= created - 1  # once for each job but the first, which nobody renders
    assert seen["completed"] == 0


def test_the_report_of_an_earlier_run_stays_as_it_is(tmp_path: Path) -> None:
    """After SIGTERM Locust writes none."""
    earlier = tmp_path / "seen.html"
    earlier.write_text("<html><body>earlier</body></html>")
    with stub_service(lambda: PollAnswer(200, 3, "storyboard_ready")) as service:
        options = (
            *("--headless", "--only-summary", "--host", service.url, "--users", "1"),
            *("--poll-interval", "0.05", "--html", str(earlier)),
        )
        with locust(tmp_path, *options) as child:
            deadline = time.monotonic() + WITHIN
            while not service.asked:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            child.terminate()
            printed, _ = child.communicate(timeout=WITHIN)
    assert "Poll latencies" in printed
    assert earlier.read_text() == "<html><body>earlier</body></html>"


def test_users_go_on_creating_jobs_and_count_what_the_service_counts(
    tmp_path: Path, forked: None
) -> None:
    settings = {"JOBCACHE_BACKEND": "memory", "JOBCACHE_RENDERER": "simulated"}
    with Service(settings) as service:
        service.wait_until_ready()
        status, seen, printed = results(
            tmp_path,
            *("--host", service.url, "--users", "4", "--spawn-rate", "4", "--run-time", "12s"),
            *("--poll-interval", "0.1", "--job-seconds", "0.5", "--job-updates", "5"),
            *("--csv", "seen", "--html", "seen.html", "--stop-timeout", "60"),
        )
        counted = service.stats()["statistics"]
    assert status == 0, printed
    assert seen["completed"] > 1
    assert seen["jobs"] > 4
    assert seen["failures"] == {}
    # A poll that was cut off at the end has been counted by the service, or not.
    for name in seen["outcomes"]:
        if name != "held":
            assert 0 <= counted[name] - seen["outcomes"][name] <= seen["cut_off"]
    assert seen["outcomes"]["held"] == 0
    with (tmp_path / "seen_stats.csv").open() as file:
        rows = {row["Name"]: int(row["Request Count"]) for row in csv.DictReader(file)}
    hits = rows["poll: hit"] + rows["poll: 304"]
    assert 0 < hits <= counted["hits"] <= hits + seen["cut_off"]
    bypasses = rows.get("poll: during a change", 0)
    assert bypasses <= counted["bypasses"] <= bypasses + seen["cut_off"]
    assert "poll: 304" in (tmp_path / "seen.html").read_text()


def test_after_a_deploy_all_users_meet_an_empty_cache(tmp_path: Path, forked: None) -> None:
    with Service({"JOBCACHE_BACKEND": "memory"}) as service:
        service.wait_until_ready()
        status, seen, printed = results(
            tmp_path,
            *("--host", service.url, "--users", "20", "--stop-timeout", "60"),
            *("--shape", "stampede", "--shape-seconds", "6", "--shared-jobs", "2"),
            *("--poll-interval", "0.5", "--job-seconds", "60", "--job-updates", "1"),
        )
        counted = service.stats()["statistics"]
    assert status == 0, printed
    assert seen["requests"]["deploy: empty the cache"] == 1
    assert seen["outcomes"].pop("held") == 0
    for name, count in seen["outcomes"].items():
        assert 0 <= counted[name] - count <= seen["cut_off"]
    assert counted["misses"] >= 1
    assert counted["database_loads"] <= 2  # one for each job, however many users come back


def test_users_whose_polls_are_held_come_back_after_a_deploy(tmp_path: Path, forked: None) -> None:
    users = 20
    with Service({"JOBCACHE_BACKEND": "memory"}) as service:
        service.wait_until_ready()
        status, seen, printed = results(
            tmp_path,
            *("--host", service.url, "--users", str(users), "--stop-timeout", "60"),
            *("--shape", "stampede", "--shape-seconds", "9", "--shared-jobs", "1"),
            *("--poll-mode", "wait", "--hold", "2", "--job-seconds", "60", "--job-updates", "1"),
        )
    assert status == 0, printed
    assert seen["requests"]["deploy: empty the cache"] == 1
    first = sum(
        count
        for row, count in seen["requests"].items()
        if row.startswith("poll: ") and row != "poll: long poll"
    )
    assert first > 2 * users  # of each user before and after, and of who created the job


def test_a_run_that_polled_nothing_fails(tmp_path: Path) -> None:
    status, seen, printed = results(
        tmp_path,
        *("--host", f"http://127.0.0.1:{free_port()}", "--users", "2", "--run-time", "1s"),
        *("--poll-interval", "0.1", "--exit-code-on-error", "0"),
    )
    assert status == 1
    assert "no poll was answered" in printed
    assert seen["polls"] == 0


def test_an_invalid_option_ends_locust_with_what_is_valid(tmp_path: Path) -> None:
    status, printed = run_locust(tmp_path, "--host", "http://127.0.0.1:1", "--hold=61")
    assert status == 1
    assert "--hold must be 1 to 60, not 61" in printed
