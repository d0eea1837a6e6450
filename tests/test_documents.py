"""The documents are true: their code and commands run, their links lead somewhere, names exist."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import av
import pytest
import yaml

from app.db.url import read_postgres_url
from app.devservers.memcached import MemcachedServer
from jobcache import CacheSettings
from jobcache.testing.simulation.__main__ import main as explore
from tests.app.process import clean_environment, serving

ROOT = Path(__file__).parent.parent
PAGES = [
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "benchmarks/README.md", "loadtests/README.md")
    for path in sorted(ROOT.glob(pattern))
]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A block of code in a page."""

    page: str
    language: str
    code: str


def all_blocks(page: str) -> list[Block]:
    found = BLOCK.findall((ROOT / page).read_text())
    return [Block(page, language, textwrap.dedent(code)) for _, language, code in found]


def blocks(page: str, language: str) -> list[str]:
    """The blocks of one language in a page, in order."""
    return [block.code for block in all_blocks(page) if block.language == language]


# --- programs ---

TESTED_ELSEWHERE = {
    ("docs/polling.md", 0): "tests/test_documents.py",
    ("docs/backends.md", 0): "tests/jobcache/backends/test_sql_example.py",
    ("docs/backends.md", 1): "tests/jobcache/backends/test_sql_example.py",
    ("docs/backends.md", 2): "tests/jobcache/backends/test_sql_example.py",
    ("docs/backends.md", 3): "tests/jobcache/backends/test_sql_example.py",
    **{("docs/client.md", at): "tests/jobcache/client/test_client_document.py" for at in range(4)},
    ("docs/embedding.md", 1): "tests/jobcache/test_load_sessions.py",
    ("docs/embedding.md", 2): "tests/jobcache/test_savepoints.py",
    ("docs/embedding.md", 3): "tests/jobcache/test_savepoints.py",
    ("docs/embedding.md", 4): "tests/jobcache/test_writing.py",
    ("docs/sqlalchemy.md", 1): "tests/jobcache/orm/test_triggers.py",
    **{("docs/workers.md", at): "tests/test_workers_document.py" for at in range(4)},
}
"""Code that needs a service or a database, by page and index, and the test that runs it."""


def test_every_program_runs_as_it_stands(tmp_path: Path) -> None:
    """The programs of a page run in one process, in order, and print the text that follows them."""
    running = {}
    for page in PAGES:
        programs, printed, index, before = [], "", 0, False
        for block in all_blocks(page):
            runs = block.language == "python" and (page, index) not in TESTED_ELSEWHERE
            if runs:
                programs.append(block.code)
            elif block.language == "text" and before:
                printed += block.code
            index += block.language == "python"
            before = runs
        if programs:
            process = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", "\n".join(programs)],
                cwd=tmp_path,
                env=clean_environment() | {"PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            running[page] = process, printed
    assert {"README.md", "docs/embedding.md"} <= set(running)
    for page, (process, printed) in running.items():
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, f"{page}: {errors}"
        if printed:
            assert output == printed, page


def test_code_that_is_tested_elsewhere_is() -> None:
    for (page, index), test in TESTED_ELSEWHERE.items():
        source = (ROOT / test).read_text()
        assert re.search(rf'blocks\("{page}", "python"\)(\[{index}\])?', source), page


def test_the_polling_example_follows_a_job_to_its_end(tmp_path: Path) -> None:
    (program,) = blocks("docs/polling.md", "python")
    assert "http://127.0.0.1:8000" in program
    simulated = {"JOBCACHE_RENDERER": "simulated", "JOBCACHE_SIMULATED_SECONDS": "1"}
    with serving(tmp_path, measured=False, **simulated) as service:
        result = subprocess.run(
            [
                *(sys.executable, "-W", "error", "-c"),
                program.replace("http://127.0.0.1:8000", service.url),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    assert re.fullmatch(r"(rendering \d+ %\n)+completed 100 %\ncompleted\n", result.stdout)


# --- commands ---


def video(page: str = "README.md") -> str:
    (script,) = (code for code in blocks(page, "sh") if "video.mp4" in code)
    return script


def test_the_lines_of_the_readme_make_a_video(tmp_path: Path) -> None:
    script = video()
    with serving(tmp_path, "dev") as service:
        assert "api=http://127.0.0.1:8000\n" in script
        script = script.replace("http://127.0.0.1:8000", service.url)
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=240,  # it renders a video, also on a busy machine
            check=True,
        )
    seen = [float(percent) for percent in re.findall(r'"percent":([\d.]+)', result.stderr)]
    assert seen == sorted(seen)
    assert len(set(seen)) > 2, f"progress was seen moving: {seen}"
    assert seen[-1] == 100
    assert re.search(r"^cache-status: jobcache; hit;", result.stdout, re.MULTILINE)
    assert '"message":"Cache is working normally"' in result.stdout
    with av.open(str(tmp_path / "video.mp4")) as film:
        stream = film.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert sum(1 for _ in film.decode(stream)) == stream.frames > 100


def test_the_lines_about_keys_make_keys(tmp_path: Path) -> None:
    (script,) = blocks("docs/access.md", "sh")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=clean_environment() | {"PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    *_, operator, worker, client = (line.split() for line in result.stdout.splitlines())
    assert [operator[1], worker[1], client[1], client[3]] == [
        "operator",
        "worker",
        "client",
        "acme",
    ]
    kept = (tmp_path / "keys.txt").read_text()
    assert (operator[0] in kept, worker[0] in kept, client[0] in kept) == (True, True, False)


def commands() -> list[tuple[str, list[str]]]:
    """Every command of the documents, with its page, but for the two scripts that run above."""
    found = []
    for page in PAGES:
        scripts = [code for code in blocks(page, "sh") if "keys add" not in code]
        lines = [
            line
            for code in scripts
            if "video.mp4" not in code
            for line in code.replace("\\\n", " ").splitlines()
        ]
        text = BLOCK.sub("", (ROOT / page).read_text())
        lines += re.findall(r"`((?:make|python -m|\.ci/run)\b[^`]*)`", text)
        found += [(page, words) for line in lines if (words := shlex.split(line, comments=True))]
    return found


TRIES = """
import argparse, contextlib, io, json, runpy, sys

class Parsed(Exception): pass

def parse(parser, args=None, namespace=None, original=argparse.ArgumentParser.parse_args):
    original(parser, args, namespace)
    raise Parsed

argparse.ArgumentParser.parse_args = parse
for module, *arguments in json.load(sys.stdin):
    sys.argv = [module, *arguments]
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Parsed:
        continue
    except SystemExit as exit:
        if exit.code == 0:
            continue  # --help
    print(module, *arguments, errors.getvalue())
"""
"""Starts modules, each only until it has understood its arguments, and prints those that fail."""


def understood(modules: list[list[str]]) -> str:
    """What modules say that do not take their arguments."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TRIES],
        input=json.dumps(modules),
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return result.stdout


def refused_by_locust(commands: list[list[str]]) -> str:
    """What Locust says if it does not take these arguments: it only lists its users."""
    words = [word for command in commands for word in command]
    result = subprocess.run(
        [sys.executable, "-m", "locust", *words, "--processes", "0", "--list"],
        cwd=ROOT,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return result.stderr if result.returncode else ""


def made_by(words: list[str]) -> list[list[str]]:
    """The project's modules that a make command starts, with their arguments."""
    # The variables of a make that runs these tests, such as ARGS, are not those of the command.
    outside = {"MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "ARGS"}
    recipe = subprocess.run(
        ["make", "--dry-run", "--always-make", *words],
        cwd=ROOT,
        env={name: text for name, text in clean_environment().items() if name not in outside},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [
        arguments
        for line in recipe.splitlines()
        if (at := re.search(r"bin/python -m ((?:app|benchmarks|loadtests|jobcache)\b.*)", line))
        for arguments in [shlex.split(at[1].partition(">>")[0])]
    ]


def installs(words: list[str]) -> bool:
    """Whether `pip install` names this project, and extras that it has."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for word in words:
        asked = re.fullmatch(r"(?:\.|jobcache)(?:\[(.*)\])?", word)
        if asked is not None:
            return set((asked[1] or "").split(",")) - {""} <= set(extras)
    return False


def served(words: list[str]) -> bool:
    """Whether the test of other servers starts this one, with the same application."""
    source = (ROOT / "tests/app/test_servers.py").read_text()
    return words[0] in source and (words[-1] in source or (ROOT / words[-1]).exists())


def assigned(words: list[str]) -> bool:
    """Whether each variable is a setting, and its URL can be used."""
    from sqlalchemy import make_url  # noqa: PLC0415 - only here

    settings = (ROOT / "docs/settings.md").read_text()
    for word in words:
        name, _, value = word.partition("=")
        assert f"| `{name}` |" in settings, name
        if value.startswith("postgresql"):
            read_postgres_url(make_url(value))
        elif name in {"MEMCACHED_URL", "REDIS_URL"}:
            CacheSettings.from_environment({name: value})
    return True


def benchmarked(words: list[str]) -> bool:
    """Whether the test of pytest-benchmark uses these options, and the paths exist."""
    source = (ROOT / "tests/measurement/test_pytest_benchmark.py").read_text()
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    paths = {word for word in words[1:] if not word.startswith("--")}
    return all(option in source for option in options) and all(
        (ROOT / path).exists() for path in paths
    )


def queued(words: list[str]) -> bool:
    """Whether this starts workers that a test starts, too, with modules or queues of the page."""
    modules = {"app.worker"}
    for code in blocks("docs/workers.md", "python"):
        modules.add(code.splitlines()[0].removeprefix("# ").removesuffix(".py"))
    return bool(modules & set(words))


NOT_RUN: dict[str, Callable[[list[str]], bool]] = {
    "pip": installs,  # needs a network; a test installs the wheel
    "uvicorn": served,  # `tests/app/test_servers.py` starts all three
    "fastapi": served,
    "gunicorn": served,
    "celery": queued,  # `tests/app/test_celery_workers.py` and `tests/test_workers_document.py`
    "rq": queued,
    "dramatiq": queued,
    "pytest": benchmarked,
    ".ci/run": lambda words: (ROOT / words[0]).exists(),  # is `make check` and `make test`
}
"""Commands that are not run here, and what is checked instead."""


def test_every_command_is_understood() -> None:
    seen: set[tuple[str, ...]] = set()
    modules: list[list[str]] = []
    of_locust: list[list[str]] = []
    for page, words in commands():
        if tuple(words) in seen:
            continue
        seen.add(tuple(words))
        program = words[0]
        if program == "make":
            modules += made_by(words[1:])
        elif words[:2] == ["python", "-m"]:
            modules.append(words[2:])
        elif program == "locust":
            of_locust.append(words[1:])
        elif re.fullmatch(r"[A-Z_]+=.*", program):
            assert assigned(words), f"{page}: {words}"
        else:
            assert program in NOT_RUN, f"{page}: nothing checks {shlex.join(words)}"
            assert NOT_RUN[program](words), f"{page}: {shlex.join(words)}"
    assert len(modules) > 20
    assert understood(modules) == ""
    assert of_locust
    assert refused_by_locust(of_locust) == ""


def test_the_explorers_commands_run(
    redis_url: str, memcached_server: MemcachedServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "jobcache")  # the command changes it, too
    urls = {
        "redis://localhost:6379": redis_url,
        "memcached://127.0.0.1:11211": memcached_server.url,
    }
    module = ["python", "-m", "jobcache.testing.simulation"]
    found = [words[3:] for _, words in commands() if words[:3] == module]
    assert set(urls) <= {word for words in found for word in words}
    for words in found:
        assert explore([*(urls.get(word, word) for word in words), "--runs", "10"]) == 0


def test_a_command_with_an_unknown_argument_is_found() -> None:
    by_hand = ["app", "serve", "--nothing"]
    said = understood([by_hand, *made_by(["bench", "ARGS=--nothing"])]).partition("benchmarks ")
    assert all("--nothing" in part for part in (said[0], said[2]))
    assert "--nothing" in refused_by_locust([["-f", "loadtests/locustfile.py", "--nothing"]])
    assert "nothing.py" in refused_by_locust([["-f", "loadtests/nothing.py"]])


def test_make_run_starts_the_service() -> None:
    assert made_by(["run", "BACKEND=redis", "DATABASE=postgres"]) == [
        ["app", "dev", "--backend", "redis", "--database", "postgres"]
    ]


# --- everything else ---


RUN_BY_OTHER_TESTS = {
    "sql": "docs/sqlalchemy.md",  # tests/jobcache/orm/test_triggers.py
    "console": "docs/quickstart.md",  # tests/test_quickstart.py
}


PARSERS: dict[str, Callable[[str], object]] = {
    "toml": tomllib.loads,
    "json": json.loads,
    "yaml": yaml.safe_load,
}


@pytest.mark.parametrize("page", PAGES)
def test_every_block_has_a_language_and_can_be_parsed(page: str) -> None:
    for block in all_blocks(page):
        match block.language:
            case "toml" | "json" | "yaml":
                PARSERS[block.language](block.code)
            case "python":
                compile(block.code, page, "exec")
            case "sh":
                subprocess.run(["bash", "-n"], input=block.code, text=True, check=True)
            case "nginx":
                assert block.code.count("{") == block.code.count("}")
                for line in block.code.splitlines():
                    assert re.search(r"[;{}]$", line), line
            case "sql" | "console":
                assert page == RUN_BY_OTHER_TESTS[block.language]
            case "text":
                pass
            case language:
                raise AssertionError(f"{page}: a block of {language or 'no language'}")


@pytest.mark.parametrize("document", ["docs/promises.md", "docs/pitfalls.md"])
def test_every_test_that_a_document_names_exists_where_it_says(document: str) -> None:
    named = 0
    for line in (ROOT / document).read_text().splitlines():
        source = ""
        for name in re.findall(r"\btest_\w+(?:\.py)?\b", line):
            if name.endswith(".py"):
                (path,) = (ROOT / "tests").rglob(name)
                source = path.read_text()
            else:
                assert f"def {name}(" in source, line
                named += 1
    assert named > 8


@pytest.mark.parametrize("page", PAGES)
def test_paths_links_and_names_in_the_documents_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    missing = []
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", text):
        path = (ROOT / page).parent / target if target else ROOT / page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            missing.append(f"{target}#{anchor}")
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    paths = re.findall(
        r"`((?:jobcache|app|tests|docs|benchmarks|loadtests|examples)/[\w./]*\w/?)`", text
    )
    missing += [
        path
        for path in paths
        if not (ROOT / path).exists() and f"/{path.rstrip('/')}/" not in ignored
    ]
    missing += [
        name
        for name in re.findall(
            r"`((?:jobcache|app|benchmarks|loadtests)(?:\.\w+)+)(?:\(.*?)?`", text
        )
        if not resolves(name)
    ]
    assert missing == []


def test_contributing_names_every_package_and_module_of_the_first_level() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    unnamed = [
        path.relative_to(ROOT).as_posix()
        for package in ("jobcache", "app")
        for path in sorted((ROOT / package).iterdir())
        if path.suffix == ".py" or (path / "__init__.py").exists()
        if not path.name.startswith("__")
        if f"`{path.relative_to(ROOT).as_posix()}" not in text
    ]
    assert unnamed == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False
