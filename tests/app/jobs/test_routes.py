"""The HTTP contract, the same on {null, memory, redis} x {SQLite, PostgreSQL}."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from tests.app.running import Service, choosing, empty_database, starting
from tests.pairs import DATABASES, SERVICE_BACKENDS

pytestmark = pytest.mark.asyncio(loop_scope="module")

UNKNOWN = 1_000_000


@pytest.fixture(scope="module", params=DATABASES)
def database(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=[*SERVICE_BACKENDS, "postgres"])
async def shared(
    request: pytest.FixtureRequest, database: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Service]:
    """A service of each backend and database, in which tests find each other's jobs."""
    folder = tmp_path_factory.mktemp("http")
    url = await empty_database(request, database, folder)
    environment = choosing(request, request.param) | {"JOBCACHE_SIMULATED_SECONDS": "0.3"}
    async with starting(folder)(DATABASE_URL=url, **environment) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def service(shared: Service) -> Service:
    """That service, at work on no job."""
    await shared.storyboards_written()
    return shared


@pytest.fixture
def client() -> str:
    """A client of one test."""
    return f"client-{secrets.token_hex(8)}"


async def listed(service: Service, **params: Any) -> Any:
    answer = await service.http.get("/api/v2/jobs", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def cached(service: Service) -> bool:
    return service.services.cache.backend.name != "null"


# --- the life of a job ---


async def test_a_job_goes_from_prompt_to_completed(service: Service) -> None:
    created = await service.create(prompt="One. Two. Three.", seconds_per_scene=1.5)
    assert (created["status"], created["version"], created["terminal"]) == ("pending", 1, False)
    ready = await service.until(created["id"], "storyboard_ready")
    assert ready["storyboard_url"] == f"/api/v2/jobs/{created['id']}/storyboard"
    approved = await service.post(f"{created['id']}/approve")
    assert approved["status"] == "approved"
    rendering = await service.post(f"{created['id']}/render", 202)
    assert rendering["status"] == "rendering"
    job = await service.until(created["id"], "completed")
    assert job["progress"]["percent"] == 100
    assert job["version"] > rendering["version"] + 1, "progress was reported on the way"
    moment = datetime.fromisoformat(job["updated_at"])
    assert abs(datetime.now(UTC) - moment) < timedelta(minutes=1)


async def test_a_worker_of_the_users_renders_an_external_job(service: Service) -> None:
    job = await service.rendering()
    path = str(job["id"])
    reported = await service.post(f"{path}/progress", percent=41.5, stage="scene 2", message="hm")
    assert reported["progress"]["percent"] == 41.5
    assert (await service.job(job["id"]))["progress"] == reported["progress"]
    done = await service.post(f"{path}/complete", video_url="https://example.com/v.mp4")
    assert (done["status"], done["video_url"]) == ("completed", "https://example.com/v.mp4")
    assert await service.post(f"{path}/complete") == done, "repeating it is fine"
    assert (await service.job(job["id"])) == done
    late = await service.post(f"{path}/progress", 409, percent=50)
    assert "completed" in late["detail"]
    assert (await service.job(job["id"])) == done


async def test_a_worker_can_fail_a_job(service: Service) -> None:
    job = await service.rendering()
    failed = await service.post(f"{job['id']}/fail", error="out of film")
    assert (failed["status"], failed["error"], failed["terminal"]) == (
        "failed",
        "out of film",
        True,
    )
    assert await service.post(f"{job['id']}/fail", error="again") == failed


async def test_nobody_else_reports_on_what_the_service_renders(service: Service) -> None:
    job = await service.create()
    for action, body in (
        ("progress", {"percent": 1}),
        ("complete", {}),
        ("fail", {"error": "x"}),
    ):
        response = await service.http.post(f"/api/v2/jobs/{job['id']}/{action}", json=body)
        assert response.status_code == 409
        assert "rendered by the service itself" in response.json()["detail"]


async def test_repeating_a_step_changes_nothing(service: Service) -> None:
    job = await service.rendering()
    for action, status in (("approve", 200), ("render", 202)):
        assert await service.post(f"{job['id']}/{action}", status) == job
    cancelled = await service.post(f"{job['id']}/cancel")
    assert cancelled["version"] == job["version"] + 1
    assert await service.post(f"{job['id']}/cancel") == cancelled


async def test_a_transition_that_is_not_allowed_names_the_state(service: Service) -> None:
    job = await service.create(renderer="external")
    ready = await service.until(job["id"], "storyboard_ready")
    for action, body in (
        ("render", {}),
        ("progress", {"percent": 1}),
        ("complete", {"video_url": None}),
    ):
        problem = await service.post(f"{job['id']}/{action}", 409, **body)
        assert "storyboard_ready" in problem["detail"]
    assert await service.job(job["id"]) == ready, "and changes nothing"
    await service.post(f"{job['id']}/cancel")
    for action in ("approve", "render"):
        problem = await service.post(f"{job['id']}/{action}", 409)
        assert "cancelled" in problem["detail"]


async def test_refused_and_repeated_reports_leave_the_entry_alone(service: Service) -> None:
    job = await service.rendering()
    before = (await service.stats())["database"]["purposes"].get("load", 0)
    await service.post(f"{job['id']}/approve")
    await service.post(f"{job['id']}/complete")
    await service.post(f"{job['id']}/progress", 409, percent=1)
    response = await service.http.get(f"/api/v2/jobs/{job['id']}")
    if cached(service):
        assert "; hit;" in response.headers["cache-status"]
    loads = (await service.stats())["database"]["purposes"]["load"] - before
    assert loads == (2 if cached(service) else 3), "one for each refusal, to say why"


async def test_of_many_concurrent_reports_one_ends_the_job(service: Service) -> None:
    job = await service.rendering()
    path = f"/api/v2/jobs/{job['id']}"
    answers = await asyncio.gather(
        *(service.http.post(f"{path}/complete", json={}) for _ in range(5)),
        *(service.http.post(f"{path}/cancel") for _ in range(5)),
        *(service.http.post(f"{path}/fail", json={"error": "x"}) for _ in range(5)),
        *(service.http.post(f"{path}/progress", json={"percent": 9}) for _ in range(5)),
    )
    final = await service.job(job["id"])
    assert final["terminal"]
    ends = {"completed": answers[:5], "cancelled": answers[5:10], "failed": answers[10:15]}
    for status, group in ends.items():
        expected = 200 if status == final["status"] else 409
        assert {answer.status_code for answer in group} == {expected}


async def test_every_version_is_assigned_once(service: Service) -> None:
    job = await service.rendering()
    reports = await asyncio.gather(
        *(service.post(f"{job['id']}/progress", percent=n) for n in range(20))
    )
    versions = sorted(report["version"] for report in reports)
    assert versions == list(range(job["version"] + 1, job["version"] + 21))
    last = max(reports, key=lambda report: report["version"])
    assert await service.job(job["id"]) == last


# --- the poll ---


async def test_a_poll_has_an_etag_and_cache_status(service: Service) -> None:
    job = await service.rendering()
    await service.job(job["id"])
    response = await service.http.get(f"/api/v2/jobs/{job['id']}")
    assert response.headers["etag"] == f'"{job["version"]}-0"'
    assert response.headers["cache-control"] == "private, no-cache"
    assert response.headers["retry-after"] == "2"
    assert "accept-encoding" in response.headers["vary"].lower()
    status = response.headers["cache-status"]
    if cached(service):
        assert status.startswith("jobcache; hit; ttl=")
        assert response.headers["age"] == "0"
    else:
        assert status == "jobcache; fwd=miss; detail=null"
    await service.post(f"{job['id']}/cancel")
    over = await service.http.get(f"/api/v2/jobs/{job['id']}")
    assert "retry-after" not in over.headers


async def test_a_first_poll_after_each_change_is_a_hit_and_costs_no_query(
    service: Service,
) -> None:
    job = await service.rendering()
    before = (await service.stats())["database"]["purposes"].get("load", 0)
    for percent in range(10):
        reported = await service.post(f"{job['id']}/progress", percent=percent)
        response = await service.http.get(f"/api/v2/jobs/{job['id']}")
        assert response.json() == reported
        if cached(service):
            assert "; hit;" in response.headers["cache-status"]
    loads = (await service.stats())["database"]["purposes"].get("load", 0) - before
    assert loads == (0 if cached(service) else 10)


async def test_a_matching_if_none_match_is_304_without_a_body(service: Service) -> None:
    job = await service.rendering()
    url = f"/api/v2/jobs/{job['id']}"
    tag = (await service.http.get(url)).headers["etag"]
    for value in (tag, f"W/{tag}", f'"x", {tag}', "*", f'"{job["version"]}-1"'):
        response = await service.http.get(url, headers={"If-None-Match": value})
        assert response.status_code == 304, value
        assert response.content == b""
        held = tag if value == "*" or tag in value else value
        assert response.headers["etag"] == held
        assert response.headers["retry-after"] == "2"
    for value in ('"x"', "garbage", '"99999999999999999999-0"', f'"{job["version"]}-2"', '"-"'):
        response = await service.http.get(url, headers={"If-None-Match": value})
        assert response.status_code == 200, value
    await service.post(f"{job['id']}/progress", percent=5)
    changed = await service.http.get(url, headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != tag


async def test_a_version_from_the_future_is_answered_with_what_there_is(service: Service) -> None:
    job = await service.rendering()
    headers = {"If-None-Match": '"9007199254740990-0"'}
    response = await service.http.get(f"/api/v2/jobs/{job['id']}", headers=headers)
    assert (response.status_code, response.json()) == (200, await service.job(job["id"]))


async def test_the_etag_of_one_job_says_nothing_of_another(service: Service) -> None:
    first, second = await service.rendering(), await service.rendering()
    assert first["version"] == second["version"]
    tag = f'"{first["version"]}-0"'
    await service.post(f"{second['id']}/progress", percent=1)
    answer = await service.http.get(f"/api/v2/jobs/{second['id']}", headers={"If-None-Match": tag})
    assert answer.status_code == 200


async def test_a_large_document_travels_compressed_to_whoever_takes_it(service: Service) -> None:
    prompt = "A very long story. " * 100
    job = await service.create(prompt=prompt, renderer="external")
    await service.until(job["id"], "storyboard_ready")
    for url in (f"/api/v2/jobs/{job['id']}", f"/api/v2/jobs/{job['id']}/storyboard"):
        plain = await service.http.get(url, headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        for accepts in ("gzip", "br;q=1.0, gzip;q=0.5", "*"):
            packed = await service.http.get(url, headers={"Accept-Encoding": accepts})
            assert packed.headers["content-encoding"] == "gzip"
            assert packed.json() == plain.json()
            assert packed.headers["etag"] != plain.headers["etag"], "they differ byte by byte"
            assert int(packed.headers["content-length"]) < len(plain.content) / 2
        for refuses in ("gzip;q=0", "br", ""):
            answer = await service.http.get(url, headers={"Accept-Encoding": refuses})
            assert answer.content == plain.content


async def test_the_storyboard_has_a_validator_of_its_own(service: Service) -> None:
    job = await service.create(prompt="One. Two.", scenes=3, renderer="external")
    ready = await service.until(job["id"], "storyboard_ready")
    url = ready["storyboard_url"]
    storyboard = await service.http.get(url)
    assert storyboard.status_code == 200
    assert len(storyboard.json()["scenes"]) == 3
    await service.post(f"{job['id']}/approve")
    again = await service.http.get(url, headers={"If-None-Match": storyboard.headers["etag"]})
    assert again.status_code == 304, "what changes the job does not change its storyboard"


# --- unknown jobs and paths ---


async def test_an_unknown_job_is_404_until_it_exists(service: Service) -> None:
    following = (await service.create())["id"] + 1
    await service.storyboards_written()
    before = (await service.stats())["database"]["purposes"].get("load", 0)
    for _ in range(2):
        response = await service.http.get(f"/api/v2/jobs/{following}")
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"
    loads = (await service.stats())["database"]["purposes"]["load"] - before
    assert loads == (1 if cached(service) else 2)
    job = await service.create()
    assert job["id"] == following
    assert (await service.job(following))["client_id"] == "acme"


async def test_unknown_jobs_are_404_everywhere(service: Service) -> None:
    for action, body in (
        ("approve", None),
        ("render", None),
        ("cancel", None),
        ("progress", {"percent": 1}),
        ("complete", {}),
        ("fail", {"error": "x"}),
    ):
        response = await service.http.post(f"/api/v2/jobs/{UNKNOWN}/{action}", json=body)
        assert response.status_code == 404, action
    for path in ("", "/storyboard", "/video"):
        assert (await service.http.get(f"/api/v2/jobs/{UNKNOWN}{path}")).status_code == 404


async def test_a_video_that_is_not_there_is_409(service: Service) -> None:
    job = await service.rendering()
    response = await service.http.get(f"/api/v2/jobs/{job['id']}/video")
    assert response.status_code == 409
    assert "rendering" in response.json()["detail"]
    await service.post(f"{job['id']}/complete", video_url="https://example.com/v.mp4")
    response = await service.http.get(f"/api/v2/jobs/{job['id']}/video")
    assert response.status_code == 409
    assert "kept elsewhere" in response.json()["detail"]


# --- lists ---


async def test_a_clients_list_pages_newest_first(service: Service, client: str) -> None:
    prompts = [f"Job {n}." for n in range(7)]
    made = [(await service.create(prompt=each, client_id=client))["id"] for each in prompts]
    await service.create(client_id="other")
    seen, cursor, pages = [], None, 0
    while True:
        more = {"cursor": cursor} if cursor else {}
        page = await listed(service, client_id=client, limit=3, **more)
        seen += [item["id"] for item in page["items"]]
        cursor, pages = page["next_cursor"], pages + 1
        if cursor is None:
            break
    assert (seen, pages) == (made[::-1], 3)
    exact = await listed(service, client_id=client, limit=7)
    assert exact["next_cursor"] is None


async def test_a_list_shows_each_job_as_a_poll_does(service: Service, client: str) -> None:
    job = await service.rendering(client_id=client)
    for percent in (10, 20):
        await service.post(f"{job['id']}/progress", percent=percent)
        page = await listed(service, client_id=client)
        assert page["items"] == [await service.job(job["id"])]


async def test_progress_does_not_cost_a_list_query(service: Service, client: str) -> None:
    job = await service.rendering(client_id=client)
    await listed(service, client_id=client)
    before = (await service.stats())["database"]["purposes"]
    for percent in range(5):
        await service.post(f"{job['id']}/progress", percent=percent)
        await listed(service, client_id=client)
    after = (await service.stats())["database"]["purposes"]
    changed = {name for name in ("list", "load") if after.get(name) != before.get(name)}
    assert changed == (set() if cached(service) else {"list", "load"})


async def test_a_new_job_is_in_the_list_at_once(service: Service, client: str) -> None:
    assert await listed(service, client_id=client) == {"items": [], "next_cursor": None}
    for count in range(1, 4):
        await service.create(client_id=client)
        page = await listed(service, client_id=client)
        assert len(page["items"]) == count


async def test_lists_can_be_picked_by_status(service: Service, client: str) -> None:
    kept, cancelled = [await service.rendering(client_id=client) for _ in range(2)]
    await service.post(f"{cancelled['id']}/cancel")
    for params, expected in (
        ({"status": "cancelled"}, [cancelled["id"]]),
        ({"status": "cancelled", "client_id": client}, [cancelled["id"]]),
        ({"status": "rendering", "client_id": client}, [kept["id"]]),
        ({"status": "rendering", "client_id": "nobody"}, []),
        ({}, [cancelled["id"], kept["id"]]),
    ):
        items = (await listed(service, **params))["items"]
        found = [item["id"] for item in items if item["id"] >= kept["id"]]
        assert found == expected
        if "status" in params:
            assert {item["status"] for item in items} <= {params["status"]}


async def test_many_jobs_in_one_round_trip(service: Service) -> None:
    first, second = await service.create(), await service.create()
    ids = f"{second['id']},{UNKNOWN},{first['id']},{second['id']}"
    answer = await listed(service, ids=ids)
    assert [item["id"] for item in answer["items"]] == [second["id"], first["id"]]
    assert answer["missing"] == [UNKNOWN]


# --- creating ---


async def test_creating_says_where_the_job_is(service: Service) -> None:
    response = await service.http.post(
        "/api/v2/jobs", json={"client_id": "a.b-c_d@e", "prompt": "Ünïcödé 🎬"}
    )
    assert response.status_code == 202
    assert response.headers["location"] == f"/api/v2/jobs/{response.json()['id']}"
    assert response.headers["etag"] == '"1-0"'
    assert response.json()["prompt"] == "Ünïcödé 🎬"


async def test_an_idempotency_key_makes_one_job(service: Service, client: str) -> None:
    body = {"client_id": client, "prompt": "Once."}
    headers = {"Idempotency-Key": "order-1"}

    async def create() -> tuple[int, int]:
        response = await service.http.post("/api/v2/jobs", json=body, headers=headers)
        return response.status_code, response.json()["id"]

    answers = await asyncio.gather(*(create() for _ in range(8)))
    assert set(answers) == {(202, answers[0][1])}
    other = {**body, "prompt": "Twice."}
    refused = await service.http.post("/api/v2/jobs", json=other, headers=headers)
    assert refused.status_code == 422
    assert "Idempotency-Key" in refused.json()["detail"]
    theirs = await service.http.post(
        "/api/v2/jobs", json={**body, "client_id": f"{client}s"}, headers=headers
    )
    assert theirs.status_code == 202, "another client's keys are another client's"
    assert len((await listed(service, client_id=client))["items"]) == 1


# --- operations ---


async def test_the_statistics_have_every_field_operators_read(service: Service) -> None:
    job = await service.rendering()
    await service.job(job["id"])
    before = (await service.stats())["statistics"]["hits"]
    for _ in range(3):
        await service.job(job["id"])
    stats = await service.stats()
    assert stats["cache_enabled"] is cached(service)
    statistics = stats["statistics"]
    bypasses = statistics["bypasses"]  # polls that met a fence, while the storyboard was written
    total = statistics["hits"] + statistics["misses"] + bypasses
    assert statistics["total_requests"] == total
    assert statistics["hit_rate"] == round(100 * statistics["hits"] / total, 2)
    assert statistics["ttl_seconds"] == 30
    remote = service.services.cache.backend.name in {"redis", "tiered"}
    assert (statistics["redis_enabled"], statistics["redis_available"]) == (remote, remote)
    assert statistics["errors"] == 0
    for name in ("hit", "miss", "publish", "database_load"):
        latency = statistics["latency_us"][name]
        assert set(latency) == {"count", "total", "p50", "p95", "p99", "p99.9"}
        assert latency["p50"] * latency["count"] / 4 <= latency["total"]
        assert latency["total"] <= latency["p99.9"] * latency["count"]
    if cached(service):
        assert statistics["hits"] == before + 3
        assert stats["message"] == "Cache is working normally"
    else:
        assert (statistics["hits"], statistics["hit_rate"]) == (0, 0.0)


async def test_invalidation_is_by_job_by_client_or_all(service: Service, client: str) -> None:
    await service.services.cache.invalidate_all()
    job = await service.create(renderer="external", client_id=client)
    await service.until(job["id"], "storyboard_ready")
    await listed(service, client_id=client)
    for body, purged in (
        ({"client_id": client}, 1),
        ({"job_id": UNKNOWN}, 0),
        ({"job_id": job["id"]}, 2 if cached(service) else 1),
    ):
        response = await service.http.post("/api/v2/cache/invalidate", json=body)
        assert response.json() == {"purged": purged if cached(service) else 0}
    await service.job(job["id"])
    response = await service.http.post("/api/v2/cache/invalidate", json={"all": True})
    # Jobs of other tests are being rendered: their entries come and go.
    assert (response.json()["purged"] > 0) is cached(service)
    poll = await service.http.get(f"/api/v2/jobs/{job['id']}")
    assert poll.json()["status"] == "storyboard_ready"
    assert "; hit" not in poll.headers["cache-status"]


async def test_it_says_that_it_is_alive_and_ready(service: Service) -> None:
    assert (await service.http.get("/healthz")).json() == {"status": "alive"}
    ready = (await service.http.get("/readyz")).json()
    assert ready.pop("status") == "ready"
    notified = service.services.cache.backend.name == "postgres"
    assert ready == ({"feed": "live", "notification_queue": "0.0% full"} if notified else {})


# --- bad input ---

NOT_JOBS = ["abc", "0", "-1", "1.5", "9223372036854775808", "1" * 400, "%00", "1%2f2", "null"]


async def test_a_malformed_id_is_an_error_of_the_clients(service: Service) -> None:
    for job_id in NOT_JOBS:
        for path in ("", "/storyboard", "/video"):
            response = await service.http.get(f"/api/v2/jobs/{job_id}{path}")
            assert response.status_code in {404, 422}, job_id
            assert response.headers["content-type"] == "application/problem+json"


BAD_JOBS: list[object] = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"client_id": "acme", "prompt": "\\ud800"}',
    b'{"client_id": "acme", "prompt": "a\\u0000b"}',
    b'{"client_id": "acme", "prompt": "x", "seconds_per_scene": NaN}',
    b'{"client_id": "acme", "prompt": "x", "seconds_per_scene": 1e999}',
    b"[" * 30_000,
    {"client_id": "acme"},
    {"prompt": "x"},
    {"client_id": "acme", "prompt": ""},
    {"client_id": "acme", "prompt": " \n"},
    {"client_id": "acme", "prompt": "x" * 2001},
    {"client_id": "acme", "prompt": 5},
    {"client_id": "", "prompt": "x"},
    {"client_id": "a b", "prompt": "x"},
    {"client_id": "a\n", "prompt": "x"},
    {"client_id": "a" * 65, "prompt": "x"},
    {"client_id": "acme", "prompt": "x", "scenes": 0},
    {"client_id": "acme", "prompt": "x", "scenes": 13},
    {"client_id": "acme", "prompt": "x", "scenes": 10**30},
    {"client_id": "acme", "prompt": "x", "seconds_per_scene": 0},
    {"client_id": "acme", "prompt": "x", "renderer": "magic"},
    {"client_id": "acme", "prompt": "x", "status": "completed"},
]


async def test_a_malformed_body_is_422_and_makes_nothing(service: Service) -> None:
    before = [job["id"] for job in (await listed(service))["items"]]
    for body in BAD_JOBS:
        content = body if isinstance(body, bytes) else json.dumps(body)
        response = await service.http.post(
            "/api/v2/jobs", content=content, headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 422, (body, response.text)
        problem = response.json()
        assert response.headers["content-type"] == "application/problem+json"
        assert {"type", "title", "status", "detail", "instance", "errors"} <= set(problem)
        assert "Traceback" not in response.text
    assert [job["id"] for job in (await listed(service))["items"]] == before


BAD_REPORTS: list[tuple[str, dict[str, object]]] = [
    ("progress", {"percent": 101}),
    ("progress", {"percent": -0.1}),
    ("progress", {"percent": "many"}),
    ("progress", {}),
    ("progress", {"percent": 1, "stage": "x" * 101}),
    ("progress", {"percent": 1, "message": "a\0b"}),
    ("complete", {"video_url": "javascript:alert(1)"}),
    ("complete", {"video_url": "https://" + "x" * 2000}),
    ("fail", {}),
    ("fail", {"error": "  "}),
    ("fail", {"error": "x" * 1001}),
]


async def test_a_malformed_report_is_422_and_changes_nothing(service: Service) -> None:
    job = await service.rendering()
    for action, body in BAD_REPORTS:
        response = await service.http.post(f"/api/v2/jobs/{job['id']}/{action}", json=body)
        assert response.status_code == 422, body
    assert await service.job(job["id"]) == job


BAD_QUERIES = [
    {"limit": "0"},
    {"limit": "101"},
    {"limit": "x"},
    {"cursor": "!"},
    {"cursor": "MA"},
    {"cursor": "x" * 65},
    {"cursor": "LTE"},
    {"status": "finished"},
    {"client_id": "a b"},
    {"client_id": "a\0"},
    {"ids": ""},
    {"ids": "1,,2"},
    {"ids": "1,x"},
    {"ids": "9223372036854775808"},
    {"ids": ",".join(str(n) for n in range(1, 102))},
    {"ids": "1", "client_id": "acme"},
]


async def test_a_malformed_query_is_422(service: Service) -> None:
    for params in BAD_QUERIES:
        response = await service.http.get("/api/v2/jobs", params=params)
        assert response.status_code == 422, params
        assert response.json()["errors"]


async def test_a_body_that_is_too_large_is_413(service: Service) -> None:
    huge = b'{"client_id": "acme", "prompt": "' + b"x" * 70_000 + b'"}'

    async def in_pieces() -> object:
        for start in range(0, len(huge), 10_000):
            yield huge[start : start + 10_000]

    for content in (huge, in_pieces()):
        response = await service.http.post(
            "/api/v2/jobs",
            content=content,  # type: ignore[arg-type]
            headers={"Content-Type": "application/json"},
        )
        assert response.status_code == 413
        assert response.headers["content-type"] == "application/problem+json"


async def test_a_malformed_idempotency_key_is_422(service: Service) -> None:
    for key in ("", "x" * 256, "a b", "ü"):
        response = await service.http.post(
            "/api/v2/jobs",
            json={"client_id": "acme", "prompt": "x"},
            headers={"Idempotency-Key": key.encode()},  # type: ignore[dict-item]
        )
        assert response.status_code == 422, key


async def test_an_invalidation_must_say_what(service: Service) -> None:
    for body in (
        {},
        {"all": False},
        {"job_id": 1, "all": True},
        {"job_id": "x"},
        {"client_id": "a b"},
    ):
        response = await service.http.post("/api/v2/cache/invalidate", json=body)
        assert response.status_code == 422, body


async def test_other_methods_and_paths_are_problems_too(service: Service) -> None:
    for method, path, status in (
        ("DELETE", "/api/v2/jobs/1", 405),
        ("PUT", "/api/v2/jobs", 405),
        ("GET", "/nowhere", 404),
    ):
        response = await service.http.request(method, path)
        assert response.status_code == status
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["instance"] == path
