"""Three processes restarted in turn: whoever waits notices nothing but lost connections."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
import redis

from app.devservers import PostgresServer
from loadtests.restart import node
from loadtests.restart.__main__ import complaints, in_words
from loadtests.restart.node import GRACE
from loadtests.restart.run import Report, run
from tests.app.process import launch


class Launched:
    """What `benchmarks.process.Process` is, of a service that the tests launch."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        assert command[1:] == ["-m", "app", "serve"]
        # What else there is, `launch` knows: the tests' own environment.
        ours = ("JOBCACHE_", "DATABASE_URL", "REDIS_URL")
        self._settings = {name: text for name, text in environment.items() if name.startswith(ours)}
        self._place = tempfile.TemporaryDirectory(prefix="jobcache-")

    def __enter__(self) -> Self:
        place = Path(self._place.name)
        self._log = place / "log"
        port = int(self._settings["JOBCACHE_PORT"])
        self._child = launch(place, port, self._log, measured=False, **self._settings)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()
        self._place.cleanup()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    def wait(self, seconds: float) -> int:
        return self._child.wait(seconds)

    def last_words(self) -> str:
        return self._log.read_text()


@pytest.mark.parametrize("backend", ["tiered"])
async def test_nobody_who_waits_misses_the_end_of_a_job(
    backend: str,
    postgres: PostgresServer,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    long: bool,
) -> None:
    jobs, waiting = (12, 3) if long else (4, 2)
    if not long:
        monkeypatch.setattr(node, "Process", Launched)
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
    print(in_words(report))  # noqa: T201 - how many reconnects there were
    assert report.failures == []
    assert len(report.delays) == report.clients == jobs * waiting
    assert report.news > 2 * report.clients
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
    assert "FAILED: job 7 ended rendering" in in_words(report)
