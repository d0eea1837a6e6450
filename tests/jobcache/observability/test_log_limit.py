"""No failure writes a line for each key or request."""

from __future__ import annotations

import pytest

from jobcache.observability.log_limit import LogLimit
from jobcache.resilience.circuit_breaker import Breaker
from tests.subjects import FakeClock


def test_omitted_lines_are_counted_and_reported_in_the_next_minute() -> None:
    clock = FakeClock()
    limit = LogLimit(2, clock)
    assert [limit.admit() for _ in range(5)] == ["", "", None, None, None]
    clock.now += 59
    assert limit.admit() is None
    clock.now += 1
    assert limit.admit() == " (4 more lines of this kind were omitted)"
    assert limit.admit() == ""
    assert limit.admit() is None


def test_a_store_that_comes_and_goes_all_the_time_fills_no_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    breaker = Breaker("redis", failures=3, clock=clock)
    for _ in range(500):
        breaker.trip("NOPERM")
        breaker.close()
        clock.now += 0.02  # ten seconds in all
    assert len(caplog.records) == 20
