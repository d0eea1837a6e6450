"""The examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.app.process import clean_environment, serving

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: str) -> list[str]:
    """Run an example to its end. Returns the lines it printed."""
    result = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name, *arguments],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.splitlines()


def test_the_poller_follows_a_job_to_its_end(tmp_path: Path) -> None:
    simulated = {"JOBCACHE_RENDERER": "simulated", "JOBCACHE_SIMULATED_SECONDS": "1"}
    with serving(tmp_path, measured=False, **simulated) as service:
        with ThreadPoolExecutor() as both:
            begun = [
                both.submit(run, "poller.py", "--url", service.url, *options, "A cat sits.")
                for options in ([], ["--sync"])
            ]
        for printed in begun:
            *shown, last = printed.result()
            assert last == "completed: None"
            assert shown[-1] == "completed 100 %"
            percents = [int(re.findall(r"\d+", line)[0]) for line in shown]
            assert percents == sorted(percents)


def test_the_worker_commits_a_few_of_its_reports_and_is_followed_to_its_end() -> None:
    *shown, last = run("worker.py")
    percents = [int(re.findall(r"\d+", line)[0]) for line in shown]
    assert percents == sorted(percents)
    assert shown[-1] == '{"percent": 100} hit'
    commits = re.fullmatch(r"101 reports, (\d+) commits", last)
    assert commits is not None
    assert 2 <= int(commits[1]) < 20


def test_the_reports_cost_a_query_for_each_change() -> None:
    shown = run("reports.py")
    assert [line.rpartition(", ")[2] for line in shown] == [f"{n} queries" for n in (1, 1, 2, 3, 4)]
    assert "'total': 150" in shown[2]
    assert shown[3].startswith("report 9: None, None")
    assert "May 2026" in shown[4]


def test_the_embedded_cache_spares_all_queries_but_the_first() -> None:
    *shown, last = run("embedded.py")
    assert shown[0] == 'miss: {"percent": 0, "status": "moving"}'
    assert shown[-1] == 'hit: {"percent": 100, "status": "done"}'
    assert re.fullmatch(r"hit rate [\d.]+ %, [12] queries", last)


def test_requests_that_go_away_leave_no_connection_in_use() -> None:
    assert run("sessions.py") == ["{'{\"percent\": 40}'}", "hit", "0 connections in use"]


def test_plain_starlette_polls_waits_and_streams() -> None:
    assert run("starlette_exports.py") == [
        '200 {"percent": 40, "version": 1} "1-0"',
        "304",
        "404 Not Found",
        '{"percent": 100, "version": 2}',
        "id: 2",
        "event: status",
        'data: {"percent": 100, "version": 2}',
    ]


def test_litestar_polls_waits_and_streams() -> None:
    assert run("litestar_exports.py") == [
        '200 {"percent": 40, "version": 1} "1-0"',
        "304",
        "404",
        '{"percent": 100, "version": 2}',
        "id: 2",
        "event: status",
        'data: {"percent": 100, "version": 2}',
    ]


def test_polls_are_answered_beside_django() -> None:
    assert run("django_exports.py") == [
        '200 {"id": 7, "percent": 0}',
        '{"id": 7, "percent": 100}',
        "404 from Django",
    ]
