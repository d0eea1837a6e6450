"""How often a caller may call."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from app import settings
from app.access.rate import RateLimit, address_name, read_rate
from jobcache import SettingsError
from tests.service.keyed import keyed
from tests.service.running import Start


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_so_many_calls_and_then_a_wait() -> None:
    clock = Clock()
    limit = RateLimit(3, 60, clock=clock)
    assert [limit.wait("a") for _ in range(3)] == [0, 0, 0]
    assert limit.wait("a") > 0
    assert limit.wait("b") == 0, "each caller is counted apart"
    clock.now += 120
    assert limit.wait("a") == 0, "all is forgotten after two windows"


def test_what_is_refused_is_not_counted() -> None:
    clock = Clock()
    limit = RateLimit(2, 10, clock=clock)
    for _ in range(2):
        limit.wait("a")
    waits = {limit.wait("a") for _ in range(100)}
    assert len(waits) == 1


@pytest.mark.parametrize("calls", [1, 2, 3, 7, 100])
def test_the_wait_is_long_enough_and_no_longer_than_it_must(calls: int) -> None:
    random = Random(calls)
    clock = Clock()
    limit = RateLimit(calls, 10, clock=clock)
    refused = 0
    for _ in range(2000):
        clock.now += random.choice([0, 0, 0, 0.1, 1, 3]) * 10 / calls
        wait = limit.wait("a")
        if wait > 0:
            refused += 1
            clock.now += wait * 0.99 - 1e-6
            assert limit.wait("a") > 0, "a moment before, it is not let through"
            clock.now += wait * 0.01 + 1e-5
            assert limit.wait("a") == 0, "then it is"
    assert refused > 50


@pytest.mark.parametrize("calls", [1, 5, 100])
def test_in_the_long_run_no_more_than_the_rate(calls: int) -> None:
    clock = Clock()
    limit = RateLimit(calls, 10, clock=clock)
    admitted = 0
    for _ in range(10_000):
        clock.now += 0.05
        admitted += limit.wait("a") == 0
    windows = 10_000 * 0.05 / 10
    assert windows * calls * 0.5 <= admitted <= (windows + 1) * calls


def test_only_so_many_callers_are_remembered() -> None:
    limit = RateLimit(1, 60, remembered=100, clock=Clock())
    for number in range(1000):
        assert limit.wait(str(number)) == 0
        assert limit.wait("busy") >= 0
    assert len(limit) == 100
    assert limit.wait("busy") > 0, "those who call are not forgotten"


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.7"),
        ("unix", "unix"),
    ],
)
def test_a_network_of_ipv6_is_one_caller(host: str, name: str) -> None:
    assert address_name(host) == name


def test_a_rate_is_written_as_people_do() -> None:
    assert read_rate("100/second") == (100, 1)
    assert read_rate("5 per 3 minutes") == (5, 180)


@pytest.mark.parametrize(
    "text", ["x", "100", "0/second", "-1/second", "1/second; 5/minute", "1/century"]
)
def test_a_rate_that_is_none_stops_the_start(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBCACHE_RATE_LIMIT", text)
    with pytest.raises(SettingsError) as raised:
        settings.load()
    assert str(raised.value).startswith(f"JOBCACHE_RATE_LIMIT={text}: a rate such as")


async def test_a_caller_who_calls_too_often_is_told_when_to_come_back(
    start: Start, tmp_path: Path
) -> None:
    async with keyed(start, tmp_path / "keys", JOBCACHE_RATE_LIMIT="3/hour") as access:
        for _ in range(3):
            assert (await access.call("own", "GET", "/api/v2/jobs")).status_code == 200
        for path in ("/api/v2/jobs", "/api/v2/jobs/1", "/nowhere", "/openapi.json"):
            refused = await access.call("own", "GET", path)
            assert refused.status_code == 429
            assert refused.headers["content-type"] == "application/problem+json"
            assert 1 <= int(refused.headers["retry-after"]) <= 2 * 3600
        for path in ("/healthz", "/readyz"):
            assert (await access.call("own", "GET", path)).status_code == 200
        assert (await access.call("stranger", "GET", "/api/v2/jobs")).status_code == 200
        statuses = [(await access.call("wrong", "GET", "/api/v2/jobs")).status_code for _ in "1234"]
        assert statuses == [401, 401, 401, 429], "by address, where there is no key"
        assert (await access.call("none", "GET", "/api/v2/jobs")).status_code == 429


async def test_without_keys_addresses_are_counted(start: Start) -> None:
    async with start(JOBCACHE_RATE_LIMIT="2/hour") as service:
        statuses = [(await service.http.get("/api/v2/jobs")).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        assert (await service.http.get("/healthz")).status_code == 200
        assert len(service.parts.rate or ()) == 1


async def test_there_is_no_limit_unless_one_is_set(start: Start) -> None:
    async with start() as service:
        assert service.parts.rate is None
