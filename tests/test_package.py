"""The wheel: installed in an empty environment, it brings the library and its dependency only."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterable
from importlib.metadata import packages_distributions, version
from pathlib import Path
from zipfile import ZipFile

import pytest

import jobcache
from tests.wheels import install

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
DEPENDENCIES = {
    re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in PROJECT["dependencies"]
}


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """An environment with a package `app` of its user's, in which the wheel was installed."""
    directory = tmp_path_factory.mktemp("user")
    venv.create(directory, with_pip=False)
    app = site_packages(directory) / "app"
    app.mkdir()
    (app / "__init__.py").write_text("OWNER = 'the user'\n")
    install(directory, wheel)
    return directory


def site_packages(environment: Path) -> Path:
    (found,) = environment.glob("lib/python*/site-packages")
    return found


def run_python(environment: Path, program: str) -> str:
    """Run a program in the environment, and in it alone."""
    return subprocess.run(
        [environment / "bin" / "python", "-I", "-W", "error", "-c", program],
        cwd=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


def test_an_empty_environment_holds_the_library_and_its_dependency_only(user: Path) -> None:
    names = {path.name for path in site_packages(user).iterdir()}
    infos = {f"jobcache-{jobcache.__version__}.dist-info"} | {
        f"{name}-{version(name)}.dist-info" for name in DEPENDENCIES
    }
    assert names == {"jobcache", "app", *DEPENDENCIES, *infos}


def test_a_package_of_the_user_named_app_is_untouched(user: Path) -> None:
    app = site_packages(user) / "app"
    assert [path.name for path in app.iterdir()] == ["__init__.py"]
    assert run_python(user, "import app; print(app.OWNER)") == "the user\n"


LOADED = """
import sys
before = set(sys.modules)
import jobcache
loaded = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
"""


def test_importing_the_library_loads_no_other_third_party_package(user: Path) -> None:
    found, *loaded = run_python(user, f"{LOADED}print(jobcache.__version__, *loaded)").split()
    assert found == jobcache.__version__
    assert {"jobcache"} <= set(loaded) <= {"jobcache", *DEPENDENCIES}


def test_importing_the_library_loads_no_extra_that_is_installed() -> None:
    program = f"{LOADED}print(*loaded)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert set(result.stdout.split()) <= {"jobcache", *DEPENDENCIES}


def test_an_example_runs_where_only_the_wheel_is_installed(user: Path) -> None:
    printed = run_python(user, (ROOT / "examples" / "embedded.py").read_text("utf-8"))
    assert "hit rate" in printed


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    assert "jobcache/py.typed" in names
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "jobcache").rglob("*.lua")}
    assert sources
    assert sources <= set(names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert "License-Expression: MIT\n" in text
    assert "Author: the jobcache authors\n" in text
    for extra in ("client", "memcached", "redis"):
        assert f"Provides-Extra: {extra}\n" in text


@pytest.mark.parametrize(
    ("backend", "extra"), [("memcached", "memcached"), ("redis", "redis"), ("tiered", "redis")]
)
def test_a_missing_extra_is_named(user: Path, backend: str, extra: str) -> None:
    program = f"""
from jobcache import CacheSettings, SettingsError
from jobcache.backends.registry import make_backend
try:
    make_backend(CacheSettings(backend="{backend}"))
except SettingsError as error:
    print(error)
"""
    assert f"pip install 'jobcache[{extra}]'" in run_python(user, program)


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("jobcache.client", "client"),
        ("jobcache.backends.memcached", "memcached"),
        ("jobcache.backends.redis", "redis"),
        ("jobcache.backends.redis.url", "redis"),
        ("jobcache.observability.prometheus", "prometheus"),
        ("jobcache.observability.opentelemetry", "opentelemetry"),
    ],
)
def test_a_module_that_needs_an_extra_names_it(user: Path, module: str, extra: str) -> None:
    program = f"""
try:
    import {module}
except ImportError as error:
    print(error)
"""
    assert f"pip install 'jobcache[{extra}]'" in run_python(user, program)


def test_a_url_that_needs_an_extra_names_it(user: Path) -> None:
    program = """
from jobcache import JobCache, SettingsError
try:
    JobCache.from_url("redis://127.0.0.1")
except SettingsError as error:
    print(error)
"""
    assert "pip install 'jobcache[redis]'" in run_python(user, program)


def imported(*folders: str) -> set[str]:
    """Return the third-party packages that modules in these folders of the project import."""
    names = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(str(node.module).partition(".")[0])
    return names - sys.stdlib_module_names - {"app", "jobcache"}


def required(extras: Iterable[str]) -> set[str]:
    """Return the names of the distributions that the project and some of its extras require."""
    listed = [PROJECT["optional-dependencies"][extra] for extra in extras]
    return {
        re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()
        for requirement in [*PROJECT["dependencies"], *itertools.chain(*listed)]
    }


@pytest.mark.parametrize(
    ("target", "only_with_servers"), [("runs", {"pymemcache", "redis"}), ("runs-all", set())]
)
def test_what_make_run_installs_has_all_that_the_service_imports(
    target: str, only_with_servers: set[str]
) -> None:
    recipe = re.search(rf"/{target}: EXTRAS := (\S+)", (ROOT / "Makefile").read_text("utf-8"))
    assert recipe is not None
    installed = required(recipe[1].split(","))
    # uvicorn and redis-py bring these; the optional ones are looked for and not needed, and only
    # the client imports httpx.
    indirect = {"h11", "hiredis"}
    optional = {"celery", "django", "gevent", "httpx", "kombu", "msgspec", "opentelemetry", "rich"}
    optional |= only_with_servers
    providers = packages_distributions()
    lacking = {
        name
        for name in imported("app", "jobcache") - indirect - optional
        if not installed
        & {provider.lower().replace("_", "-") for provider in providers.get(name, [])}
    }
    assert lacking == set()
    assert installed.isdisjoint({"locust", "mypy", "pytest"})
