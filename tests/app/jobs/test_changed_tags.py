"""Entity tags as proxies change them still say what the client has."""

from __future__ import annotations

import time

import pytest

from jobcache.http.conditional_get import conditions, holds, listed_tags
from tests.app.running import Service

SUFFIXES = ["-gzip", "--gzip", ";gzip", "-br", "-zstd", ";gz", "-GZIP", "-deflate", "-gzip-br"]


def spellings(tag: str) -> list[str]:
    """What becomes of a tag on its way to the client and back."""
    inside = [f"{tag[:-1]}{suffix}{tag[-1]}" for suffix in SUFFIXES]
    changed = [tag, *inside, *(tag + suffix for suffix in SUFFIXES)]
    return [*changed, *("W/" + each for each in changed), f"w/{tag}"]


@pytest.mark.parametrize("spelling", spellings('"7-0"'))
def test_every_spelling_is_read(spelling: str) -> None:
    for text in (
        spelling,
        f" {spelling} ",
        f'"other", {spelling}',
        f'{spelling},"other"',
        f'"3-0-br" ,{spelling} , W/"2-1"',
        f"rubbish, {spelling}",
    ):
        assert (7, 0) in conditions(text).tags, text
        assert conditions(text).min_version == 7, text


@pytest.mark.parametrize(
    "text",
    [
        '"7-0-other"',
        '"7-0-"',
        '"-gzip"',
        '"7-gzip"',
        '"x7-0-gzip"',
        '"7-0 gzip"',
        '"7-0-gzip',
        "7-0-gzip",
        'X/"7-0"',
        '"7-0"x',
        '"abc"7-0"def"',
        '"\u0667-0"',
        '"7-0-gzip-gzip-gzip-gzip"',
        '"' + "7" * 17 + '-0"',
        '"9007199254740993-0-gzip"',
        "",
        ",,,",
        "*-gzip",
    ],
)
def test_what_is_no_tag_of_ours_raises_nothing(text: str) -> None:
    assert conditions(text).min_version == 0
    assert (7, 0) not in conditions(text).tags
    assert not conditions(text).any


def test_a_list_made_to_be_slow_to_read_is_not() -> None:
    began = time.perf_counter()
    for evil in (
        '"' * 16000,
        '"a,' * 5000,
        " " * 16000,
        '"1-0-gzip' * 1800,
        "," * 16000,
        "-gz" * 5000,
    ):
        listed_tags(evil)
        holds(evil, '"a"')
        holds(f'"{evil}"', '"a"')
    assert time.perf_counter() - began < 5


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


@pytest.mark.parametrize("spelling", spellings('"abc0"'))
def test_the_tag_of_a_file_is_recognised_in_every_spelling(spelling: str) -> None:
    assert holds(spelling, '"abc0"')
    assert holds(f'"x", {spelling}', '"abc0"')
    assert not holds(spelling, '"abc1"')
