"""Waiting for any URL, by random responses: the rules alone, without I/O."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from jobcache.client import ClientError, Snapshot
from jobcache.client.core.locations import origin
from jobcache.client.core.messages import (
    Reply,
    Request,
    Response,
    Sleep,
    TransportError,
    Update,
)
from jobcache.client.core.operations import WaitSource, follow
from jobcache.client.core.rules import Rules

START = "https://user:secret@a.example/jobs/7"
LOCATIONS = st.sampled_from(
    [
        "/jobs/7",
        "8",
        "https://a.example/result",
        "https://b.example/jobs/7",
        "https://a.example.b.example/",
        "https://a.example@b.example/",
        "http://a.example/",
        "https://a.example:444/",
        "//b.example/x",
        "\\\\b.example",
        "javascript:alert(1)",
        "http://[",
        "?x#y",
        "",
    ]
)
DOCUMENTS = st.one_of(
    st.none(),
    st.integers(),
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.sampled_from(["operations/7", "x", 7]),
            "done": st.sampled_from([True, False, "yes"]),
            "status": st.sampled_from(["Running", "Succeeded", "Failed", "odd", 7]),
            "error": st.sampled_from([None, {"code": 5}, ""]),
            "properties": st.sampled_from([None, {"provisioningState": "Creating"}, {}]),
            "resourceLocation": st.one_of(LOCATIONS, st.just(7)),
            "at": st.integers(0, 9),
        },
    ),
)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "location": LOCATIONS,
        "operation-location": LOCATIONS,
        "azure-asyncoperation": LOCATIONS,
        "retry-after": st.sampled_from(["0", "3", "soon"]),
        "etag": st.sampled_from(['"1"', 'W/"2"']),
        "preference-applied": st.sampled_from(["wait=25", "wait=0"]),
        "content-type": st.sampled_from(["application/json", "text/html"]),
    },
)
STATUSES = st.sampled_from([200, 200, 200, 201, 202, 202, 204, 302, 303, 304, 307, 308, 404, 503])
RESPONSES = st.builds(
    lambda status, headers, document: Response(status, headers, json.dumps(document).encode()),
    STATUSES,
    HEADERS,
    DOCUMENTS,
)
REPLIES = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.3, 25.0]),
        st.one_of(RESPONSES, RESPONSES, st.just(TransportError(OSError("reset")))),
    ),
    max_size=40,
)
END = Response(410, {}, b"")


@given(
    replies=REPLIES,
    first=st.none() | RESPONSES,
    method=st.sampled_from(["GET", "POST", "PUT"]),
    conditional=st.booleans(),
    chance=st.floats(0.1, 0.9),
)
def test_any_responses_are_handled(
    replies: list[tuple[float, Reply]],
    first: Response | None,
    method: str,
    *,
    conditional: bool,
    chance: float,
) -> None:
    """Every wait ends in time, no server is polled without a pause, and no secret goes astray."""
    now = 0.0
    shown: list[Snapshot] = []
    followed_at_once = 0
    script = itertools.chain(replies, itertools.repeat((0.0, END)))
    rules = Rules(clock=lambda: now, random=lambda: chance)
    source = WaitSource(START, method if first is not None else "GET", START, first)
    until = (lambda seen: seen.status == 201) if conditional else None
    options: dict[str, Any] = {"timeout": 300.0, "wait": 25, "interval": 2.0}
    steps = follow(rules, source, until=until, largest_body=1000, **options)
    reply: Reply = None
    try:
        while True:
            step = steps.send(reply)
            reply = None
            match step:
                case Request():
                    assert step.method == "GET"
                    assert step.credentials == (origin(step.url) == origin(START))
                    assert step.credentials or "secret" not in step.url
                    assert origin(step.url)[0] == "https"
                    assert 0 < step.timeout <= 35
                    took, reply = next(script)
                    now += min(took, step.timeout)
                    followed_at_once = 0 if took else followed_at_once + 1
                    # Ten redirects lead to a document; that may lead on to a monitor or a result,
                    # and the first request that may be held follows after a tenth of a second.
                    assert followed_at_once <= 40
                case Sleep(seconds):
                    assert seconds > 0
                    now += seconds
                    followed_at_once = 0
                case Update(snapshot):
                    shown.append(snapshot)
    except StopIteration as end:
        last: Snapshot = end.value
        assert last.is_final or (conditional and last.status == 201)
        assert not last.body or last.body == shown[-1].body
    except ClientError:
        pass  # a refusal, a bad location, or the time is over
    assert now <= 301
    for before, after in itertools.pairwise(shown):
        assert before.body != after.body
