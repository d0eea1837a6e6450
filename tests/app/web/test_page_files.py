"""The files of the pages: strict headers, no other hosts, no key, and any path in front."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.web import routes
from tests.app.keyed import keyed
from tests.app.running import Start

ASSETS = Path(routes.__file__).parent / "assets"
PAGES = {"/": "index.html", "/docs": "docs.html", "/redoc": "redoc.html"}
FILES = [f"/assets/{name}" for name in sorted(routes._OWN | routes._PACKAGED)]
LINK = re.compile(r"""(?:href|src|spec-url|url)(?:=|: )"([^"]*)"|from "([^"]*)"|fetch\("([^"]*)""")


@pytest.mark.parametrize("root_path", ["", "/video"])
async def test_pages_and_their_files_need_no_key(
    start: Start, tmp_path: Path, root_path: str
) -> None:
    async with keyed(start, tmp_path / "keys", JOBCACHE_ROOT_PATH=root_path) as access:
        for path in [*PAGES, *FILES]:
            for under in {"", root_path}:
                for caller in ("none", "wrong", "own"):
                    response = await access.call(caller, "GET", under + path)
                    assert response.status_code == 200, (caller, under + path)
                    policy = response.headers["content-security-policy"]
                    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
                    assert ("unsafe" in policy) is (path in {"/docs", "/redoc"})
                    assert "unsafe" not in policy.partition("style-src")[0]
                    assert response.headers["x-content-type-options"] == "nosniff"
                tag = {"If-None-Match": response.headers["etag"]}
                again = await access.call("none", "GET", under + path, headers=tag)
                assert (again.status_code, again.content) == (304, b"")


async def test_other_names_are_no_files(start: Start) -> None:
    async with start() as service:
        for name in ("index.html", "core.py", "favicon.png", "..%2froutes.py", "%2e%2e", "%00", ""):
            response = await service.http.get(f"/assets/{name}")
            assert response.status_code == 404, name
            assert response.headers["content-type"] == "application/problem+json"


def test_own_files_name_no_other_host_and_no_path_of_this_one() -> None:
    """So nothing is loaded from elsewhere, and a proxy may serve the pages under a path."""
    names = set()
    for file in ASSETS.iterdir():
        text = file.read_text("utf-8")
        hosts = set(re.findall(r"https?://[^\s\"'`)]+", text))
        assert hosts <= {"http://www.w3.org/2000/svg"}, file.name
        for found in LINK.finditer(text):
            (target,) = filter(None, found.groups())
            assert not target.startswith("/"), file.name
            names.add(target.rpartition("/")[2])
    linked = {name for name in names if "." in name and name != "openapi.json"}
    assert linked == routes._OWN | routes._PACKAGED, "each file is used, and each link leads to one"


def test_own_files_have_no_inline_code() -> None:
    for page in PAGES.values():
        text = (ASSETS / page).read_text("utf-8")
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|javascript:", text)
