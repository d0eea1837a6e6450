"""What ends a wait for a job: its status, a refusal of the service, or the time to wait."""

from __future__ import annotations

import pytest

from jobcache.client import (
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Refused,
    Unauthorized,
    WaitTimeout,
)
from jobcache.client.core.messages import Response, Update
from jobcache.client.jobs import wait_for
from tests.jobcache.client.job_responses import LOST, document, error, unchanged
from tests.jobcache.client.scripted_rules import Script

FINAL = {
    301: Refused,
    400: Refused,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    422: Invalid,
}


@pytest.mark.parametrize(("status", "kind"), FINAL.items())
def test_any_other_answer_is_final_and_carries_the_problem(status: int, kind: type) -> None:
    with pytest.raises(Refused, match=f"{status}: why") as refused:
        Script([(0, document(1)), (0, error(status))]).wait()
    assert type(refused.value) is kind
    assert refused.value.status == status
    assert refused.value.problem["title"] == "No"


def test_a_refusal_without_a_problem_document_is_one_all_the_same() -> None:
    for text in (b"<html>", b"[1]", b""):
        with pytest.raises(NotFound, match="404: no reason given") as refused:
            Script([(0, Response(404, {}, text))]).wait()
        assert refused.value.problem == {}


def test_a_status_may_end_it_too() -> None:
    script = Script([(0, document(1)), (0, document(2, "storyboard_ready"))])
    assert script.wait(until={"storyboard_ready"}).version == 2


def test_time_is_up_while_a_request_is_held() -> None:
    script = Script([(0.5, document(1)), (1e6, None)])
    with pytest.raises(
        WaitTimeout, match="job 7: the time to wait is over, last seen rendering"
    ) as up:
        script.wait(timeout=8)
    assert up.value.job is not None
    assert up.value.job.version == 1
    assert isinstance(up.value, TimeoutError)
    assert script.now == 1008
    assert script.headers("Prefer") == [None, "wait=8"]


def test_time_is_up_before_the_service_may_be_asked_again() -> None:
    script = Script([(0, document(1)), (0, unchanged(retry_after="6"))])
    with pytest.raises(WaitTimeout):
        script.wait(timeout=5)
    assert script.pauses == []


def test_time_is_up_and_nothing_was_ever_answered() -> None:
    script = Script([(1.0, LOST)] * 20, chance=0.5)
    with pytest.raises(WaitTimeout, match="no version was seen") as up:
        script.wait(timeout=10)
    assert up.value.job is None
    assert up.value.__cause__ is LOST.error
    assert script.now <= 1010


def test_time_is_up_while_an_update_is_being_handled() -> None:
    script = Script([(0, document(1))])
    steps = wait_for(script.rules, 7, timeout=5)
    steps.send(None)
    assert isinstance(steps.send(document(1)), Update)
    script.now += 6
    with pytest.raises(WaitTimeout):
        steps.send(None)
