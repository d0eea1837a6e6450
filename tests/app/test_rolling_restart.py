"""Three processes are restarted in turn; waiting clients notice lost connections only."""

from __future__ import annotations

import os

import pytest
import redis

from app.devservers import PostgresServer
from loadtests.restart import node
from loadtests.restart.__main__ import as_text, complaints
from loadtests.restart.node import GRACE
from loadtests.restart.run import Report, run
from tests.app.forked_process import ForkedProcess
from tests.app.forking import can_fork


@pytest.mark.parametrize("backend", ["tiered"])
async def test_no_waiter_misses_the_end_of_a_job(
    backend: str,
    postgres: PostgresServer,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    long: bool,
) -> None:
    jobs, waiting = (12, 3) if long else (4, 2)
    if not long and can_fork(os.environ):
        monkeypatch.setattr(node, "Process", ForkedProcess)
    with redis.Redis.from_url(redis_url) as raw:
        raw.flushall()
    name = f"restart-{backend}"
    postgres.create_database(name)
    try:
        report = await run(
            {
                "JOBCACHE_BACKEND": backend,
                "DATABASE_URL": postgres.url(name),
                "REDIS_URL": redis_url,
            },
            jobs=jobs,
            waiting=waiting,
        )
    finally:
        postgres.drop_database(name)
    print(as_text(report))  # noqa: T201 - how many reconnects there were
    assert report.failures == []
    assert len(report.delays) == report.clients == jobs * waiting
    assert report.versions > 2 * report.clients
    assert len(report.endings) == 3
    for status, took in report.endings:
        assert status == 0
        assert took < GRACE


def test_whatever_else_they_notice_is_complained_of() -> None:
    assert complaints(Report(endings=[(0, 0.1)])) == []
    report = Report(endings=[(None, 12.0), (1, 0.1)], failures=["job 7 ended rendering"])
    assert complaints(report) == [
        "job 7 ended rendering",
        "a process ended with None after 12.0 s",
        "a process ended with 1 after 0.1 s",
    ]
    assert "FAILED: job 7 ended rendering" in as_text(report)
