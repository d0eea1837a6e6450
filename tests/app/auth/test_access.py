"""Who may do what: every endpoint x every caller, on hits and on misses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import pytest_asyncio
from fastapi.routing import iter_route_contexts
from sqlalchemy import text, update

from app.auth.callers import TRUSTED
from app.db.tables import jobs
from app.main import create_app
from tests.app.keyed import CLIENTS, Keyed, keyed
from tests.app.running import Service, Start, choosing, starting

pytestmark = pytest.mark.asyncio(loop_scope="module")

FIRST, UNKNOWN = 10_000, 99_999  # of as many digits as those of jobs that are
BOTH = (True, False)
JOB = {"client_id": "acme", "prompt": "A cat sits.", "renderer": "external"}


class Row(NamedTuple):
    """What an endpoint answers to each kind of caller; without a known key it is 401 or `bare`."""

    own: int
    stranger: int
    worker: int
    operator: int
    body: dict[str, Any] | None = None
    bare: int = 401


OPEN = Row(200, 200, 200, 200, bare=200)
READ = Row(200, 404, 200, 200)
LIST = Row(200, 200, 200, 200)  # whose jobs are in it has tests of its own
OPERATE = Row(403, 403, 403, 200)
TABLE = {
    ("GET", "/healthz"): OPEN,
    ("HEAD", "/healthz"): OPEN,
    ("GET", "/readyz"): OPEN,
    ("HEAD", "/readyz"): OPEN,
    ("GET", "/"): OPEN,
    ("HEAD", "/"): OPEN,
    ("GET", "/assets/{name}"): OPEN,
    ("HEAD", "/assets/{name}"): OPEN,
    ("GET", "/docs"): OPEN,
    ("HEAD", "/docs"): OPEN,
    ("GET", "/redoc"): OPEN,
    ("HEAD", "/redoc"): OPEN,
    ("GET", "/openapi.json"): OPEN,
    ("HEAD", "/openapi.json"): OPEN,
    ("POST", "/api/v2/jobs"): Row(202, 403, 403, 202, JOB),
    ("GET", "/api/v2/jobs"): LIST,
    ("HEAD", "/api/v2/jobs"): LIST,
    ("GET", "/api/v2/jobs/{job_id}"): READ,
    ("HEAD", "/api/v2/jobs/{job_id}"): READ,
    ("GET", "/api/v2/jobs/{job_id}/events"): READ,
    ("HEAD", "/api/v2/jobs/{job_id}/events"): READ,
    ("GET", "/api/v2/jobs/{job_id}/storyboard"): READ,
    ("HEAD", "/api/v2/jobs/{job_id}/storyboard"): READ,
    ("GET", "/api/v2/jobs/{job_id}/video"): READ,
    ("HEAD", "/api/v2/jobs/{job_id}/video"): READ,
    ("POST", "/api/v2/jobs/{job_id}/approve"): Row(200, 404, 403, 200),
    ("POST", "/api/v2/jobs/{job_id}/render"): Row(202, 404, 403, 202),
    ("POST", "/api/v2/jobs/{job_id}/cancel"): Row(200, 404, 403, 200),
    ("POST", "/api/v2/jobs/{job_id}/progress"): Row(403, 403, 200, 200, {"percent": 5}),
    ("POST", "/api/v2/jobs/{job_id}/complete"): Row(403, 403, 200, 200, {}),
    ("POST", "/api/v2/jobs/{job_id}/fail"): Row(403, 403, 200, 200, {"error": "no film"}),
    ("GET", "/api/v2/cache/stats"): OPERATE,
    ("HEAD", "/api/v2/cache/stats"): OPERATE,
    ("GET", "/metrics"): OPERATE,
    ("HEAD", "/metrics"): OPERATE,
    ("POST", "/api/v2/cache/invalidate"): OPERATE._replace(body={"job_id": UNKNOWN}),
}
HIDDEN = [endpoint for endpoint, row in TABLE.items() if row.stranger == 404]
PROBES: list[dict[str, str]] = [
    {},
    {"If-None-Match": "*"},
    {"If-None-Match": '"3-0", "4-0", "5-0", "6-0"'},
    {"If-None-Match": '"9007199254740990-0"'},
    {"Accept-Encoding": "gzip", "Range": "bytes=0-1"},
    {"Prefer": "wait=0", "Cache-Control": "no-cache", "Idempotency-Key": "once"},
]


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=["memory", "redis"])
async def access(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Keyed]:
    """A service that tests share: they find each other's jobs."""
    folder = tmp_path_factory.mktemp("access")
    environment = choosing(request, request.param) | {"JOBCACHE_STREAM_SECONDS": "0.05"}
    async with keyed(starting(folder), folder / "keys", **environment) as running:
        await running.service.rendering()
        last = text("UPDATE sqlite_sequence SET seq = :id WHERE name = 'jobs'")
        await running.service.services.database.write(last.bindparams(id=FIRST))
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def empty(start: Start, tmp_path: Path) -> AsyncIterator[Keyed]:
    """A service of the test's own."""
    async with keyed(start, tmp_path / "keys", JOBCACHE_BACKEND="memory") as running:
        yield running


async def subject(service: Service, path: str) -> int:
    """A job of acme's to try an endpoint on."""
    if "{job_id}" not in path:
        return UNKNOWN
    job_id: int = (await service.rendering())["id"]
    if path.endswith("/video"):
        await service.services.jobs.complete(job_id, f"/api/v2/jobs/{job_id}/video", worker=True)
        (service.settings.videos / f"{job_id}.mp4").write_bytes(b"not much of a video")
    return job_id


async def prepare(access: Keyed, path: str, job_id: int, *, warm: bool) -> None:
    """Have the job in the cache, or not; likewise the note that there is no job `UNKNOWN`.

    And if the path reads storyboards, those.
    """
    service = access.service
    await service.services.cache.invalidate_all()
    if warm:
        for known in {job_id, UNKNOWN}:
            for part in {"", "/storyboard" if path.endswith("/storyboard") else ""}:
                await service.http.get(f"/api/v2/jobs/{known}{part}")


def endpoints(service: Service) -> set[tuple[str, str]]:
    app = create_app(service.settings)
    return {
        (method, str(context.path))
        for context in iter_route_contexts(app.routes)
        for method in context.methods or {"no method: a row is needed all the same"}
    }


# --- the table ---


async def test_every_endpoint_has_a_row(start: Start) -> None:
    async with start() as service:
        assert endpoints(service) == set(TABLE)


@pytest.mark.parametrize("endpoint", TABLE, ids=" ".join)
async def test_every_role_gets_the_statuses_of_the_table(
    access: Keyed, endpoint: tuple[str, str]
) -> None:
    method, path = endpoint
    row = TABLE[endpoint]
    expected = {"none": row.bare, "malformed": row.bare, "wrong": row.bare}
    expected |= {"stranger": row.stranger, "own": row.own}
    expected |= {"worker": row.worker, "operator": row.operator}
    refused = [caller for caller, status in expected.items() if status >= 400]
    for warm in BOTH:
        job_id = await subject(access.service, path)
        before = None if job_id == UNKNOWN else await access.service.job(job_id)
        for caller in sorted(expected, key=lambda caller: caller not in refused):
            if caller not in refused and method == "POST":
                job_id = await subject(access.service, path)
            await prepare(access, path, job_id, warm=warm)
            url = path.format(job_id=job_id, name="page.js")
            answer = await access.call(caller, method, url, json=row.body)
            assert answer.status_code == expected[caller], (caller, answer.text)
            if caller in refused:
                assert answer.headers["content-type"] == "application/problem+json"
                if before is not None:
                    assert await access.service.job(job_id) == before, "it changes nothing"


@pytest.mark.parametrize("endpoint", HIDDEN, ids=" ".join)
async def test_the_job_of_another_client_looks_like_an_unknown_job(
    access: Keyed, endpoint: tuple[str, str]
) -> None:
    method, path = endpoint
    job_id = await subject(access.service, path)
    for warm, headers in product(BOTH, PROBES):
        await prepare(access, path, job_id, warm=warm)
        theirs, nobodys = [
            await access.call("stranger", method, path.format(job_id=asked), headers=headers)
            for asked in (job_id, UNKNOWN)
        ]
        assert theirs.status_code == nobodys.status_code == 404
        for response in (theirs, nobodys):
            response.headers.pop("x-request-id", None)  # each has another
        assert list(theirs.headers.raw) == list(nobodys.headers.raw)
        assert set(theirs.headers) == {"content-length", "content-type", "x-content-type-options"}
        renamed = theirs.text.replace(f"jobs/{job_id}", f"jobs/{UNKNOWN}")
        assert renamed.replace(f"job {job_id}.", f"job {UNKNOWN}.") == nobodys.text


@pytest.mark.parametrize("endpoint", HIDDEN, ids=" ".join)
async def test_another_client_costs_no_more_than_an_unknown_job_and_leaves_the_cache_alone(
    access: Keyed, endpoint: tuple[str, str]
) -> None:
    method, path = endpoint
    await access.service.storyboards_written()
    job_id = await subject(access.service, path)
    for warm in BOTH:
        theirs, nobodys = [
            await queries(access, method, path, job_id, asked, warm=warm)
            for asked in (job_id, UNKNOWN)
        ]
        if method == "POST":
            assert theirs == nobodys == {"write": 1, "load": 1}
        elif warm:
            assert theirs == nobodys == {}, "the entry says whose it is"
        else:
            assert theirs["load"] == 1
            assert nobodys["load"] == (2 if path.endswith("/storyboard") else 1)


async def queries(
    access: Keyed, method: str, path: str, job_id: int, asked: int, *, warm: bool
) -> dict[str, int]:
    """What a stranger's call costs; that it leaves the job's entry in its place is seen, too."""
    await prepare(access, path, job_id, warm=warm)
    purposes = access.service.services.database.purposes
    before = dict(purposes)
    await access.call("stranger", method, path.format(job_id=asked))
    spent = {name: count - before.get(name, 0) for name, count in purposes.items()}
    if warm:
        poll = await access.service.http.get(f"/api/v2/jobs/{job_id}")
        assert "; hit;" in poll.headers["cache-status"]
    return {name: count for name, count in spent.items() if count and name != "recovery"}


async def test_a_missing_storyboard_is_not_revealed_to_other_clients(access: Keyed) -> None:
    job = await access.service.create(renderer="external")
    await access.service.until(job["id"], "storyboard_ready")
    gone = update(jobs).where(jobs.c.id == job["id"])
    await access.service.services.database.write(
        gone.values(storyboard=None, storyboard_version=None)
    )
    await access.service.services.cache.invalidate_all()
    path = f"/api/v2/jobs/{job['id']}/storyboard"
    assert (await access.call("own", "GET", path)).status_code == 409
    assert (await access.call("stranger", "GET", path)).status_code == 404


async def test_a_refused_transition_does_not_reveal_the_state(access: Keyed) -> None:
    job = await access.service.create(renderer="external")
    await access.service.until(job["id"], "storyboard_ready")
    await access.service.post(f"{job['id']}/cancel")
    for action in ("approve", "render", "cancel"):
        path = f"/api/v2/jobs/{job['id']}/{action}"
        answer = await access.call("stranger", "POST", path)
        assert answer.status_code == 404
        assert "cancelled" not in answer.text


# --- lists ---


async def lists(access: Keyed, caller: str, **params: Any) -> Any:
    answer = await access.call(caller, "GET", "/api/v2/jobs", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
async def test_lists_hold_only_what_the_caller_may_see(access: Keyed, *, warm: bool) -> None:
    service = access.service
    mine = [(await service.create())["id"] for _ in range(3)][::-1]
    theirs = [(await service.create(client_id="other"))["id"] for _ in range(2)][::-1]
    everybodys = sorted(mine + theirs, reverse=True)
    await service.post(f"{mine[1]}/cancel")
    ended = mine[1:2]
    asked: list[tuple[dict[str, Any], dict[str, list[int]]]] = [
        ({}, {"own": mine, "stranger": theirs, "worker": everybodys, "operator": everybodys}),
        (
            {"client_id": "acme"},
            {"own": mine, "stranger": [], "worker": mine, "operator": mine},
        ),
        ({"client_id": "nobody"}, {"own": [], "stranger": [], "operator": []}),
        ({"limit": 1}, {"own": mine[:1], "stranger": theirs[:1], "worker": everybodys[:1]}),
        ({"limit": 1, "client_id": "acme"}, {"own": mine[:1], "stranger": []}),
        ({"status": "cancelled"}, {"own": ended, "stranger": [], "operator": ended}),
        ({"status": "cancelled", "client_id": "acme"}, {"own": ended, "stranger": []}),
    ]
    for params, expected in asked:
        for caller, ids in expected.items():
            if not warm:
                await service.services.cache.invalidate_all()
            page = await lists(access, caller, **params)
            found = [item["id"] for item in page["items"] if item["id"] >= everybodys[-1]]
            assert found == ids, (caller, params)
            if caller in CLIENTS:
                whose = {item["client_id"] for item in page["items"]}
                assert whose <= {CLIENTS[caller]}, "those of earlier tests, too"
            if caller == "stranger" and params.get("client_id") == "acme":
                assert page == {"items": [], "next_cursor": None}, "as of a client without jobs"


async def test_pages_of_ones_own_jobs_go_on_within_them(empty: Keyed) -> None:
    mine = []
    for _ in range(3):
        mine.append((await empty.service.create())["id"])
        await empty.service.create(client_id="other")
    seen: list[int] = []
    params: dict[str, Any] = {"limit": 2}
    while True:
        page = await lists(empty, "own", **params)
        seen += [item["id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        params["cursor"] = page["next_cursor"]
    assert seen == mine[::-1]


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
async def test_anothers_ids_are_missing(access: Keyed, *, warm: bool) -> None:
    mine = (await access.service.create())["id"]
    theirs = (await access.service.create(client_id="other"))["id"]
    both = f"{theirs},{mine},{UNKNOWN}"
    for caller, found, missing in (
        ("own", [mine], [theirs, UNKNOWN]),
        ("stranger", [theirs], [mine, UNKNOWN]),
        ("worker", [theirs, mine], [UNKNOWN]),
        ("operator", [theirs, mine], [UNKNOWN]),
    ):
        if not warm:
            await access.service.services.cache.invalidate_all()
        batch = await lists(access, caller, ids=both)
        assert [item["id"] for item in batch["items"]] == found
        assert batch["missing"] == missing


# --- creating ---


async def test_nobody_creates_for_another_client(access: Keyed) -> None:
    before = [job["id"] for job in (await lists(access, "operator"))["items"]]
    refused = await access.call("stranger", "POST", "/api/v2/jobs", json=JOB)
    assert refused.status_code == 403
    assert "client acme" in refused.json()["detail"]
    await access.service.services.cache.invalidate_all()
    after = [job["id"] for job in (await lists(access, "operator"))["items"]]
    assert after == before


async def test_an_idempotency_key_finds_nobody_elses_job(access: Keyed) -> None:
    once = {"Idempotency-Key": "once"}
    first = await access.call("own", "POST", "/api/v2/jobs", json=JOB, headers=once)
    again = await access.call("own", "POST", "/api/v2/jobs", json=JOB, headers=once)
    assert first.json()["id"] == again.json()["id"]
    theirs = JOB | {"client_id": CLIENTS["stranger"]}
    other = await access.call("stranger", "POST", "/api/v2/jobs", json=theirs, headers=once)
    assert other.status_code == 202
    assert (other.json()["id"], other.json()["client_id"]) != (first.json()["id"], "acme")
    taken = await access.call("stranger", "POST", "/api/v2/jobs", json=JOB, headers=once)
    assert taken.status_code == 403, "not the job, and not that the key has been used"


# --- how it is said ---


async def test_a_refusal_says_what_is_needed(access: Keyed) -> None:
    job = await access.service.rendering()
    for caller, method, path, words in (
        ("own", "POST", f"/api/v2/jobs/{job['id']}/progress", "worker or operator, not client"),
        ("worker", "POST", f"/api/v2/jobs/{job['id']}/cancel", "client or operator, not worker"),
        ("worker", "GET", "/api/v2/cache/stats", "operator, not worker"),
        ("worker", "GET", "/metrics", "operator, not worker"),
    ):
        answer = await access.call(caller, method, path, json={"percent": 1})
        assert answer.status_code == 403
        assert f"role is {words}" in answer.json()["detail"]
        assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize(
    ("header", "error"),
    [
        ("", False),
        ("Basic YTpi", False),
        ("Token x", False),
        ("Bearer", True),
        ("Bearer ", True),
        ("Bearer x", True),
        ("Bearer \xff\xfe", True),
        ("Bearer " + "x" * 5000, True),
        ("Bearer jc_000000000000_" + "A" * 43, True),
    ],
)
async def test_without_a_known_key_the_challenge_is_that_of_rfc_6750(
    access: Keyed, header: str, *, error: bool
) -> None:
    answer = await access.service.http.get(
        "/api/v2/jobs", headers={b"Authorization": header.encode("latin-1")}
    )
    assert answer.status_code == 401
    challenge = answer.headers["www-authenticate"]
    assert challenge.startswith("Bearer ")
    assert ('error="invalid_token"' in challenge) is error
    assert answer.json()["title"] == "Unauthorized"


async def test_the_scheme_is_of_any_case_and_a_second_header_is_one_too_many(
    access: Keyed,
) -> None:
    value = access.callers["own"]["Authorization"].removeprefix("Bearer ")
    for scheme in ("bearer", "BEARER", "Bearer  "):
        headers = {"Authorization": f"{scheme} {value}"}
        assert (await access.service.http.get("/api/v2/jobs", headers=headers)).status_code == 200
    request = access.service.http.build_request("GET", "/api/v2/jobs")
    del request.headers["Authorization"]
    one = ("Authorization", f"Bearer {value}")
    twice = httpx.Request("GET", request.url, headers=[*request.headers.multi_items(), one, one])
    assert (await access.service.http.send(twice)).status_code == 401


async def test_what_is_nowhere_needs_a_key_to_be_found_nowhere(access: Keyed) -> None:
    for path in ("/nowhere", "/healthz/", "/healthz//", "/api/v2/jobs/", "/docs/x"):
        assert (await access.call("none", "GET", path)).status_code == 401
        assert (await access.call("own", "GET", path)).status_code == 404


async def test_a_service_without_keys_is_open(start: Start) -> None:
    async with start() as service:
        job = await service.rendering()
        headers = {"Authorization": "Bearer of good news"}
        answer = await service.http.get(f"/api/v2/jobs/{job['id']}", headers=headers)
        assert answer.status_code == 200
        assert (await service.stats())["cache_enabled"] is True
        document = (await service.http.get("/openapi.json")).json()
    assert "securitySchemes" not in document["components"]
    for item in document["paths"].values():
        for method, operation in item.items():
            refused = "403" in operation["responses"]
            assert refused is (method == "post"), "what a page of another origin sends"
            assert not {"401"} & set(operation["responses"])
            assert ("429" in operation["responses"]) is (operation["operationId"] == "create")
            assert {"414", "431"} <= set(operation["responses"])


async def test_the_document_says_who_needs_a_key(start: Start, tmp_path: Path) -> None:
    async with keyed(start, tmp_path / "keys", JOBCACHE_RATE_LIMIT="1000/second") as access:
        document = (await access.call("none", "GET", "/openapi.json")).json()
    scheme = document["components"]["securitySchemes"]
    assert scheme == {"key": {"type": "http", "scheme": "bearer"}}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            row = TABLE[method.upper(), path]
            answers = set(operation["responses"])
            assert ("401" in answers) is (row.bare == 401) is ("security" in operation)
            assert ("403" in answers) is (403 in row[:4]), (method, path)
            assert ("429" in answers) is (path not in {"/healthz", "/readyz"})
            assert {"414", "431"} <= answers


async def test_the_service_itself_sees_everything() -> None:
    assert TRUSTED.can_view("acme")
    assert TRUSTED.may()
