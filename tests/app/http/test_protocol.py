"""Details of HTTP that no backend and no database has a part in."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx
import pytest

from app.jobs.schemas import LARGEST_ID
from jobcache.protocol.document import VERSION_LIMIT
from tests.app.running import Service, Start

FILM = b"0123456789" * 10


@pytest.fixture
async def service(start: Start) -> AsyncIterator[Service]:
    async with start(JOBCACHE_SIMULATED_SECONDS="600") as running:
        yield running


async def filmed(service: Service) -> str:
    """A builtin job that has ended with a video; its URL."""
    job = await service.create()
    await service.until(job["id"], "storyboard_ready")
    await service.post(f"{job['id']}/approve")
    await service.post(f"{job['id']}/render", 202)
    url = f"/api/v2/jobs/{job['id']}/video"
    await service.services.jobs.complete(job["id"], url, worker=False)
    (service.settings.videos / f"{job['id']}.mp4").write_bytes(FILM)
    return url


def is_problem(response: httpx.Response) -> bool:
    return response.headers["content-type"] == "application/problem+json" and (
        response.json()["status"] == response.status_code
    )


# --- the video ---


async def test_a_range_beyond_the_video_is_a_problem_that_tells_its_length(
    service: Service,
) -> None:
    url = await filmed(service)
    response = await service.http.get(url, headers={"Range": "bytes=100-"})
    assert response.status_code == 416
    assert is_problem(response)
    assert response.headers["content-range"] == "bytes */100"


async def test_a_range_that_cannot_be_read_is_a_problem(service: Service) -> None:
    url = await filmed(service)
    for value in ("bytes=x-y", "bytes=9-3", "bytes="):
        response = await service.http.get(url, headers={"Range": value})
        assert response.status_code == 400, value
        assert is_problem(response)


async def test_a_range_that_can_be_read_is_served(service: Service) -> None:
    url = await filmed(service)
    for value, content in (("bytes=3-5", b"345"), ("Bytes=-2", b"89"), ("bytes=98-", b"89")):
        response = await service.http.get(url, headers={"Range": value})
        assert (response.status_code, response.content) == (206, content)


async def test_a_range_in_an_unknown_unit_is_as_none(service: Service) -> None:
    url = await filmed(service)
    for value in ("seconds=0-5", "garbage", "=1-2"):
        response = await service.http.get(url, headers={"Range": value})
        assert (response.status_code, response.content) == (200, FILM), value


async def test_a_video_has_a_validator(service: Service) -> None:
    url = await filmed(service)
    tag = (await service.http.get(url)).headers["etag"]
    for value in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        for headers in ({}, {"Range": "bytes=0-1"}):
            response = await service.http.get(url, headers={"If-None-Match": value, **headers})
            assert (response.status_code, response.content) == (304, b""), value
            assert response.headers["etag"] == tag
    other = await service.http.get(url, headers={"If-None-Match": '"x"'})
    assert other.status_code == 200


async def test_a_job_whose_worker_named_no_video_sends_nobody_looking_for_one(
    service: Service,
) -> None:
    job = await service.rendering()
    await service.post(f"{job['id']}/complete")
    response = await service.http.get(f"/api/v2/jobs/{job['id']}/video")
    assert response.status_code == 409
    assert "its worker named none" in response.json()["detail"]


# --- methods and paths ---


async def test_head_is_answered_wherever_get_is(service: Service) -> None:
    url = await filmed(service)
    job_id = url.split("/")[4]
    documented = (await service.http.get("/openapi.json")).json()["paths"]
    paths = [path for path, methods in documented.items() if "get" in methods]
    assert len(paths) >= 7
    for path in paths:
        assert "head" in documented[path]
        real = path.replace("{job_id}", job_id)
        named = {"X-Request-Id": "the-same"}
        get = await service.http.get(real, headers=named)
        head = await service.http.head(real, headers=named)
        assert (get.status_code, head.status_code) == (200, 200), path
        assert list(get.headers) == list(head.headers)
        assert head.content == b""
    ranged = await service.http.head(url, headers={"Range": "bytes=0-1"})
    assert (ranged.status_code, ranged.headers["content-length"]) == (200, "100")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api/v2/jobs", "GET, HEAD, POST"),
        ("/api/v2/jobs/1", "GET, HEAD"),
        ("/api/v2/jobs/1/approve", "POST"),
        ("/healthz", "GET, HEAD"),
    ],
)
async def test_a_refused_method_gets_the_allowed_ones(
    service: Service, path: str, allowed: str
) -> None:
    response = await service.http.delete(path)
    assert response.status_code == 405
    assert response.headers["allow"] == allowed
    assert is_problem(response)


async def test_nobody_is_sent_to_a_host_the_client_named(service: Service) -> None:
    for path in ("/api/v2/jobs/", "/healthz/", "/api/v2/jobs/1/"):
        for host, status in (("evil.example", 421), ("localhost", 404)):
            response = await service.http.get(path, headers={"Host": host})
            assert response.status_code == status, path
            assert "location" not in response.headers
            assert is_problem(response)


# --- header fields ---


async def test_a_field_in_two_lines_is_read_as_one(service: Service) -> None:
    job = await service.create(prompt="A very long story. " * 100, renderer="external")
    ready = await service.until(job["id"], "storyboard_ready")
    url = f"/api/v2/jobs/{job['id']}"
    tags = [("If-None-Match", '"x"'), ("If-None-Match", f'"{ready["version"]}-0"')]
    for path in (url, ready["storyboard_url"]):
        lines = [("Accept-Encoding", "br"), ("Accept-Encoding", "gzip")]
        packed = await service.http.get(path, headers=lines)
        assert packed.headers["content-encoding"] == "gzip"
        assert (await service.http.get(path, headers=tags)).status_code == 304


async def test_a_304_names_a_tag_the_client_holds(service: Service) -> None:
    job = await service.create(prompt="A very long story. " * 100, renderer="external")
    version = (await service.until(job["id"], "storyboard_ready"))["version"]
    plain, packed = f'"{version}-0"', f'"{version}-1"'
    for accepts, held, named in (
        ("identity", packed, packed),
        ("gzip", plain, plain),
        ("gzip", f"{plain}, {packed}", packed),
        ("identity", f"{plain}, {packed}", plain),
    ):
        headers = {"Accept-Encoding": accepts, "If-None-Match": held}
        response = await service.http.get(f"/api/v2/jobs/{job['id']}", headers=headers)
        assert (response.status_code, response.headers["etag"]) == (304, named)


async def test_a_version_no_source_gives_out_costs_no_query(service: Service) -> None:
    job = await service.rendering()
    before = (await service.stats())["database"]["purposes"]
    for version in (VERSION_LIMIT, 9999999999999999):
        headers = {"If-None-Match": f'"{version}-0"'}
        response = await service.http.get(f"/api/v2/jobs/{job['id']}", headers=headers)
        assert response.status_code == 200
        assert "; hit;" in response.headers["cache-status"]
    after = (await service.stats())["database"]["purposes"]
    assert after.get("load") == before.get("load")


# --- numbers and URLs ---


async def test_a_job_has_one_path(service: Service) -> None:
    for _ in range(10):
        job = await service.create()
    assert job["id"] == 10
    for spelling in ("1_0", "+1", "1.0", "%201", "01", "0", "-1", "%D9%A1", "1%0A", "1" * 20):
        for path in ("", "/storyboard", "/video"):
            response = await service.http.get(f"/api/v2/jobs/{spelling}{path}")
            assert response.status_code == 422, spelling
    assert (await service.http.get(f"/api/v2/jobs/{LARGEST_ID}")).status_code == 404
    assert (await service.http.get(f"/api/v2/jobs/{LARGEST_ID + 1}")).status_code == 422
    assert (await service.http.get("/api/v2/jobs?limit=1_0")).status_code == 422
    assert len((await service.http.get("/api/v2/jobs?limit=3")).json()["items"]) == 3


async def test_true_is_no_number(service: Service) -> None:
    job = await service.rendering()
    for path, body in (
        ("/api/v2/cache/invalidate", {"job_id": True}),
        ("/api/v2/cache/invalidate", {"job_id": "1"}),
        ("/api/v2/jobs", {"client_id": "acme", "prompt": "x", "scenes": True}),
        ("/api/v2/jobs", {"client_id": "acme", "prompt": "x", "scenes": 1.5}),
        ("/api/v2/jobs", {"client_id": "acme", "prompt": "x", "seconds_per_scene": True}),
        (f"/api/v2/jobs/{job['id']}/progress", {"percent": True}),
        (f"/api/v2/jobs/{job['id']}/progress", {"percent": "5"}),
    ):
        response = await service.http.post(path, json=body)
        assert response.status_code == 422, (path, body)


async def test_a_whole_number_is_one_however_json_writes_it(service: Service) -> None:
    job = await service.create(scenes=2.0)
    assert (await service.post("../cache/invalidate", job_id=float(job["id"])))["purged"] >= 0
    for scenes in (1e300, 0.0, 13.0):
        body = {"client_id": "acme", "prompt": "x", "scenes": scenes}
        assert (await service.http.post("/api/v2/jobs", json=body)).status_code == 422


async def test_null_is_no_request_to_drop_everything(service: Service) -> None:
    job = await service.rendering()
    for name in ("job_id", "client_id", "all"):
        response = await service.http.post("/api/v2/cache/invalidate", json={name: None})
        assert response.status_code == 422, name
    response = await service.http.get(f"/api/v2/jobs/{job['id']}")
    assert "; hit;" in response.headers["cache-status"]


async def test_an_id_in_a_list_and_a_cursor_have_one_spelling(service: Service) -> None:
    for _ in range(2):
        await service.create()
    page = (await service.http.get("/api/v2/jobs?limit=1")).json()
    assert page["next_cursor"] == "Mg"
    assert (await service.http.get("/api/v2/jobs?cursor=Mg")).status_code == 200
    for query in ("ids=01", "ids=1,02", f"ids={LARGEST_ID + 1}", "cursor=M!g", "cursor=Mh"):
        assert (await service.http.get(f"/api/v2/jobs?{query}")).status_code == 422, query


async def test_a_url_of_a_video_is_one_to_everybody_who_reads_it(service: Service) -> None:
    job = await service.rendering()
    path = f"/api/v2/jobs/{job['id']}/complete"
    for url in ("https:example.com", r"https:\\example.com", "https://e.com/%zz", "https://ü.de/"):
        response = await service.http.post(path, json={"video_url": url})
        assert response.status_code == 422, url
    await service.post(f"{job['id']}/complete", video_url="HTTPS://e.com:8443/a%20b?c=d#e")


async def test_a_url_of_a_video_has_no_blanks_and_no_controls(service: Service) -> None:
    job = await service.rendering()
    path = f"/api/v2/jobs/{job['id']}/complete"
    for url in (
        " https://example.com/v",
        "https://example.com/v\n",
        "https://example.com/a b",
        "https://example.com/\t",
        "https://example.com/\x7f",
        "https://example.com/\u2028",
        "https://example.com/\u202e4pm",
    ):
        response = await service.http.post(path, json={"video_url": url})
        assert response.status_code == 422, url
    assert await service.job(job["id"]) == job


async def test_ids_go_with_no_limit(service: Service) -> None:
    response = await service.http.get("/api/v2/jobs?ids=1&limit=20")
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "query.ids"


async def test_a_whole_number_of_seconds_is_shown_as_one(service: Service) -> None:
    raw = (await service.http.get("/api/v2/cache/stats")).text
    assert json.loads(raw)["statistics"]["ttl_seconds"] == 30
    assert '"ttl_seconds":30,' in raw


# --- the log ---


async def test_an_error_is_logged_with_one_traceback_which_is_the_servers(
    service: Service, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*arguments: object) -> object:
        raise RuntimeError("a bug")

    monkeypatch.setattr(service.services.database, "read", broken)
    assert (await service.http.get("/readyz")).status_code == 500
    ours = [record for record in caplog.records if record.name == "app"]
    assert [record.getMessage() for record in ours] == ["GET /readyz failed: RuntimeError"]
    assert not ours[0].exc_info
    transport = httpx.ASGITransport(service.http._transport.app)  # type: ignore[attr-defined]
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as server:
        with pytest.raises(RuntimeError, match="a bug"):
            await server.get("/readyz")
