"""What the documents say is true: commands run, the example prints what it says, names exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import av
import pytest

from tests.app.process import clean_environment, serving

ROOT = Path(__file__).parent.parent


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_make_run_starts_what_the_next_test_starts() -> None:
    recipe = subprocess.run(
        ["make", "--dry-run", "--always-make", "run", "BACKEND=redis", "DATABASE=postgres"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "-m app dev --backend 'redis' --database 'postgres'" in recipe


def test_the_lines_of_the_readme_make_a_video(tmp_path: Path) -> None:
    (script,) = blocks("README.md", "sh")
    with serving(tmp_path, "dev") as service:
        assert "api=http://127.0.0.1:8000\n" in script
        script = script.replace("http://127.0.0.1:8000", service.url)
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    seen = [float(percent) for percent in re.findall(r'"percent":([\d.]+)', result.stderr)]
    assert seen == sorted(seen)
    assert len(set(seen)) > 2, f"progress was seen moving: {seen}"
    assert seen[-1] == 100
    assert re.search(r"^cache-status: jobcache; hit;", result.stdout, re.MULTILINE)
    assert '"message":"Cache is working normally"' in result.stdout
    with av.open(str(tmp_path / "video.mp4")) as video:
        stream = video.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert sum(1 for _ in video.decode(stream)) == stream.frames > 100


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


def test_the_embedding_example_prints_what_it_says(tmp_path: Path) -> None:
    program, *_ = blocks("docs/embedding.md", "python")
    (expected,) = blocks("docs/embedding.md", "text")
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == expected


def test_the_polling_example_follows_a_job_to_its_end(tmp_path: Path) -> None:
    (program,) = blocks("docs/polling.md", "python")
    assert "http://127.0.0.1:8000" in program
    paced = {"JOBCACHE_RENDERER": "paced", "JOBCACHE_PACED_SECONDS": "1"}
    with serving(tmp_path, measured=False, **paced) as service:
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


@pytest.mark.parametrize(
    "document",
    [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("*.md"))]
    + [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("docs/*.md"))],
)
def test_paths_and_links_in_the_documents_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    paths = re.findall(r"`((?:jobcache|app|tests|docs|benchmarks|loadtests)/[\w./]*\w/?)`", text)
    missing = [
        path
        for path in [
            *((ROOT / document).parent / link for link in links),
            *(ROOT / p for p in paths),
        ]
        if not path.exists()
    ]
    assert missing == []
