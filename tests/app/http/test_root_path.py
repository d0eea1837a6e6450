"""Links begin with the path under which a client has the service, and with nobody else's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from app import settings
from app.http.forwarded import TrustedProxies, read_prefix
from app.jobs.documents import with_prefix
from jobcache import SettingsError
from tests.app.http.test_forwarded import under_uvicorn
from tests.app.process import serving
from tests.app.running import Service, Start
from tests.app.wires import Wire, answer, get, job_of

LONG = "A fox crosses a frozen river at night. " * 40


def forwarded(prefix: str) -> dict[str, str]:
    return {"X-Forwarded-Prefix": prefix}


async def links(
    service: Service, job_id: int, headers: dict[str, str], under: str = ""
) -> set[str]:
    """What every kind of answer links a job's storyboard with."""
    path, found = f"{under}/api/v2/jobs", set()

    def take(job: dict[str, Any]) -> None:
        found.add(job["storyboard_url"])

    for more in ({}, {"Accept-Encoding": "gzip"}, {"Prefer": "wait=0"}, {"Origin": "http://x.y"}):
        for _ in range(2):  # a miss, perhaps, and a hit
            take((await service.http.get(f"{path}/{job_id}", headers=headers | more)).json())
    version = (await service.http.get(f"{path}/{job_id}", headers=headers)).json()["version"]
    waited = {"If-None-Match": f'"{version - 1}-0"', "Prefer": "wait=1"}
    take((await service.http.get(f"{path}/{job_id}", headers=headers | waited)).json())
    for query in (f"ids={job_id}", "limit=5", "client_id=acme", "status=rendering"):
        listed = (await service.http.get(f"{path}?{query}", headers=headers)).json()
        take(next(job for job in listed["items"] if job["id"] == job_id))
    moved = await service.http.post(
        f"{path}/{job_id}/progress", json={"percent": 5}, headers=headers
    )
    take(moved.json())
    stream = await service.http.get(f"{path}/{job_id}/events", headers=headers)
    assert f'"storyboard_url":"{found.copy().pop()}"' in stream.text
    return found


@pytest.mark.parametrize("prompt", ["A cat sits.", LONG], ids=["plain", "gzip"])
async def test_each_client_is_given_its_own_links(
    start: Start, backend_environment: dict[str, str], prompt: str
) -> None:
    environment = {"JOBCACHE_STREAM_SECONDS": "0.05", **backend_environment}
    async with start(**environment) as service:
        job = await service.rendering(prompt=prompt)
        plain = f"/api/v2/jobs/{job['id']}/storyboard"
        for prefix in ("", "/video", "/other/deep", ""):
            headers = forwarded(prefix) if prefix else {}
            assert await links(service, job["id"], headers) == {prefix + plain}, prefix


@pytest.mark.parametrize("prompt", ["A cat sits.", LONG], ids=["plain", "gzip"])
async def test_the_configured_path_is_in_every_link(
    start: Start, backend_environment: dict[str, str], prompt: str
) -> None:
    environment = {"JOBCACHE_STREAM_SECONDS": "0.05", **backend_environment}
    async with start(JOBCACHE_ROOT_PATH="/video/", **environment) as service:
        job = await service.rendering(prompt=prompt)
        plain = f"/api/v2/jobs/{job['id']}/storyboard"
        for under in ("", "/video"):  # whether the proxy takes it off or not
            assert await links(service, job["id"], {}, under) == {"/video" + plain}
        assert await links(service, job["id"], forwarded("/else")) == {"/else" + plain}
        storyboard = await service.http.get(f"/video{plain}")
        assert storyboard.status_code == 200


@pytest.mark.parametrize("way", ["configured", "forwarded"])
async def test_location_page_and_document(start: Start, way: str) -> None:
    environment = {"JOBCACHE_ROOT_PATH": "/video"} if way == "configured" else {}
    headers = forwarded("/video") if way == "forwarded" else {}
    async with start(**environment) as service:
        body = {"client_id": "acme", "prompt": "A cat sits."}
        for under in ("", "/video"):
            made = await service.http.post(f"{under}/api/v2/jobs", json=body, headers=headers)
            assert made.headers["location"] == f"/video/api/v2/jobs/{made.json()['id']}"
            page = await service.http.get(f"{under}/docs", headers=headers)
            assert 'src="assets/docs.js"' in page.text, "which is relative"
            document = (await service.http.get(f"{under}/openapi.json", headers=headers)).json()
            assert document["servers"] == [{"url": "/video"}]
            for path in ("/healthz", "/readyz"):
                assert (await service.http.get(under + path, headers=headers)).status_code == 200
        if way == "forwarded":
            plain = (await service.http.get("/openapi.json")).json()
            assert "servers" not in plain, "the document is not changed for others"


@pytest.mark.parametrize("way", ["configured", "forwarded"])
@pytest.mark.parametrize("prefix", ["/api", "/api/v2", "/docs", "/assets", "/healthz"])
async def test_a_prefix_may_be_one_with_which_paths_begin(
    start: Start, way: str, prefix: str
) -> None:
    environment = {"JOBCACHE_ROOT_PATH": prefix} if way == "configured" else {}
    headers = forwarded(prefix) if way == "forwarded" else {}
    async with start(**environment) as service:
        job = await service.create()
        for under in ("", prefix):  # whether the proxy removes it or not
            path = f"{under}/api/v2/jobs/{job['id']}"
            for _ in range(2):
                response = await service.http.get(path, headers=headers)
                assert response.status_code == 200, path
                plain = f"/api/v2/jobs/{job['id']}/storyboard"
                assert response.json()["storyboard_url"] in {prefix + plain, None}
            for other in ("/docs", "/healthz", "/metrics", "/assets/docs.js"):
                response = await service.http.get(under + other, headers=headers)
                assert response.status_code == 200, under + other
            response = await service.http.get(f"{under}/api/v2/nothing", headers=headers)
            assert response.status_code == 404


async def test_the_video_of_a_finished_job(start: Start) -> None:
    async with start(JOBCACHE_SIMULATED_SECONDS="0.1") as service:
        job = await service.create()
        await service.until(job["id"], "storyboard_ready")
        await service.post(f"{job['id']}/approve")
        await service.post(f"{job['id']}/render", 202)
        done = await service.until(job["id"], "completed")
        path = f"/api/v2/jobs/{job['id']}"
        shown = (await service.http.get(path, headers=forwarded("/video"))).json()
        if done["video_url"] is not None:
            assert shown["video_url"] == f"/video{done['video_url']}"
        external = await service.rendering()
        url = "https://cdn.example.com/1.mp4"
        await service.post(f"{external['id']}/complete", video_url=url)
        path = f"/api/v2/jobs/{external['id']}"
        shown = (await service.http.get(path, headers=forwarded("/video"))).json()
        assert shown["video_url"] == url, "elsewhere is elsewhere"


def test_only_links_are_changed() -> None:
    original = b'{"prompt":"\\"storyboard_url\\":\\"/x","storyboard_url":"/api","video_url":null}'
    changed = original.replace(b'"/api"', b'"/p/api"')
    assert with_prefix(original, "/p") == changed
    assert with_prefix(original, "") is original


WRONG = [
    *("video", "//evil.example", "/a//b", "/..", "/a/../b", "/.", "https://evil.example", "/a b"),
    *(
        '/a"b',
        "/a'b",
        "/a<b",
        "/a?b",
        "/a#b",
        "/a\\b",
        "/%0d%0a",
        "/%00",
        "/a/%2e%2e",
        "/.%2E/b",
        "/%",
        "/é",
        "/" + "a" * 300,
    ),
    *("///", "/a,//b", ", /a, x"),
]


async def test_what_is_no_path_is_as_none(start: Start) -> None:
    async with start() as service:
        job = await service.rendering()
        path = f"/api/v2/jobs/{job['id']}"
        for prefix in WRONG:
            headers = {b"x-forwarded-prefix": prefix.encode("latin-1")}
            answer = await service.http.get(path, headers=headers)
            assert answer.status_code == 200, prefix
            assert answer.json()["storyboard_url"] == f"{path}/storyboard", prefix
            body = {"client_id": "acme", "prompt": "A cat sits."}
            made = await service.http.post("/api/v2/jobs", json=body, headers=headers)
            assert made.headers["location"].startswith("/api/v2/jobs/"), prefix


@pytest.mark.parametrize("prefix", ["video", "//x", "/a/../b", "/a'b", "/a b"])
def test_a_wrong_path_stops_the_start(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBCACHE_ROOT_PATH", prefix)
    with pytest.raises(SettingsError, match="JOBCACHE_ROOT_PATH"):
        settings.load()
    with pytest.raises(ValueError, match=prefix):
        read_prefix(prefix)


def test_proxies_in_a_row_and_those_that_are_not_trusted() -> None:
    def prefix(client: tuple[str, int] | None, *lines: str) -> str | None:
        headers = [(b"x-forwarded-prefix", line.encode()) for line in lines]
        return TrustedProxies("127.0.0.1").prefix({"client": client, "headers": headers})

    assert prefix(("127.0.0.1", 5), "/a/", "/b") == "/a/b"
    assert prefix(("127.0.0.1", 5), "/a, /b") == "/a/b"
    assert prefix(("127.0.0.1", 5), "/") == ""
    assert prefix(None, "/a") == "/a"
    assert prefix(("203.0.113.9", 0), "/a") == "/a", "uvicorn has trusted the proxy"
    assert prefix(("203.0.113.9", 5), "/a") is None
    assert prefix(("127.0.0.1", 5)) is None


async def test_the_short_way_knows_the_configured_path(wire: Wire) -> None:
    path, _ = await job_of(wire)
    reader, writer = await wire.connect(short=True)
    for header in ((), ("X-Forwarded-Prefix: /video",), ()):
        for _ in range(3):
            writer.write(get(path, *header))
            async with asyncio.timeout(10):
                said = await answer(reader)
            assert (b'"/video/api/' in said) is bool(header)
    writer.close()


def test_a_process_under_a_path(tmp_path: Path) -> None:
    arguments = ("serve", "--root-path", "/video")
    with serving(tmp_path, *arguments, JOBCACHE_RENDERER="simulated") as service:
        job_id = service.rendering(renderer="external")
        for path in (f"/api/v2/jobs/{job_id}", f"/video/api/v2/jobs/{job_id}"):
            for _ in range(4):
                job = service.http.get(path).json()
                assert job["storyboard_url"] == f"/video/api/v2/jobs/{job_id}/storyboard"


def test_under_uvicorn_a_trusted_proxy_is_believed(tmp_path: Path) -> None:
    with under_uvicorn(tmp_path, JOBCACHE_RENDERER="simulated") as service:
        job_id = service.rendering(renderer="external")
        for more in ({}, {"X-Forwarded-For": "203.0.113.9"}):
            answer = service.http.get(f"/api/v2/jobs/{job_id}", headers=forwarded("/video") | more)
            assert answer.json()["storyboard_url"].startswith("/video/"), more
