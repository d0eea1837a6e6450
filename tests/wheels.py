"""The project's wheel, and environments in which it is installed without a network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def build_wheel(directory: Path) -> Path:
    """Build the project's wheel from a copy: the build leaves files beside its sources."""
    source, built = directory / "source", directory / "built"
    for folder in ("jobcache", "app", "benchmarks", "loadtests", "examples"):
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "results")
        )
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    run_pip("wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", built, source)
    (found,) = built.iterdir()
    return found


def install(environment: Path, wheel: Path, extras: str = "", others: Iterable[str] = ()) -> None:
    """Install the wheel with extras, and other packages, into an environment.

    What they need is packed from the environment of the tests, so nothing is downloaded.
    """
    packed = environment / "packed"
    packed.mkdir()
    wanted = [Requirement(_with(extras)), *map(Requirement, others)]
    for name in sorted(_needed(wanted) - {"jobcache"}):
        _pack(distribution(name), packed)
    offline = ("--no-index", "--find-links", packed)
    target = f"{_with(extras)} @ {wheel.as_uri()}"
    run_pip("--python", environment, "install", "--no-compile", *offline, target, *others)


def _with(extras: str) -> str:
    return f"jobcache[{extras}]" if extras else "jobcache"


def run_pip(*arguments: str | Path) -> None:
    """Run pip without the settings of this machine, and without the checkout on its path."""
    result = subprocess.run(
        [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", *arguments],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def _needed(wanted: Iterable[Requirement]) -> set[str]:
    """Return the names of all distributions that these requirements lead to."""
    found: dict[str, set[str]] = {}
    waiting = list(wanted)
    while waiting:
        requirement = waiting.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        extras = {*requirement.extras, ""}
        new = extras - found.setdefault(name, set())
        found[name] |= new
        for text in distribution(name).requires or [] if new else []:
            one = Requirement(text)
            if one.marker is None or any(one.marker.evaluate({"extra": each}) for each in new):
                waiting.append(one)
    return set(found)


def _pack(installed: Distribution, directory: Path) -> None:
    """Make a wheel of an installed distribution."""
    name = installed.name.replace("-", "_")
    with ZipFile(directory / f"{name}-{installed.version}-py3-none-any.whl", "w") as archive:
        for file in installed.files or []:
            if ".." not in file.parts and file.suffix != ".pyc":
                archive.write(str(file.locate()), str(file))
