"""The rules for jobs, with random replies."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from jobcache.client import WaitTimeout
from jobcache.client.core import intervals
from jobcache.client.core.messages import Reply, Response
from jobcache.client.core.rules import Rules
from tests.jobcache.client.job_responses import LOST, body, document
from tests.jobcache.client.scripted_rules import Script

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
