"""Locust's web page starts, changes, stops and restarts the test, in one process and in three."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from app.auth.callers import Role
from app.auth.keys import HEADING, make_key
from app.devservers import free_port
from benchmarks.service import Service
from tests.measurement.locust_page import PAUSE, LocustPage, polls_of, requests_of, table_of
from tests.measurement.locust_process import WITHIN, locust, master_port

QUICK = ("--poll-interval", "0.1", "--job-seconds", "0.5", "--job-updates", "3")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, str, str]:
    client, client_key = make_key(Role.CLIENT, "acme", "2026-11-24")
    worker, worker_key = make_key(Role.WORKER, None, "2026-11-24")
    path = tmp_path / "keys.txt"
    path.write_text(f"{HEADING}\n{client.line()}{worker.line()}")
    return path, client_key, worker_key


@pytest.fixture
def service(forked: None) -> Iterator[Service]:
    with Service({"JOBCACHE_BACKEND": "memory"}) as started:
        started.wait_until_ready()
        yield started


def wait_until_ready(url: str) -> None:
    """Wait for a service that shows its statistics to operators only."""
    deadline = time.monotonic() + WITHIN
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz").is_success:
                return
        time.sleep(PAUSE)
    raise AssertionError("the service is not ready")


def test_the_page_starts_stops_and_restarts_the_test(tmp_path: Path, service: Service) -> None:
    port = free_port()
    options = ("--web-host", "127.0.0.1", "--web-port", str(port), "--host", service.url)
    with locust(tmp_path, *options, *QUICK) as child, LocustPage(port) as page:
        assert "Poll latencies" in page.wait_until_shown()
        assert page.options() >= {
            *("poll_interval", "poll_mode", "shared_jobs", "api_key", "worker_key", "client_id"),
            *("job_seconds", "job_updates", "stale_after", "jobs_per_user", "renderer", "hold"),
        }
        assert "report" not in page.options()
        refused = page.start(2, poll_interval="soon")
        assert refused["message"] == "--poll-interval must be a number, not 'soon'"
        refused = page.start(2, poll_mode="slow")
        assert refused["message"] == "--poll-mode must be one of plain, etag, wait, not 'slow'"

        assert page.start(2, poll_mode="plain")["success"]
        shown = page.wait_for(lambda shown: shown["user_count"] == 2 and polls_of(shown) > 20)
        assert "poll: 304" not in requests_of(shown)
        assert page.start(4)["success"]  # while it is running
        page.wait_for(lambda shown: shown["user_count"] == 4)
        page.start(1)
        page.wait_for(lambda shown: shown["user_count"] == 1)
        page.stop()
        stopped = page.wait_for(lambda shown: shown["state"] == "stopped")
        assert stopped["user_count"] == 0
        before = polls_of(stopped)

        assert page.start(3, poll_mode="etag")["success"]
        shown = page.wait_for(
            lambda shown: shown["user_count"] == 3 and "poll: 304" in requests_of(shown)
        )
        assert 0 < polls_of(shown) < before  # counted from the restart
        page.stop()
        shown = page.wait_for(lambda shown: shown["state"] == "stopped")
        assert shown["errors"] == []
        counted = {line["row"]: line["count"] for line in table_of(shown, "polls")}
        assert counted.pop("all polls") == polls_of(shown)
        assert counted == {
            row: count for row, count in requests_of(shown).items() if row != "Aggregated"
        }
        values = {line["name"]: line["value"] for line in table_of(shown, "counts")}
        assert values["cache: hits"] == counted["poll: hit"] + counted["poll: 304"]
        assert page.get("/polls/latencies.csv").startswith("Row,# Requests,p50 (ms),")
        assert "<polyline" in page.get("/polls/latencies")
        report = page.get("/stats/report").partition('id="jobcache-results"')[2]
        assert "Poll latencies" in report
        assert "<polyline" in report

        refused = page.start(3, shape="stampede")
        assert refused["message"] == "--shared-jobs must be at least 1 with --shape stampede"
        assert "ChosenShape" in page.start(3, shape="ramp", shape_seconds=6)["message"]
        page.wait_for(lambda shown: shown["state"] != "stopped")
        page.wait_for(lambda shown: shown["state"] == "stopped")  # by itself
        assert page.start(1, shape="none")["message"] == "Swarming started"
        page.wait_for(lambda shown: shown["user_count"] == 1)
        child.terminate()
        assert child.wait(60) == 0


def test_users_present_an_api_key(
    tmp_path: Path, keys: tuple[Path, str, str], forked: None
) -> None:
    path, client_key, worker_key = keys
    port = free_port()
    options = ("--web-host", "127.0.0.1", "--web-port", str(port), *QUICK)
    with (
        Service({"JOBCACHE_BACKEND": "memory", "JOBCACHE_API_KEYS": str(path)}) as guarded,
        locust(tmp_path, *options, "--host", guarded.url),
        LocustPage(port) as page,
    ):
        page.wait_until_shown()
        wait_until_ready(guarded.url)
        page.start(1)
        shown = page.wait_for(lambda shown: bool(shown["errors"]))
        assert all("status 401, not 202" in error["error"] for error in shown["errors"])
        page.stop()
        page.wait_for(lambda shown: shown["state"] == "stopped")
        page.start(1, api_key=client_key, worker_key=worker_key, client_id="acme", poll_mode="wait")
        shown = page.wait_for(lambda shown: "job: report completion" in requests_of(shown))
        assert shown["errors"] == []
        assert requests_of(shown)["poll: long poll"] > 0
        assert client_key not in page.get("/")


def test_a_page_drives_two_workers(tmp_path: Path, service: Service) -> None:
    port, ports = free_port(), master_port(free_port())
    before = service.stats()["statistics"]
    page_at = ("--web-host", "127.0.0.1", "--web-port", str(port), "--host", service.url)
    with ExitStack() as stack:
        options = ("--master", *ports, *page_at, *QUICK, "--shared-jobs", "3")
        stack.enter_context(locust(tmp_path, *options))
        for _ in range(2):
            stack.enter_context(locust(tmp_path, "--worker", *ports))
        page = stack.enter_context(LocustPage(port))
        page.wait_until_shown()
        page.wait_for(lambda _: page.workers() == 2)
        page.start(4)
        shown = page.wait_for(lambda shown: shown["user_count"] == 4 and polls_of(shown) > 20)
        assert len(shown["workers"]) == 2
        assert {each["user_count"] for each in shown["workers"]} == {2}
        page.stop()
        first = page.wait_for(lambda shown: shown["state"] == "stopped")
        page.wait_for(lambda _: page.workers() == 2)
        page.start(6)
        page.wait_for(lambda shown: shown["user_count"] == 6 and polls_of(shown) > 20)
        page.stop()
        second = page.wait_for(lambda shown: shown["state"] == "stopped")
        after = service.stats()["statistics"]
    assert first["errors"] == second["errors"] == []
    for name in ("hits", "misses", "bypasses", "coalesced"):
        seen = 0
        for shown in (first, second):
            titles = {line["name"]: line["value"] for line in table_of(shown, "counts")}
            seen += next(
                value for title, value in titles.items() if title.startswith(f"cache: {name}")
            )
        assert seen == after[name] - before[name], name
