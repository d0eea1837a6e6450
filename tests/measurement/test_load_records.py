"""What the load test's users count: outcomes of polls, durations, and sums over processes."""

from __future__ import annotations

import re
from argparse import Namespace
from xml.etree import ElementTree as ET

import pytest

from jobcache.client.core.messages import Response
from loadtests.percentiles import percentile
from loadtests.pollers import rows
from loadtests.pollers.histogram import Histogram
from loadtests.pollers.latency_plot import latency_plot
from loadtests.pollers.options import InvalidOption, PollOptions
from loadtests.pollers.polled_job import AcknowledgedVersions, PolledJob
from loadtests.pollers.record import Record
from loadtests.pollers.shapes import ramp, spike
from loadtests.pollers.shared_jobs import SharedJobs


def response(cache_status: str, status: int = 200, **headers: str) -> Response:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Response(status, {"cache-status": cache_status, **named}, b"")


@pytest.mark.parametrize(
    ("answer", "row", "counter"),
    [
        (response("jobcache; hit; ttl=3; detail=memory"), rows.HIT, "hits"),
        (response("jobcache; hit; ttl=3; detail=memory", 304), rows.UNCHANGED, "hits"),
        (response("jobcache; fwd=miss; detail=redis"), rows.MISS, "misses"),
        (response("jobcache; fwd=stale; detail=redis"), rows.MISS, "misses"),
        (response("jobcache; fwd=bypass; detail=redis", 304), rows.DURING_CHANGE, "bypasses"),
        (response("jobcache; fwd=stale; fwd-status=503; ttl=-4"), rows.STALE, "stale_served"),
        (response("jobcache; hit", 304, preference_applied="wait=25"), rows.LONG_POLL, "hits"),
        (Response(503, {}, b""), rows.UNCACHED, None),
    ],
)
def test_a_poll_has_the_row_of_its_outcome(answer: Response, row: str, counter: str | None) -> None:
    outcome = rows.outcome_of(answer)
    assert (outcome.row, outcome.counter) == (row, counter)
    assert outcome.held == (row == rows.LONG_POLL)
    assert outcome.missed == (row == rows.MISS)
    assert not outcome.coalesced
    assert outcome.not_modified == (answer.status == 304)


def test_a_poll_that_shared_a_query_is_told_apart() -> None:
    assert rows.outcome_of(response("jobcache; fwd=miss; collapsed; detail=redis")).coalesced


def test_percentiles_are_durations_that_occurred() -> None:
    durations = Histogram()
    for milliseconds in (5.0, 1.0, 4.0, 2.0, 3.0, 0.1237):
        durations.record(milliseconds)
    assert durations.percentiles([0, 1, 50, 80, 100]) == [0.124, 0.124, 2.0, 4.0, 5.0]
    assert durations.count == 6
    assert set(Histogram().summary().values()) == {None}


def test_several_percentiles_are_those_that_one_by_one_has() -> None:
    durations = Histogram()
    for milliseconds in (5.0, 1.0, 1.0, 4.0, 2.0, 3.0):
        durations.record(milliseconds)
    percents = [0.0, 10.0, 33.3, 50.0, 50.1, 99.9, 100.0]
    assert durations.percentiles(percents) == [1.0, 1.0, 1.0, 2.0, 3.0, 5.0, 5.0]
    assert [durations.percentiles([each])[0] for each in percents] == durations.percentiles(
        percents
    )
    assert Histogram().percentiles(percents) == []


def test_the_plot_has_a_line_for_each_of_the_rows_with_most_requests() -> None:
    durations = {f"row {number}": Histogram() for number in range(8)}
    for number, each in enumerate(durations.values()):
        for milliseconds in range(number):
            each.record(float(milliseconds))
    plot = latency_plot(durations)
    names = re.findall(">(row [0-9])<", plot)
    assert names == [f"row {number}" for number in range(2, 8)]
    assert plot.count("<polyline") == 6
    for points in re.findall('points="([^"]*)"', plot):
        places = [tuple(map(float, pair.split(","))) for pair in points.split()]
        assert len(places) == 103
        assert places == sorted(places, key=lambda place: (place[0], -place[1]))  # rises
    assert ET.fromstring(plot).attrib["role"] == "img"  # noqa: S314 - our own
    assert latency_plot({"row": Histogram()}) == ""


def test_a_duration_is_kept_to_four_digits_and_a_short_one_to_the_microsecond() -> None:
    for milliseconds, kept in ((0.0, 0.0), (9.999, 9.999), (12.3456, 12.35), (25004.6, 25000.0)):
        durations = Histogram()
        durations.record(milliseconds)
        assert durations.percentiles([50]) == [kept]


def test_percentiles_of_lists_are_values_that_occurred() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, p) for p in (1, 50, 80, 81, 100)] == [1.0, 3.0, 4.0, 5.0, 5.0]
    assert percentile([7.0], 99) == 7.0
    assert percentile([], 50) is None


def recorded() -> Record:
    record = Record()
    for answer in (
        response("jobcache; hit"),
        response("jobcache; fwd=miss; collapsed", 304),  # as on `null`
    ):
        outcome = rows.outcome_of(answer)
        record.poll(outcome)
        record.request(outcome.row, 1.5)
    record.poll(rows.outcome_of(response("jobcache; hit", preference_applied="wait=25")))
    record.request(rows.CREATE, 2.5)
    record.failure(rows.CREATE, "why")
    record.job_created()
    record.job_completed(9)
    record.followed(polls=4, updates=2)
    record.first_poll(missed=True)
    record.delivery(3.5)
    record.traffic(received=100, sent=10)
    record.cut_off()
    return record


def test_records_of_several_processes_add_up() -> None:
    total = Record()
    total.add(recorded().message())
    assert total.report() == recorded().report()
    total.add(recorded().message())
    report = total.report()
    assert report["requests"] == {rows.CREATE: 2, rows.HIT: 2, rows.MISS: 2}
    assert report["outcomes"] == {
        "hits": 2,
        "misses": 2,
        "bypasses": 0,
        "stale_served": 0,
        "coalesced": 2,
        "held": 2,
    }
    assert report["polls"] == total.answered == 4
    assert report["failures"] == {rows.CREATE: 2}
    assert report["errors"] == ["job: create: why"] * 2
    assert (report["jobs"], report["completed"], report["changes"]) == (2, 2, 18)
    assert (report["ends_seen"], report["update_polls"], report["updates"]) == (2, 8, 4)
    assert (report["received_bytes"], report["sent_bytes"], report["cut_off"]) == (200, 20, 2)
    assert report["not_modified"] == 2
    assert (report["first_polls"], report["first_polls_missed"]) == (2, 2)
    assert report["delay_ms"]["max"] == 3.5


def test_polls_without_an_answer_are_not_answered() -> None:
    record = Record()
    record.request(rows.NO_ANSWER, 1.0)
    record.request(rows.CREATE, 1.0)
    assert record.answered == 0
    assert record.report()["polls"] == 1


def test_a_version_must_be_shown_some_time_after_it_was_acknowledged() -> None:
    now = 10.0
    versions = AcknowledgedVersions(2.0, lambda: now)
    versions.acknowledge(5)
    now = 11.9
    assert versions.required() == 0
    versions.acknowledge(6)
    now = 12.0
    assert versions.required() == 5
    now = 20.0
    assert versions.required() == versions.required() == 6


def test_shared_jobs_are_announced_and_end_once() -> None:
    def job(number: int) -> PolledJob:
        return PolledJob(number, AcknowledgedVersions(0.0))

    announced: list[list[list[int]]] = []
    ended_first: list[int] = []
    first = SharedJobs(job, announced.append, ended_first.append)
    other = SharedJobs(job, announced.append, [].append)
    assert first.find(0, 0) is None
    first.put(0, job(7))
    assert announced == [[[0, 7, 0]]]
    other.receive(announced.pop())
    followed = other.find(0, 0)
    assert followed is not None
    assert followed.id == 7
    assert other.find(0, 7) is None  # to users who have followed it
    other.end(followed, 12)
    other.end(followed, 12)
    assert announced == [[[0, 7, 12]]]
    first.receive(announced.pop())
    first.receive([[0, 7, 12]])
    assert first.last_version(0) == 12
    assert ended_first == [12]
    ended = first.find(0, 0)
    assert ended is not None
    assert ended.acknowledged.required() == 12
    first.put(0, job(8))
    first.announce_all()
    assert announced == [[[0, 8, 0]]] * 2
    other.receive(announced.pop())
    assert other.last_version(0) == 0


OPTIONS = {
    "poll_interval": 3.0,
    "poll_mode": "etag",
    "hold": 25,
    "shared_jobs": 0,
    "jobs_per_user": 0,
    "renderer": "external",
    "job_seconds": 60.0,
    "job_updates": 20,
    "stale_after": 2.0,
    "shape": "none",
    "shape_seconds": 120.0,
    "api_key": "",
    "worker_key": "",
    "operator_key": "",
    "client_id": "",
}


def test_options_are_taken_as_they_are() -> None:
    options = PollOptions.of(Namespace(**OPTIONS))
    assert (options.conditional, options.waits, options.external) == (True, False, True)
    plain = PollOptions.of(Namespace(**OPTIONS | {"poll_mode": "plain", "renderer": "service"}))
    assert (plain.conditional, plain.waits, plain.external) == (False, False, False)
    assert PollOptions.of(Namespace(**OPTIONS | {"poll_mode": "wait"})).waits


@pytest.mark.parametrize(
    ("option", "value", "valid"),
    [
        ("poll_mode", "slow", "one of plain, etag, wait"),
        ("renderer", "me", "one of external, service"),
        ("poll_interval", 0.0, "above 0"),
        ("job_seconds", float("nan"), "above 0"),
        ("stale_after", float("inf"), "above 0"),
        ("hold", 0, "1 to 60"),
        ("hold", 61, "1 to 60"),
        ("shared_jobs", -1, "at least 0"),
        ("jobs_per_user", -1, "at least 0"),
        ("job_updates", 0, "at least 1"),
        ("shape", "square", "one of none, ramp, spike, stampede"),
        ("shape_seconds", 0.0, "above 0"),
    ],
)
def test_an_invalid_option_is_refused_with_what_is_valid(
    option: str, value: object, valid: str
) -> None:
    named = f"--{option.replace('_', '-')} must be {valid}, not {value!r}"
    with pytest.raises(InvalidOption, match=named):
        PollOptions.of(Namespace(**OPTIONS | {option: value}))


def test_options_that_contradict_each_other_are_refused() -> None:
    for other, option in (
        ({"shape": "ramp", "jobs_per_user": 1}, "--jobs-per-user"),
        ({"shape": "stampede"}, "--shared-jobs"),
    ):
        with pytest.raises(InvalidOption, match=option):
            PollOptions.of(Namespace(**OPTIONS | other))
    assert PollOptions.of(Namespace(**OPTIONS | {"shape": "stampede", "shared_jobs": 1}))


def test_a_ramp_rises_in_steps_and_stays() -> None:
    assert [ramp(at / 10, 100) for at in range(10)] == [10, 20, 30, 40, 60, 70, 80, 90, 100, 100]
    assert ramp(0, 3) == 1
    assert ramp(1, 3) == 3


def test_a_spike_is_in_the_middle() -> None:
    assert [spike(at / 10, 50) for at in range(10)] == [5, 5, 5, 5, 50, 50, 5, 5, 5, 5]
    assert spike(0, 3) == 1
