"""The quickstart as a new user follows it: its programs, the wheel with its extras, and curl."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.devservers import ServerMissing, free_port
from tests.installed import require_program
from tests.wheels import ROOT, install

PAGE = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
LEVELS = re.findall(
    r"^## (\d)\. .*?^```python\n(.*?)^```.*?^```console\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL
)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """Python of an environment in which the page's line has been installed."""
    (extras,) = re.findall(
        r'^pip install "jobcache\[(.*?)\]" uvicorn aiosqlite$', PAGE, re.MULTILINE
    )
    environment = tmp_path_factory.mktemp("user")
    venv.create(environment, with_pip=False)
    install(environment, wheel, extras, ["uvicorn", "aiosqlite"])
    return environment / "bin" / "python"


@contextmanager
def served(python: Path, directory: Path, program: str) -> Iterator[int]:
    """Serve a program by `uvicorn main:app` in its directory; yield the port."""
    (directory / "main.py").write_text(program)
    port = free_port()
    command = [python, "-I", "-m", "uvicorn", "main:app", "--app-dir", ".", "--port", str(port)]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)
    try:
        for _ in range(600):
            assert process.poll() is None, (directory / "log").read_text()
            try:
                httpx.get(f"http://127.0.0.1:{port}/nothing")
            except httpx.TransportError:
                time.sleep(0.1)
            else:
                break
        yield port
    finally:
        process.terminate()
        process.wait(60)


def find_curl() -> None:
    if shutil.which("curl") is None:
        raise ServerMissing("curl is not installed")


def commands(console: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of a console, each with the lines that are shown after it."""
    for block in re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]:
        command, *shown = block.splitlines()
        yield command, shown


def assert_shown(shown: list[str], printed: str) -> None:
    """Compare the lines of the page with what was printed. `…` stands for anything."""
    rest = printed.splitlines()
    for line in shown:
        pattern = re.sub("…", ".*", re.escape(line))
        if line == "…":
            continue
        if "…" not in shown:
            assert rest, (line, printed)
            assert re.fullmatch(pattern, rest.pop(0)), (line, printed)
            continue
        while rest and not re.fullmatch(pattern, rest[0]):
            rest.pop(0)
        assert rest, (line, printed)
    assert "…" in shown or not rest, printed


@pytest.mark.parametrize(("level", "program", "console"), LEVELS, ids=[each[0] for each in LEVELS])
def test_a_level_of_the_page(
    python: Path, tmp_path: Path, level: str, program: str, console: str
) -> None:
    require_program(find_curl)
    with served(python, tmp_path, program) as port:
        waiting: subprocess.Popen[str] | None = None
        for command, shown in commands(console):
            here = command.replace("localhost:8000", f"127.0.0.1:{port}")
            here = here.replace("curl", "curl --silent --show-error").replace("curl", "curl -sS")
            if here.endswith(" &"):
                waiting = subprocess.Popen(
                    ["sh", "-c", here.removesuffix(" &")], stdout=subprocess.PIPE, text=True
                )
                continue
            printed = subprocess.run(
                ["sh", "-c", here], capture_output=True, text=True, timeout=60, check=True
            ).stdout
            if waiting is not None:
                printed += waiting.communicate(timeout=60)[0]
                waiting = None
            assert_shown(shown, printed)
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_the_page_has_three_levels() -> None:
    assert [each[0] for each in LEVELS] == ["1", "2", "3"]
