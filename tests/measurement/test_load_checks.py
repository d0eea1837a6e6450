"""What makes a measurement of the load test a failure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadtests.run.checks import differences, problems
from tests.measurement.measurements import measurement

GOOD = measurement("memory", hits=39, misses=1)


def test_a_good_measurement_has_no_problem() -> None:
    assert problems(GOOD, []) == []


def test_failures_are_problems() -> None:
    failed = replace(GOOD, requests=[replace(GOOD.requests[0], failures=3)])
    assert problems(failed, ["poll: hit: why"]) == [
        "users_10 on memory: 3 failures, such as poll: hit: why"
    ]


def test_jobs_and_clients_without_an_end_are_problems() -> None:
    assert problems(replace(GOOD, completed=19), []) == [
        "users_10 on memory: 19 of 20 jobs were seen to complete"
    ]
    assert problems(replace(GOOD, ends_seen=9), []) == [
        "users_10 on memory: 9 of 10 clients saw their job's end"
    ]


def test_a_run_that_measured_nothing_is_a_problem() -> None:
    found = problems(replace(GOOD, polls=0, jobs=0, completed=0), [])
    assert found == [
        "users_10 on memory: no poll was answered",
        "users_10 on memory: 0 of 0 jobs were seen to complete",
    ]


@pytest.mark.parametrize("counter", ["hits", "misses", "bypasses", "stale", "coalesced"])
def test_counts_of_clients_and_service_that_differ_are_problems(counter: str) -> None:
    seen = replace(GOOD, clients=replace(GOOD.clients, **{counter: 7}))
    counted = getattr(GOOD.service, counter)
    found = [f"{counter}: the clients counted 7, the service {counted}"]
    assert differences(seen) == found
    assert problems(seen, []) == [f"users_10 on memory: {found[0]}"]
    # What the service read for a poll that it held, or whose answer nobody waited for, is unknown.
    assert differences(replace(seen, held=1)) == []
    assert differences(replace(seen, cut_off=1)) == []


def test_reads_whose_outcome_is_not_known_are_compared_in_number() -> None:
    """A list and a batch do not say how they were answered."""
    reads = GOOD.service.reads
    shown = replace(
        GOOD, clients=replace(GOOD.clients, hits=GOOD.clients.hits - 5), reads_without_outcome=5
    )
    assert differences(shown) == []
    assert differences(replace(shown, reads_without_outcome=6)) == [
        f"reads: the clients counted {reads + 1}, the service {reads}"
    ]
