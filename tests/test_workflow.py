"""The workflow of the public forge: its commands and versions are those of the project."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
ACTION = ROOT / ".github" / "actions" / "prepare" / "action.yml"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def parsed(path: Path) -> Any:
    # YAML 1.1 takes the key `on` for true; as text it is what the forge reads.
    return yaml.load(path.read_text("utf-8"), yaml.BaseLoader)  # noqa: S506 - makes texts only


JOBS: dict[str, Any] = parsed(WORKFLOW)["jobs"]


def combinations(job: dict[str, Any]) -> list[dict[str, str]]:
    """The values of a job's matrix, one dictionary for each of its runs."""
    matrix = job.get("strategy", {}).get("matrix", {})
    runs: list[dict[str, str]] = [{}]
    for name, values in matrix.items():
        if name != "include":
            runs = [{**run, name: value} for run in runs for value in values]
    return matrix.get("include", runs)


def filled(text: str, values: dict[str, str]) -> str:
    """A text with the values of the matrix in it."""
    return re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda found: values[found[1]], text)


def commands() -> Iterator[str]:
    for job in JOBS.values():
        for values in combinations(job):
            yield from (filled(step["run"], values) for step in job["steps"] if "run" in step)


def pythons(*names: str) -> set[str]:
    """The versions of Python that jobs ask for."""
    return {
        filled(step["with"]["python"], values)
        for name in names
        for values in combinations(JOBS[name])
        for step in JOBS[name]["steps"]
        if "python" in step.get("with", {})
    }


def test_each_command_is_a_target_of_make() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*##", makefile, re.MULTILINE))
    run = [shlex.split(command) for command in commands()]
    assert {words[0] for words in run} == {"make"}
    used = {words[1] for words in run}
    assert used <= targets
    assert {"check", "docs", "test", "test-lowest", "test-newest"} <= used


def test_the_tests_run_on_each_python_and_system_that_the_project_names() -> None:
    classified = {
        classifier.rpartition(" ")[2]
        for classifier in PROJECT["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", classifier)
    }
    assert pythons("test") == classified
    lowest, newest = sorted(classified, key=lambda text: int(text[2:]))[:: len(classified) - 1]
    assert PROJECT["requires-python"] == f">={lowest}"
    assert pythons("dependencies") == {lowest, newest}
    assert pythons(*JOBS) == classified
    readme = (ROOT / "README.md").read_text("utf-8")
    assert f"Python {lowest} to {newest} on Linux and macOS." in readme
    assert {values["os"] for values in combinations(JOBS["test"])} == {
        "ubuntu-latest",
        "macos-latest",
    }


def test_long_checks_run_every_night() -> None:
    assert parsed(WORKFLOW)["on"]["schedule"]
    assert "schedule" in JOBS["nightly"]["if"]
    assert {"make test-long", "make freshness"} <= set(commands())


def test_it_installs_the_programs_that_the_tests_start() -> None:
    programs = re.search(r"^for program in (.*); do$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert programs is not None
    action = ACTION.read_text("utf-8")
    assert [name for name in programs[1].split() if name not in action] == []


@pytest.mark.parametrize("path", [WORKFLOW, ACTION], ids=lambda path: path.name)
def test_it_has_no_secrets_and_may_only_read(path: Path) -> None:
    text = path.read_text("utf-8")
    assert "secrets." not in text
    if path == WORKFLOW:
        assert parsed(path)["permissions"] == {"contents": "read"}
