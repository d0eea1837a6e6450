"""The documentation site: navigation and links are complete, and the references are true."""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
CONFIGURATION: dict[str, Any] = tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))
START = "README.md"
CODE = re.compile(r"^( *)```.*?^\1```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)")


def script(name: str) -> ModuleType:
    """A module of `.ci`, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as `make docs` copies them."""
    folder = tmp_path_factory.mktemp("site") / "pages"
    script("site_pages").write(folder)
    return folder


def entries(navigation: list[dict[str, Any]]) -> Iterator[str]:
    """The pages that the navigation names, in order."""
    for each in navigation:
        for target in each.values():
            if isinstance(target, str):
                yield target
            else:
                yield from entries(target)


NAVIGATION = list(entries(CONFIGURATION["project"]["nav"]))


def links(site: Path, page: str) -> Iterator[tuple[str, str]]:
    """The links of a page to other files of the site: a path and an anchor, which may be empty."""
    for target, anchor in LINK.findall(CODE.sub("", (site / page).read_text("utf-8"))):
        path = os.path.normpath(Path(page).parent / target) if target else page
        yield path, anchor


def test_each_entry_of_the_navigation_is_a_page(site: Path) -> None:
    assert [page for page in NAVIGATION if not (site / page).is_file()] == []
    assert len(set(NAVIGATION)) == len(NAVIGATION)
    assert NAVIGATION[0] == START


def test_each_page_is_in_the_navigation(site: Path) -> None:
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.md")}
    made = {page for page in pages if not (ROOT / page).exists()}  # of programs and folders
    assert pages - made - set(NAVIGATION) == set()
    documents = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert documents <= pages
    linked = {target for page in NAVIGATION for target, _ in links(site, page)}
    assert made <= linked
    programs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").glob("*.py")}
    assert {page.removesuffix(".md") + ".py" for page in made} >= programs


def test_each_link_leads_to_a_file_of_the_site(site: Path) -> None:
    missing = [
        f"{page}: {target}"
        for path in sorted(site.rglob("*.md"))
        for page in [path.relative_to(site).as_posix()]
        for target, _ in links(site, page)
        if not (site / target).is_file()
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("question", "page", "answer"),
    [
        ("how do I poll well?", "docs/polling.md", "send the next request at once"),
        ("what is promised on redis?", "docs/promises.md", "redis, any number of processes"),
        ("which settings exist?", "docs/settings.md", "`JOBCACHE_BACKEND`"),
    ],
)
def test_an_answer_is_two_clicks_away(site: Path, question: str, page: str, answer: str) -> None:
    reached = {START}
    for _ in range(2):
        reached |= {
            target
            for each in reached
            if each.endswith(".md") and (site / each).exists()
            for target, _ in links(site, each)
        }
    assert page in reached, question
    assert answer in (site / page).read_text("utf-8"), question


def test_nothing_is_loaded_from_other_hosts(site: Path) -> None:
    project = CONFIGURATION["project"]
    assert project["theme"]["font"] is False
    assert [name for name in project["extra_css"] if not (site / name).exists()] == []
    assert "extra_javascript" not in project
    for path in site.rglob("*.md"):
        text = CODE.sub("", path.read_text("utf-8"))
        assert not re.search(r"!\[[^]]*\]\(\w+:|<(?:img|script|iframe|link)\b", text), path
        # The theme would load the library for such a picture.
        assert "```mermaid" not in path.read_text("utf-8"), path


def test_the_site_is_built_outside_of_what_git_sees() -> None:
    ignored = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    for setting in ("docs_dir", "site_dir"):
        assert f"/{CONFIGURATION['project'][setting].partition('/')[0]}/" in ignored


def test_the_reference_of_the_http_api_is_the_openapi_document() -> None:
    http_api = script("http_api")
    page = (ROOT / "docs" / "http-api.md").read_text("utf-8")
    assert page.endswith("\n" + http_api.tables(http_api.document())), "run make http-api"


def test_the_pictures_are_those_that_the_script_draws() -> None:
    pictures = script("pictures")
    page = (ROOT / "docs" / "coherence.md").read_text("utf-8")
    for name, picture in pictures.PICTURES.items():
        image = f"images/{name}.svg"
        drawn = pictures.drawn(picture)
        assert (ROOT / "docs" / image).read_text("utf-8") == drawn, "run make pictures"
        (shown,) = re.findall(rf"!\[(.*)\]\({image}\)", page)
        said = re.sub(r"\W+", " ", shown)
        assert [word for word in ("40", "50") if word in drawn and word not in said] == []


def documented() -> list[str]:
    """The modules, classes and functions that the reference of Python shows."""
    text = "\n".join(path.read_text("utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))
    return re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)


def test_each_name_in_the_reference_of_python_exists() -> None:
    names = documented()
    assert len(set(names)) == len(names) > 30
    for name in names:
        pkgutil.resolve_name(name)


@pytest.mark.parametrize(
    "package",
    [
        "jobcache",
        "jobcache.client",
        "jobcache.http.fastapi",
        "jobcache.orm.sqlalchemy",
        "jobcache.sync",
        "jobcache.testing.simulation",
    ],
)
def test_the_reference_of_python_has_all_that_a_package_exports(package: str) -> None:
    names = set(documented())
    exporting = importlib.import_module(package)
    missing = []
    for name in exporting.__all__:
        exported = getattr(exporting, name)
        module = getattr(exported, "__module__", package)  # numbers and tables have none
        if callable(exported) and not {f"{package}.{name}", module} & names:
            missing.append(name)
    assert missing == []
