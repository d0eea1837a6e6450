"""Workers that know nothing of each other count together: exactly what a client has done."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.app.connections import Connection
from tests.app.ops.test_metrics import Scraped
from tests.app.process import NO_CERTIFICATES, Process, serving
from tests.app.servers import PYTHON, served

GUNICORN = (
    *(*PYTHON, "gunicorn", "-k", "uvicorn_worker.UvicornWorker", "app.main:app", "-w", "2"),
    *("-b", "127.0.0.1:{port}", "--graceful-timeout", "60"),
)
POLLS = "jobcache_polls_total"


def get(process: Process, path: str, **headers: str) -> httpx.Response:
    """Request something on a connection of its own, which comes to some worker."""
    with httpx.Client(base_url=process.url, timeout=60, verify=NO_CERTIFICATES) as http:
        return http.get(path, headers=headers)


def hits_of(process: Process, path: str, times: int, status: int, **headers: str) -> int:
    """Poll so many times, and return how many of the answers are hits.

    A busy machine may make some of them loads: then Redis has not answered in time.
    """
    found = 0
    for _ in range(times):
        answer = get(process, path, **headers)
        assert answer.status_code == status
        found += "; hit;" in answer.headers["cache-status"]
    return found


def scrape(process: Process) -> Scraped:
    return Scraped(get(process, "/metrics").raise_for_status().text)


def workers(process: Process) -> set[int]:
    stats = get(process, "/api/v2/cache/stats").raise_for_status().json()
    return {each["process"] for each in stats["processes"]}


def until_there_are(process: Process, count: int) -> set[int]:
    """Wait until so many workers give their report; return their process ids."""
    deadline = time.monotonic() + 60
    while len(found := workers(process)) != count:
        assert time.monotonic() < deadline, process.log.read_text()
        time.sleep(0.02)
    return found


def external(process: Process) -> str:
    """Return the path of a job that changes only when a worker reports on it."""
    job_id = process.rendering(renderer="external")
    return f"/api/v2/jobs/{job_id}"


async def long_poll(process: Process, path: str, tag: str) -> int:
    """Hold a poll until it is answered with the report of a worker; return its version."""
    connection = await Connection.open(process.port)
    waiting = asyncio.create_task(
        connection.request("GET", path, **{"If-None-Match": tag, "Prefer": "wait=50"})
    )
    while (await asyncio.to_thread(scrape, process))("jobcache_held_requests", kind="waits") != 1:
        assert not waiting.done()
    await asyncio.to_thread(process.http.post, f"{path}/progress", json={"percent": 5})
    version: int = (await waiting).json()["version"]
    await connection.aclose()
    return version


def test_two_workers_count_exactly_what_a_client_did(tmp_path: Path, redis_url: str) -> None:
    environment = {"JOBCACHE_BACKEND": "redis", "REDIS_URL": redis_url}
    with serving(
        tmp_path, JOBCACHE_WORKERS="2", JOBCACHE_RENDERER="simulated", **environment
    ) as process:
        until_there_are(process, 2)
        path = external(process)
        tag = get(process, path).headers["etag"]
        before = scrape(process)
        whole, unchanged = 60, 40
        seen = hits_of(process, path, whole, 200)
        seen += hits_of(process, path, unchanged, 304, **{"If-None-Match": tag})
        after = scrape(process)
        assert after(POLLS, outcome="200") == before(POLLS, outcome="200") + whole
        assert after(POLLS, outcome="304") == before(POLLS, outcome="304") + unchanged
        hits = {"name": "jobcache_reads_total", "tier": "redis", "result": "hit"}
        assert after(**hits) == before(**hits) + seen
        loads = whole + unchanged - seen
        assert after("jobcache_loads_total") == before("jobcache_loads_total") + loads
        each = [
            value
            for (name, labels), value in after.samples.items()
            if name == "jobcache_process_polls_total" and ("outcome", "200") in labels
        ]
        assert len(each) == 2
        assert all(each), "both workers have answered some"
        assert sum(each) == after(POLLS, outcome="200")

        asyncio.run(long_poll(process, path, tag))
        answered = scrape(process)
        held = {"name": POLLS, "outcome": "long_poll_answered"}
        assert answered(**held) == after(**held) + 1

        # A worker is killed: what it has reported stays in the sums, and its number is taken over.
        found = workers(process)
        os.kill(min(found), signal.SIGKILL)
        deadline = time.monotonic() + 100
        while True:
            try:
                if len(now := workers(process)) == 2 and now != found:
                    break
                assert scrape(process)(**hits) >= answered(**hits)
            except httpx.TransportError:
                pass  # of the worker that was killed
            assert time.monotonic() < deadline, process.log.read_text()
            time.sleep(0.05)
        seen = hits_of(process, path, 20, 200)
        last = scrape(process)
        assert last(POLLS, outcome="200") == answered(POLLS, outcome="200") + 20
        assert last(**hits) == answered(**hits) + seen
        assert last("jobcache_process_up", process="0") == 1
        assert last("jobcache_process_up", process="1") == 1


@pytest.mark.long
def test_workers_of_gunicorn_find_each_other(tmp_path: Path) -> None:
    with served(tmp_path, GUNICORN, anew=True, JOBCACHE_BACKEND="null") as process:
        found = until_there_are(process, 2)
        children = psutil.Process(process.child.pid).children(recursive=True)
        assert found <= {each.pid for each in children}
