"""Entity tags as proxies change them still say what the client has."""

from __future__ import annotations

import pytest

from tests.app.running import Service
from tests.jobcache.http.tag_spellings import spellings


async def test_a_poll_with_a_changed_tag_is_answered_without_a_body(service: Service) -> None:
    job = await service.rendering()
    url = f"/api/v2/jobs/{job['id']}"
    tag = (await service.http.get(url)).headers["etag"]
    for spelling in spellings(tag):
        for headers in (
            [("If-None-Match", spelling)],
            [("If-None-Match", f'"1-0", {spelling}')],
            [("If-None-Match", '"1-0"'), ("If-None-Match", spelling)],
            [("If-None-Match", spelling), ("Prefer", "x=y")],
        ):
            for method in ("GET", "HEAD"):
                answer = await service.http.request(method, url, headers=headers)
                assert answer.status_code == 304, (method, headers)
                assert answer.headers["etag"] == tag
    storyboard = await service.http.get(f"{url}/storyboard")
    for spelling in spellings(storyboard.headers["etag"]):
        again = await service.http.get(f"{url}/storyboard", headers={"If-None-Match": spelling})
        assert again.status_code == 304, spelling


@pytest.mark.parametrize("backend_environment", ["memory"], indirect=True)
async def test_a_changed_tag_is_held_and_its_version_is_the_least(service: Service) -> None:
    job = await service.rendering()
    url = f"/api/v2/jobs/{job['id']}"
    version = (await service.job(job["id"]))["version"]
    for spelling in spellings(f'"{version}-0"'):
        headers = {"If-None-Match": spelling, "Prefer": "wait=0"}
        answer = await service.http.get(url, headers=headers)
        assert answer.headers["preference-applied"] == "wait=0", spelling
    before = (await service.stats())["database"]["purposes"].get("load", 0)
    for suffix in ("", "-gzip"):
        newer = {"If-None-Match": f'"{version + 5}-0{suffix}"'}
        assert (await service.http.get(url, headers=newer)).status_code == 200
    after = (await service.stats())["database"]["purposes"].get("load", 0)
    assert after - before == 2, "the cache has nothing so new: the database is asked"
