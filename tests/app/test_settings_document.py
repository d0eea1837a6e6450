"""`docs/settings.md` lists every setting that the code reads, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app import settings
from app.settings import Settings
from jobcache import CacheSettings

ROOT = Path(__file__).parents[2]
NAME = r"JOBCACHE_[A-Z_]*[A-Z]|(?:DATABASE|REDIS)_[A-Z_]*[A-Z]|FORWARDED_ALLOW_IPS"
NOT_OF_THE_SERVICE = {"JOBCACHE_KEY"}  # of the example client


def rows() -> dict[str, tuple[str, str, str]]:
    """Meaning, unit and default in the document, by variable."""
    found = {}
    text = (ROOT / "docs" / "settings.md").read_text()
    for line in text.partition("\n## Renamed")[0].splitlines():
        if line.startswith("| `"):
            variable, meaning, unit, default = (cell.strip() for cell in line.strip("|").split("|"))
            name = variable.strip("`")
            assert name not in found, f"{name} is listed twice"
            found[name] = (meaning, unit, default.strip("`"))
    return found


def test_every_field_is_documented_with_its_default() -> None:
    documented = {name: default for name, (_, _, default) in rows().items()}
    declared = {
        str(field.validation_alias): str(field.default)
        for name, field in Settings.model_fields.items()
        if name != "cache"
    } | {each.variable: str(each.default) for each in CacheSettings.listed()}
    shown = {"None": "", "False": "0", "True": "1"}
    expected = {
        name: shown.get(default, default.removesuffix(".0")) for name, default in declared.items()
    }
    assert documented == expected, "run `make settings`"


def test_the_tables_are_what_the_code_says() -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    tables = text[text.index("\n## Service") + 1 :]
    assert tables == settings.document(), "run `make settings`"


def test_every_setting_has_a_topic_and_a_meaning() -> None:
    for each in settings.listed():
        assert each.topic in settings.TOPICS, each.variable
        assert each.meaning.endswith("."), each.variable
        assert "|" not in each.meaning, each.variable


@pytest.mark.parametrize("package", ["app", "jobcache", "examples"])
def test_every_variable_that_the_code_names_is_documented(package: str) -> None:
    named = {
        name
        for path in (ROOT / package).rglob("*.py")
        for name in re.findall(rf"""["']({NAME})["'=]""", path.read_text())
    }
    assert named - set(rows()) <= NOT_OF_THE_SERVICE | set(settings.RENAMED_VARIABLES)


def test_every_variable_that_a_document_names_exists() -> None:
    pages = [*ROOT.glob("docs/*.md"), *ROOT.glob("*.md"), *ROOT.glob("*/README.md")]
    named = {name for page in pages for name in re.findall(NAME, page.read_text())}
    old = set(settings.RENAMED_VARIABLES)
    assert named - set(rows()) <= NOT_OF_THE_SERVICE | {"DATABASE_URL"} | old
