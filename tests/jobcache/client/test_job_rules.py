"""Clients of the service: the rules by script and at random, and both ways of running them."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobcache.client import (
    AsyncJobs,
    Conflict,
    Forbidden,
    Invalid,
    Job,
    Jobs,
    NotFound,
    Refused,
    Unauthorized,
    Unavailable,
    WaitTimeout,
)
from jobcache.client.core import intervals
from jobcache.client.core.messages import (
    Reply,
    Request,
    Response,
    Sleep,
    Steps,
    TransportError,
    Update,
)
from jobcache.client.core.rules import Rules
from jobcache.client.jobs import job_of, wait_for

FINAL = {
    301: Refused,
    400: Refused,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    422: Invalid,
}
LOST = TransportError(ConnectionError("reset"))


def body(version: int, status: str = "rendering", job_id: int = 7) -> bytes:
    progress = {"percent": float(version), "stage": "", "message": "", "updated_at": None}
    return json.dumps(
        {
            "id": job_id,
            "version": version,
            "status": status,
            "terminal": status in {"completed", "failed", "cancelled"},
            "progress": progress,
            "error": None,
            "video_url": "/v" if status == "completed" else None,
        }
    ).encode()


def document(version: int, status: str = "rendering", **headers: str) -> Response:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Response(200, {"etag": f'"{version}-0"'} | named, body(version, status))


def unchanged(**headers: str) -> Response:
    return Response(304, {name.replace("_", "-"): text for name, text in headers.items()}, b"")


def error(status: int, **headers: str) -> Response:
    problem = {"title": "No", "status": status, "detail": "why"}
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Response(status, named, json.dumps(problem).encode())


@dataclass
class Script:
    """Runs the rules in a time of its own, with replies from a list: (seconds it took, reply)."""

    replies: list[tuple[float, Reply]]
    chance: float = 0.0
    now: float = 1000.0
    requests: list[Request] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    updates: list[Job] = field(default_factory=list)
    newest_at: list[tuple[Request, int]] = field(default_factory=list)  # version at each request
    paused_after: list[tuple[float, float]] = field(default_factory=list)  # and `Retry-After`

    def __post_init__(self) -> None:
        self.rules = Rules(clock=lambda: self.now, random=lambda: self.chance)

    def wait(self, **options: Any) -> Job:
        return self.run(wait_for(self.rules, 7, **options))

    def run(self, steps: Steps[Job]) -> Job:
        replies, reply, retry_after = iter(self.replies), None, 0.0
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                job: Job = end.value
                return job
            reply = None
            match step:
                case Request():
                    self.requests.append(step)
                    self.newest_at.append((step, self.versions[-1] if self.updates else 0))
                    took, reply = next(replies)
                    if took > step.timeout:
                        took, reply = step.timeout, TransportError(TimeoutError())
                    self.now += took
                    headers = reply.headers if isinstance(reply, Response) else {}
                    seconds = headers.get("retry-after", "")
                    retry_after = float(seconds) if seconds.isdigit() else 0.0
                case Sleep(seconds):
                    self.pauses.append(seconds)
                    self.paused_after.append((seconds, retry_after))
                    self.now += seconds
                case Update(job):
                    self.updates.append(job)

    def headers(self, name: str) -> list[str | None]:
        return [request.headers.get(name) for request in self.requests]

    @property
    def versions(self) -> list[int]:
        return [job.version for job in self.updates]


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


STATUSES = st.sampled_from(["rendering", "rendering", "rendering", "completed"])
SECONDS = st.integers(0, 40).map(str)
APPLIED = st.sampled_from(["wait=25", "wait=10", "wait=0", ""])


@st.composite
def answers(draw: st.DrawFn) -> Response:
    headers = draw(
        st.fixed_dictionaries({}, optional={"retry-after": SECONDS, "preference-applied": APPLIED})
    )
    version = draw(st.integers(1, 12))
    kind = draw(st.sampled_from(["document", "document", "unchanged", "error", "wrong"]))
    if kind == "document":
        tag = {"etag": f'"{version}-{draw(st.integers(0, 1))}"'} if draw(st.booleans()) else {}
        return Response(200, headers | tag, body(version, draw(STATUSES)))
    if kind == "unchanged":
        return Response(304, headers, b"")
    if kind == "error":
        return Response(draw(st.sampled_from([408, 429, 500, 503])), headers, b"")
    return Response(200, headers, draw(st.binary(max_size=9)))


REPLIES = st.lists(st.tuples(st.floats(0, 40), st.one_of(answers(), st.just(LOST))), max_size=40)


@given(
    replies=REPLIES,
    chances=st.lists(st.floats(0.01, 1, exclude_max=True), min_size=1),
    wait=st.integers(0, 60),
    timeout=st.none() | st.floats(1, 400),
)
def test_any_replies_are_handled(
    replies: list[tuple[float, Reply]], chances: list[float], wait: int, timeout: float | None
) -> None:
    """Versions only grow, a terminal one ends it, and nobody is asked sooner than it allows."""
    # The end of every script is a good one, or the wait would not end.
    script = Script([*replies, (0.0, document(99, "completed"))])
    chance = itertools.cycle(chances)
    script.rules = Rules(clock=lambda: script.now, random=lambda: next(chance))
    try:
        job = script.wait(wait=wait, timeout=timeout)
    except WaitTimeout as up:
        job = up.job
        assert timeout is not None
        assert not any(job.terminal for job in script.updates)
    else:
        assert job.terminal
    assert script.versions == sorted(set(script.versions))
    assert (job is None) == (script.updates == [])
    assert job is None or job.version == script.versions[-1]
    assert not any(job.terminal for job in script.updates[:-1])
    assert timeout is None or script.now <= 1000 + timeout + 1e-6
    for request, newest in script.newest_at:
        tag = request.headers.get("If-None-Match")
        assert tag is None or tag.startswith(f'"{newest}-')
        assert "Prefer" not in request.headers or (wait and tag)
        assert 0 < request.timeout <= wait + 10
    for pause, retry_after in script.paused_after:
        assert retry_after <= pause <= max(retry_after * 1.2, intervals.LONGEST_BACKOFF)
    counts = script.rules.counts
    assert counts.requests - 1 - len(script.pauses) <= counts.updates + counts.held


# Both ways of running the rules


class Sleeps:
    """Stands in for `sleep`, both kinds, and takes no time."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)

    async def awaited(self, seconds: float) -> None:
        self.taken.append(seconds)


Handler = Callable[[httpx.Request], httpx.Response]


class Either:
    """One client, asynchronous or not, called alike."""

    def __init__(self, kind: str, handler: Handler, key: str | None = None) -> None:
        self.sleeps = Sleeps()
        transport = httpx.MockTransport(handler)
        self.client: AsyncJobs | Jobs
        if kind == "async":
            self.client = AsyncJobs(
                "http://test/",
                key,
                http=httpx.AsyncClient(transport=transport),
                sleep=self.sleeps.awaited,
            )
        else:
            self.client = Jobs(
                "http://test/", key, http=httpx.Client(transport=transport), sleep=self.sleeps
            )

    async def __call__(self, name: str, *arguments: Any, **options: Any) -> Job:
        result = getattr(self.client, name)(*arguments, **options)
        job: Job = await result if asyncio.iscoroutine(result) else result
        return job


@pytest.fixture(params=["async", "sync"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def scripted(replies: list[Response | Exception], seen: list[httpx.Request]) -> Handler:
    left = iter(replies)

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        reply = next(left)
        if isinstance(reply, Exception):
            raise reply
        return httpx.Response(reply.status, headers=dict(reply.headers), content=reply.body)

    return handle


async def test_a_job_is_followed_through_failures(kind: str) -> None:
    seen: list[httpx.Request] = []
    replies = [
        document(1, retry_after="2"),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("late"),
        httpx.RemoteProtocolError("closed"),
        error(503, retry_after="3"),
        document(2, "completed"),
    ]
    either = Either(kind, scripted(replies, seen), key="secret")
    versions: list[int] = []
    job = await either("wait_for", 7, on_progress=lambda job: versions.append(job.version))
    assert (job.version, versions) == (2, [1, 2])
    assert len(either.sleeps.taken) == 4
    assert either.sleeps.taken[3] >= 3
    assert {str(request.url) for request in seen} == {"http://test/api/v2/jobs/7"}
    assert {request.headers["Authorization"] for request in seen} == {"Bearer secret"}
    assert seen[1].headers["If-None-Match"] == '"1-0"'
    assert seen[1].extensions["timeout"]["read"] == 35
    assert either.client.counts.failed == 4


async def test_an_error_of_on_progress_ends_the_wait(kind: str) -> None:
    def raise_(job: Job) -> None:
        raise LookupError(job.version)

    seen: list[httpx.Request] = []
    either = Either(kind, scripted([document(1)], seen))
    with pytest.raises(LookupError, match="1"):
        await either("wait_for", 7, on_progress=raise_)


async def test_the_asynchronous_client_awaits_on_progress() -> None:
    order: list[str] = []

    async def on_progress(job: Job) -> None:
        await asyncio.sleep(0)
        order.append(f"version {job.version}")

    replies = [document(1), document(2, "failed", preference_applied="wait=25")]
    handle = scripted(list(replies), [])

    def noted(request: httpx.Request) -> httpx.Response:
        order.append("request")
        return handle(request)

    await Either("async", noted)("wait_for", 7, on_progress=on_progress)
    assert order == ["request", "version 1", "request", "version 2"]


async def test_creating_a_job_is_repeated_under_one_key_and_a_transition_is_not(kind: str) -> None:
    seen: list[httpx.Request] = []
    made = Response(202, {"etag": '"1-0"'}, body(1, "pending"))
    lost = httpx.ReadError("reset")
    either = Either(kind, scripted([lost, made, made, lost, document(1), lost, lost, lost], seen))
    await either("create", "acme", "A cat.", scenes=2)
    await either("create", "acme", "A cat.", idempotency_key="mine")
    keys = [request.headers["Idempotency-Key"] for request in seen]
    assert keys[0] == keys[1] != keys[2] == "mine"
    assert json.loads(seen[1].content) == {"client_id": "acme", "prompt": "A cat.", "scenes": 2}
    assert (await either("get", 7)).version == 1
    for step in ("approve", "render", "cancel"):
        with pytest.raises(Unavailable, match=step):
            await either(step, 7)
    assert [request.url.path for request in seen[5:]] == [
        f"/api/v2/jobs/7/{step}" for step in ("approve", "render", "cancel")
    ]


async def test_an_address_or_a_key_that_cannot_be_sent_is_not_tried_again(kind: str) -> None:
    seen: list[httpx.Request] = []
    either = Either(kind, scripted([httpx.UnsupportedProtocol("no scheme")], seen))
    with pytest.raises(httpx.UnsupportedProtocol):
        await either("wait_for", 7)
    assert len(seen) == 1


async def test_a_client_of_ones_own_stays_open_and_ours_does_not(kind: str) -> None:
    if kind == "async":
        async with httpx.AsyncClient(base_url="http://test") as http:
            async with AsyncJobs("", http=http):
                pass
            assert not http.is_closed
        async with AsyncJobs("http://test") as ours:
            assert ours.counts.requests == 0
        assert ours._runner.http.is_closed
    else:
        with httpx.Client(base_url="http://test") as http_sync:
            with Jobs("", http=http_sync):
                pass
            assert not http_sync.is_closed
        with Jobs("http://test") as ours_sync:
            assert ours_sync.counts.requests == 0
        assert ours_sync._runner.http.is_closed


@pytest.fixture
def dripping() -> Iterator[str]:
    """A server whose answer never ends, though something always comes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while not stop.wait(0.02):
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        return

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        stop.set()
        thread.join()


async def test_an_answer_that_drips_does_not_outlast_the_time_to_wait(dripping: str) -> None:
    async with asyncio.timeout(60), AsyncJobs(dripping) as jobs:
        with pytest.raises(WaitTimeout):
            await jobs.wait_for(7, timeout=0.2)


@pytest.mark.timeout(60)
def test_an_answer_that_drips_does_not_hold_a_thread_either(dripping: str) -> None:
    with Jobs(dripping) as jobs, pytest.raises(WaitTimeout):
        jobs.wait_for(7, timeout=0.2)


def test_the_library_needs_no_httpx() -> None:
    program = "import sys, jobcache; sys.exit('httpx' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_pauses_are_bounded() -> None:
    assert intervals.FIRST_BACKOFF < intervals.LONGEST_BACKOFF
    script = Script([(0.0, LOST)] * 200 + [(0.0, document(1, "failed"))], chance=1.0)
    script.wait()
    assert max(script.pauses) == intervals.LONGEST_BACKOFF
