"""How often a caller may call."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random
from typing import NoReturn

import pytest
from throttled import MemoryStore, RateLimitResult, Throttled
from throttled.store import MemoryStoreBackend

from app import settings
from app.auth.rate_limit import MOST_CALLS, RateLimit, address_name, read_rate
from jobcache import SettingsError
from tests.app.keyed import keyed
from tests.app.running import Start


class Ageing(MemoryStoreBackend):
    """The code reads the time itself, so the stored times are made older instead."""

    passed = 0.0

    def get(self, key: str) -> float | None:
        value = super().get(key)
        return None if value is None else value - self.passed

    def set(self, key: str, value: float, timeout: int) -> None:
        super().set(key, value + self.passed, timeout)


class AgeingStore(MemoryStore):
    _BACKEND_CLASS = Ageing
    _backend: Ageing

    def after(self, seconds: float) -> None:
        self._backend.passed += seconds


@pytest.mark.parametrize(
    ("rate", "at_once"), [("3/hour", 3), ("3/hour burst 1", 1), ("3/hour burst 10", 10)]
)
def test_so_many_calls_at_once_and_then_at_the_rate(rate: str, at_once: int) -> None:
    store = AgeingStore()
    limit = RateLimit(read_rate(rate), store)
    assert [limit.wait("a") for _ in range(at_once)] == [0] * at_once
    assert 1100 < limit.wait("a") <= 1200
    assert limit.wait("b") == 0, "each caller is counted apart"
    store.after(1200)
    assert limit.wait("a") == 0
    assert limit.wait("a") > 0
    store.after(1200 * at_once)
    assert [limit.wait("a") for _ in range(at_once)] == [0] * at_once
    assert limit.wait("a") > 0


def test_what_is_refused_is_not_counted() -> None:
    limit = RateLimit(read_rate("2/hour"))
    for _ in range(2):
        limit.wait("a")
    waits = [limit.wait("a") for _ in range(100)]
    assert 0 < waits[-1] <= waits[0]


@pytest.mark.parametrize("calls", [1, 2, 3, 7, 100])
def test_the_wait_is_long_enough_and_no_longer_than_it_must(calls: int) -> None:
    random = Random(calls)
    store = AgeingStore()
    limit = RateLimit(read_rate(f"{calls}/hour"), store)
    refused = 0
    for _ in range(2000):
        store.after(random.choice([0, 0, 0, 0.1, 1, 3]) * 3600 / calls)
        wait = limit.wait("a")
        if wait > 0:
            refused += 1
            before = max(0, wait - 11)
            store.after(before)
            assert before == 0 or limit.wait("a") > 0, "ten seconds before, it is not let through"
            store.after(wait - before)
            assert limit.wait("a") == 0, "then it is"
    assert refused > 50


def test_the_wait_is_in_whole_seconds_and_never_none_at_all() -> None:
    store = AgeingStore()
    limit = RateLimit(read_rate(f"{MOST_CALLS}/minute burst 1"), store)
    waits = {limit.wait("a") for _ in range(1000)}
    assert waits == {0, 1}


def test_a_refusal_with_nothing_left_to_wait_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding can make it so: at 992 a minute, just when the next may come."""
    refused = RateLimitResult(limited=True, state_values=(1, 0, 0.0, 0.0))
    monkeypatch.setattr(Throttled, "limit", lambda *_: refused)
    assert RateLimit(read_rate("1/second")).wait("a") == 1


@pytest.mark.parametrize("burst", [1, 5, 100])
def test_in_the_long_run_no_more_and_no_fewer_than_the_rate(burst: int) -> None:
    store = AgeingStore()
    limit = RateLimit(read_rate(f"60/minute burst {burst}"), store)
    admitted = 0
    began = time.monotonic()
    for _ in range(10_000):
        store.after(0.0625)
        admitted += limit.wait("a") == 0
    took = time.monotonic() - began
    assert burst + 625 * 0.9 <= admitted <= burst + 625 + took


def test_only_so_many_callers_are_remembered() -> None:
    limit = RateLimit(read_rate("1/hour"), MemoryStore(options={"MAX_SIZE": 100}))
    for number in range(1000):
        assert limit.wait(str(number)) == 0
        limit.wait("busy")
    assert limit.wait("busy") > 0, "those who call are not forgotten"
    assert limit.wait("999") > 0
    assert limit.wait("0") == 0, "who has not called for longest is"


def test_ten_thousand_are_remembered_unless_something_else_is_said() -> None:
    limit = RateLimit(read_rate("1/hour"))
    assert {limit.wait(str(number)) for number in range(10_000)} == {0}
    assert limit.wait("0") > 0
    assert limit.wait("10000") == 0
    assert limit.wait("1") == 0


def test_a_call_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> NoReturn:
        raise AssertionError(f"it slept {seconds} s")

    monkeypatch.setattr(time, "sleep", sleep)
    limit = RateLimit(read_rate("1/minute"))
    assert limit.wait("a") == 0
    assert limit.wait("a") > 0


def test_callers_without_a_name_are_one_caller() -> None:
    limit = RateLimit(read_rate("1/hour"))
    assert limit.wait("") == 0
    assert limit.wait("") > 0


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


@pytest.mark.parametrize(
    ("text", "calls", "seconds", "burst"),
    [
        ("100/second", 100, 1, 100),
        ("5/minute", 5, 60, 5),
        ("5 per minute", 5, 60, 5),
        ("1000 / day burst 20", 1000, 86400, 20),
        (f"{MOST_CALLS}/week", MOST_CALLS, 604_800, MOST_CALLS),
    ],
)
def test_a_rate_is_written_as_people_do(text: str, calls: int, seconds: int, burst: int) -> None:
    quota = read_rate(text)
    assert (quota.rate.limit, quota.period_sec, quota.burst) == (calls, seconds, burst)


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "100",
        "0/second",
        "-1/second",
        "1.5/second",
        "1/0.5 seconds",
        "5 per 3 minutes",
        "1/century",
        "1/second; 5/minute",
        ";",
        "1/second burst",
        "1/second burst 0",
        "1/second burst -1",
        f"{MOST_CALLS + 1}/second burst 1",
        f"1/second burst {MOST_CALLS + 1}",
        pytest.param("9" * 400 + "/second", id="no float"),
        pytest.param("9" * 5000 + "/second", id="no int"),
    ],
)
def test_a_rate_that_is_none_stops_the_start(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBCACHE_RATE_LIMIT", text)
    with pytest.raises(SettingsError) as raised:
        settings.load()
    said, _, allowed = str(raised.value).partition(": ")
    assert said in {f"JOBCACHE_RATE_LIMIT={text}", f"JOBCACHE_RATE_LIMIT={text[:200]}…"}
    assert allowed == (
        'a rate such as "100/second", "5 per minute" or "100/second burst 200", of 1 to 1000000'
        " calls"
    )


async def test_a_caller_above_the_rate_gets_retry_after(start: Start, tmp_path: Path) -> None:
    async with keyed(start, tmp_path / "keys", JOBCACHE_RATE_LIMIT="3/hour") as access:
        for _ in range(3):
            assert (await access.call("own", "GET", "/api/v2/jobs")).status_code == 200
        for path in ("/api/v2/jobs", "/api/v2/jobs/1", "/nowhere", "/openapi.json"):
            refused = await access.call("own", "GET", path)
            assert refused.status_code == 429
            assert refused.headers["content-type"] == "application/problem+json"
            assert 1 <= int(refused.headers["retry-after"]) <= 1200
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


async def test_there_is_no_limit_unless_one_is_set(start: Start) -> None:
    async with start() as service:
        assert service.services.rate is None
