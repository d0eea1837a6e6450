"""The worked example of docs/backends.md: the page shows the program, and its tests pass."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from jobcache import CacheSettings, CacheUnavailable
from tests.app.process import clean_environment
from tests.sqlite_threads import sqlite_threads_ended
from tests.test_documents import blocks

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "sql_backend.py"


def test_the_page_shows_what_the_program_is() -> None:
    source = EXAMPLE.read_text()
    backend, helpers, *_ = blocks("docs/backends.md", "python")
    assert backend in source
    assert helpers in source
    methods = backend.partition("class SqlBackend")[2].splitlines()
    assert len([line for line in methods if line.strip()]) < 50, "about forty lines"


def run(*arguments: str | Path, directory: Path) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=directory,
        env=clean_environment() | {"PYTHONPATH": f"{ROOT}:{EXAMPLE.parent}"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_tests_of_the_page_pass_without_a_plugin_for_asyncio(tmp_path: Path) -> None:
    (tests,) = (code for code in blocks("docs/backends.md", "python") if "import pytest" in code)
    (tmp_path / "test_sql.py").write_text(tests)
    # In memory, where there is such a directory: SQLite waits for the disk with each write.
    memory = Path("/dev/shm")  # noqa: S108 - a directory of its own in it
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as cells:
        options = ("-q", "-p", "no:asyncio", "-p", "no:schemathesis", f"--basetemp={cells}/pytest")
        said = run("-m", "pytest", *options, "test_sql.py", directory=tmp_path)
    assert re.search(r"\b[3-9]\d passed", said)


def test_the_program_finds_its_document_again(tmp_path: Path) -> None:
    said = run(EXAMPLE, f"sqlite+aiosqlite:///{tmp_path / 'cells.db'}", directory=tmp_path)
    assert said == 'miss: {"percent": 50}\nhit: {"percent": 50}\n'


async def test_the_factory_of_the_page_makes_the_backend_and_an_absent_database_is_unavailable(
    tmp_path: Path,
) -> None:
    from examples.sql_backend import SqlBackend  # noqa: PLC0415 - as the page's programs do

    (factory,) = (code for code in blocks("docs/backends.md", "python") if "settings" in code)
    names = {"SqlBackend": SqlBackend}
    exec(factory, names)  # noqa: S102 - the page's own program
    made = names["from_settings"](CacheSettings())
    await made.aclose()
    backend = SqlBackend(f"sqlite+aiosqlite:///{tmp_path / 'nowhere' / 'cells.db'}")
    with pytest.raises(CacheUnavailable, match="the table of cells"):
        await backend.ping()
    await backend.aclose()
    await sqlite_threads_ended()
