"""The rules by which a job is polled: pauses, held requests, failures and versions."""

from __future__ import annotations

from typing import Any

import pytest

from jobcache.client import Unavailable
from jobcache.client.core import intervals
from jobcache.client.core.messages import Response
from jobcache.client.core.rules import Rules
from jobcache.client.jobs import job_of, page, storyboard, wait_for
from tests.jobcache.client.job_responses import LOST, body, document, error, unchanged
from tests.jobcache.client.scripted_rules import Script


def test_a_service_that_holds_is_asked_again_at_once_with_what_was_seen() -> None:
    script = Script(
        [
            (0, document(1, retry_after="6")),
            (3, document(2, retry_after="6", preference_applied="wait=25")),
            (25, unchanged(retry_after="6", preference_applied="wait=25")),
            (4, document(5, "completed", preference_applied="wait=25")),
        ]
    )
    job = script.wait()
    assert (job.id, job.version, job.status, job.terminal) == (7, 5, "completed", True)
    assert (job.percent, job.error, job.video_url) == (5.0, None, "/v")
    assert script.versions == [1, 2, 5]
    assert script.pauses == []
    assert script.headers("If-None-Match") == [None, '"1-0"', '"2-0"', '"2-0"']
    assert script.headers("Prefer") == [None, *["wait=25"] * 3]
    assert [request.timeout for request in script.requests] == [10, 35, 35, 35]
    counts = script.rules.counts
    assert (counts.requests, counts.held, counts.unchanged, counts.updates) == (4, 3, 1, 3)


@pytest.mark.parametrize(("chance", "pause"), [(0.0, 6.0), (0.5, 6.6)])
def test_a_service_that_does_not_hold_is_asked_after_its_retry_after_and_some(
    chance: float, pause: float
) -> None:
    script = Script(
        [
            (0, document(1, retry_after="6")),
            (0, unchanged(retry_after="6")),
            (0, document(2, retry_after="6")),
            (0, document(3, "failed")),
        ],
        chance,
    )
    script.wait()
    assert script.pauses == pytest.approx([pause, pause])
    assert script.versions == [1, 2, 3]


def test_nobody_is_asked_to_hold_where_waiting_is_switched_off() -> None:
    script = Script([(0, document(1, retry_after="3")), (0, document(2, "cancelled"))])
    script.wait(wait=0)
    assert script.headers("Prefer") == [None, None]
    assert script.headers("If-None-Match") == [None, '"1-0"']
    assert script.pauses == [3]


@pytest.mark.parametrize("applied", ["wait=25", "wait=0", "respond-async", ""])
def test_an_answer_that_comes_too_soon_was_not_held_whatever_it_says(applied: str) -> None:
    soon = unchanged(retry_after="4", preference_applied=applied)
    script = Script([(0, document(1)), (0.1, soon), (0.1, soon), (0, document(2, "failed"))])
    script.wait()
    assert script.pauses == [4, 4]


def test_what_was_newer_before_it_was_asked_for_does_not_end_the_holding() -> None:
    script = Script(
        [
            (0, document(1)),
            (0, document(2, retry_after="6")),  # came between two requests: nothing to hold
            (3, document(3, preference_applied="wait=25")),
            (0, document(4, retry_after="6")),
            (0, unchanged(retry_after="6")),  # does not hold any more
            (0, document(5, retry_after="6")),
            (3, document(6, retry_after="6", preference_applied="wait=25")),  # and does again
            (0, document(7, retry_after="6")),
            (0, document(8, "failed")),
        ]
    )
    script.wait()
    assert script.versions == [1, 2, 3, 4, 5, 6, 7, 8]
    assert script.pauses == [6, 6]


def test_a_service_may_hold_for_less_than_it_was_asked_to() -> None:
    less = unchanged(preference_applied='respond-async, WAIT="10"')
    script = Script([(0, document(1)), (10, less), (0, document(2, "failed"))])
    script.wait(wait=60)
    assert script.pauses == []


@pytest.mark.parametrize(
    ("headers", "pause"),
    [
        ({}, 2),
        ({"retry_after": "soon"}, 2),
        ({"retry_after": "0"}, 0.1),
        ({"retry_after": "9" * 400}, 1e9),
        ({"retry_after": "Tue, 24 Nov 2026 08:00:09 GMT"}, 2),
        (
            {
                "retry_after": "Tue, 24 Nov 2026 08:00:09 GMT",
                "date": "Tue, 24 Nov 2026 08:00:00 GMT",
            },
            9,
        ),
    ],
)
def test_retry_after_is_read_as_it_comes(headers: dict[str, str], pause: float) -> None:
    script = Script([(0, document(1)), (0, unchanged(**headers)), (0, document(2, "failed"))])
    script.wait()
    assert script.pauses == [pause]


def test_failures_are_tried_again_ever_later_with_what_was_seen() -> None:
    troubles = [(0.0, LOST)] * 4 + [(0.0, error(status)) for status in (408, 429, 500, 502, 504)]
    script = Script([(0, document(1)), *troubles, (0, document(2, "failed"))], chance=0.5)
    script.wait()
    assert script.pauses == [0.25, 0.5, 1, 2, 4, 7.5, 7.5, 7.5, 7.5]
    assert script.headers("If-None-Match") == [None, *['"1-0"'] * 10]
    assert script.versions == [1, 2]
    assert script.rules.counts.failed == 9


def test_a_good_answer_ends_a_row_of_failures() -> None:
    good = unchanged(retry_after="3")
    replies = [
        (0, document(1)),
        (0, LOST),
        (0, LOST),
        (0, good),
        (0, LOST),
        (0, document(9, "failed")),
    ]
    script = Script([(float(took), reply) for took, reply in replies], chance=0.5)
    script.wait()
    assert script.pauses == pytest.approx([0.25, 0.5, 3.3, 0.25])


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_of_an_error_is_obeyed(status: int) -> None:
    script = Script(
        [(0, error(status, retry_after="8")), (0, document(1, "failed"))],
        chance=0.5,
    )
    script.wait()
    assert script.pauses == pytest.approx([8.8])


def test_a_held_request_that_is_never_answered_is_a_failure() -> None:
    script = Script([(0, document(1)), (1e6, None), (0, document(2, "failed"))], chance=0.5)
    script.wait(wait=20)
    assert script.now - 1000 == pytest.approx(20 + 10 + 0.25)


def test_what_is_older_than_seen_is_not_taken() -> None:
    script = Script(
        [
            (0, document(5)),
            (0, document(4, preference_applied="wait=25")),
            (0, document(3, "completed")),
            (0, document(6, "completed")),
        ],
        chance=0.5,
    )
    assert script.wait().version == 6
    assert script.versions == [5, 6]
    assert script.headers("If-None-Match") == [None, *['"5-0"'] * 3]
    assert script.pauses == [0.25, 0.5]
    assert script.rules.counts.older == 2


def test_the_same_version_under_another_tag_is_no_update() -> None:
    """As two releases of the service side by side may answer: not polled without a pause."""
    other = Response(200, {"etag": '"5-2"', "preference-applied": "wait=25"}, body(5))
    script = Script([(0, document(5)), (0, other), (0, document(6, "failed"))])
    script.wait()
    assert script.versions == [5, 6]
    assert script.headers("If-None-Match") == [None, '"5-0"', '"5-2"']
    assert script.pauses == [2]


@pytest.mark.parametrize(
    "wrong",
    [
        Response(200, {}, b"<html>"),
        Response(200, {}, b"\xff"),
        Response(200, {}, b"[]"),
        Response(200, {}, b'{"id": 7, "version": "5", "status": "x", "terminal": true}'),
        Response(200, {}, body(9, "completed", job_id=8)),
        Response(204, {}, b""),
        unchanged(preference_applied="wait=25"),
    ],
)
def test_what_is_no_document_of_the_job_is_a_failure(wrong: Response) -> None:
    script = Script([(0, wrong), (0, document(1, "failed"))], chance=0.5)
    script.wait()
    assert script.pauses == [0.25]
    assert script.versions == [1]


def test_without_a_tag_there_is_no_condition_and_so_no_waiting() -> None:
    bare = [
        Response(200, {}, body(1)),
        Response(200, {}, body(2)),
        Response(200, {}, body(3, "failed")),
    ]
    script = Script([(0.0, answer) for answer in bare])
    script.wait()
    assert script.headers("Prefer") == script.headers("If-None-Match") == [None] * 3
    assert script.pauses == [2, 2]


def test_polling_at_an_interval_keeps_it() -> None:
    """As the load test's users of old do: from question to question, and a tenth either way."""
    for chance, pause in ((0.0, 2.7), (1.0, 3.3)):
        script = Script(
            [
                (0.2, document(1, retry_after="1")),
                (0.2, document(1, retry_after="1")),
                (9, document(2)),
                (0, document(3, "failed")),
            ],
            chance,
        )
        script.wait(interval=3, conditional=False)
        assert script.headers("If-None-Match") == script.headers("Prefer") == [None] * 4
        assert script.pauses == pytest.approx([pause - 0.2] * 2)  # and none after what took 9 s


@pytest.mark.parametrize(
    "options", [{"wait": -1}, {"wait": 61}, {"timeout": 0}, {"timeout": float("nan")}]
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        wait_for(Rules(), 7, **options)
    with pytest.raises(ValueError, match="0"):
        wait_for(Rules(), 0)


def test_one_request_is_repeated_only_if_it_may_be() -> None:
    script = Script([(0, LOST), (0, error(503, retry_after="2")), (0, document(1))], chance=0.5)
    call = script.rules.call
    steps = call("POST", "/x", job_of, {"a": 1}, headers={"K": "v"}, repeatable=True)
    assert script.run(steps).version == 1
    assert script.pauses == pytest.approx([0.25, 2.2])
    assert {(a.method, a.url, a.headers["K"], a.timeout) for a in script.requests} == {
        ("POST", "/x", "v", 10)
    }
    once = Script([(0, LOST), (0, document(1))])
    with pytest.raises(Unavailable) as unavailable:
        once.run(once.rules.call("POST", "/x", job_of, repeatable=False))
    assert unavailable.value.__cause__ is LOST.error
    late = Script([(3, LOST)] * 9, chance=0.5)
    with pytest.raises(Unavailable):
        late.run(late.rules.call("GET", "/x", job_of, repeatable=True, timeout=10))
    assert late.now <= 1010


@pytest.mark.parametrize("wrong", [b"[]", b"{}", b'{"items": {}, "next_cursor": null}'])
def test_what_is_no_page_of_jobs_is_a_failure(wrong: bytes) -> None:
    right = b'{"items": [], "next_cursor": "c"}'
    script = Script([(0, Response(200, {}, wrong)), (0, Response(200, {}, right))])
    listing: Any = page(script.rules, client_id=None, status=None, size=9, cursor=None)
    found: Any = script.run(listing)
    assert (found.jobs, found.cursor, len(script.requests)) == ([], "c", 2)


def test_a_storyboard_that_is_no_object_is_a_failure() -> None:
    script = Script([(0, Response(200, {}, b"[]")), (0, Response(200, {}, b'{"scenes": []}'))])
    asking: Any = storyboard(script.rules, 7)
    found: Any = script.run(asking)
    assert (found, len(script.requests)) == ({"scenes": []}, 2)


def test_pauses_are_bounded() -> None:
    assert intervals.FIRST_BACKOFF < intervals.LONGEST_BACKOFF
    script = Script([(0.0, LOST)] * 200 + [(0.0, document(1, "failed"))], chance=1.0)
    script.wait()
    assert max(script.pauses) == intervals.LONGEST_BACKOFF
