"""The encoder process, spoken to as the service speaks to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from app.rendering import encode
from app.rendering.renderer import RenderError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from app.rendering.storyboard import Storyboard

SOON = 60.0  # seconds; it takes some milliseconds
ROOT = Path(sys.modules["app"].__path__[0]).parent

Child = subprocess.Popen[bytes]


@pytest.fixture
def start() -> Iterator[Callable[[], Child]]:
    started: list[Child] = []

    def start_one() -> Child:
        child = subprocess.Popen(
            [sys.executable, "-m", "app.rendering.encode"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
        started.append(child)
        return child

    yield start_one
    for child in started:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout, child.stderr):
            assert stream is not None
            stream.close()


def ask(child: Child, storyboard: Storyboard, output: Path) -> None:
    assert child.stdin is not None
    request = {"storyboard": storyboard.model_dump(), "output": str(output)}
    child.stdin.write(json.dumps(request).encode() + b"\n")
    child.stdin.flush()


def answers(child: Child) -> Iterator[dict[str, object]]:
    assert child.stdout is not None
    return map(json.loads, child.stdout)


def wait_until_encoding(child: Child) -> None:
    next(answer for answer in answers(child) if str(answer["stage"]).startswith("drawing"))


def test_it_answers_with_progress_and_done(
    start: Callable[[], Child], storyboard: Storyboard, tmp_path: Path
) -> None:
    child = start()
    ask(child, storyboard, tmp_path / "video.mp4")
    *steps, last = answers(child)
    assert last == {"done": True}
    assert child.wait(SOON) == 0
    assert steps[0] == {"percent": 0.0, "stage": "starting", "message": "24 frames to draw"}
    assert steps[1]["stage"] == "drawing scene 1 of 2"
    assert steps[1]["message"] == "frame 1 of 24"
    assert steps[-1]["percent"] == 100.0
    assert (tmp_path / "video.mp4").exists()
    assert child.stderr is not None
    assert child.stderr.read() == b""


def test_it_stops_when_its_stdin_ends(
    start: Callable[[], Child], long_storyboard: Storyboard, tmp_path: Path
) -> None:
    child = start()
    ask(child, long_storyboard, tmp_path / "video.mp4")
    wait_until_encoding(child)
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4.part"]
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(SOON) == 1
    assert list(tmp_path.iterdir()) == []
    assert all("done" not in answer for answer in answers(child))


def test_it_stops_when_its_stdout_is_closed(
    start: Callable[[], Child], long_storyboard: Storyboard, tmp_path: Path
) -> None:
    child = start()
    ask(child, long_storyboard, tmp_path / "video.mp4")
    wait_until_encoding(child)
    assert child.stdout is not None
    child.stdout.close()
    assert child.wait(SOON) == 1
    assert list(tmp_path.iterdir()) == []
    assert child.stderr is not None
    assert child.stderr.read() == b""


def test_it_ends_quietly_when_nothing_is_asked(start: Callable[[], Child]) -> None:
    child = start()
    assert child.communicate(timeout=SOON) == (b"", b"")
    assert child.returncode == 1


@pytest.mark.parametrize("request_line", [b"not json\n", b'{"storyboard": {}}\n'])
def test_it_says_so_when_it_cannot_understand(
    start: Callable[[], Child], request_line: bytes
) -> None:
    child = start()
    out, err = child.communicate(request_line, timeout=SOON)
    assert child.returncode == 1
    assert json.loads(out)["error"].startswith("the encoder failed: ")
    assert b"Traceback" in err


def test_it_leaves_signals_for_the_group_to_its_parent(
    start: Callable[[], Child], storyboard: Storyboard, tmp_path: Path
) -> None:
    child = start()
    ask(child, storyboard, tmp_path / "video.mp4")
    next(answers(child))
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGTERM)
    assert list(answers(child))[-1] == {"done": True}
    assert child.wait(SOON) == 0


def test_it_gives_way_to_the_service(
    start: Callable[[], Child], long_storyboard: Storyboard, tmp_path: Path
) -> None:
    child = start()
    ask(child, long_storyboard, tmp_path / "video.mp4")
    wait_until_encoding(child)
    here = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, child.pid) == min(19, here + 10)
    # One encodes, one watches stdin; a codec of several threads would keep more.
    deadline = time.monotonic() + SOON
    while (threads := psutil.Process(child.pid).num_threads()) > 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threads == 2


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RenderError("A scene has no text."), "A scene has no text."),
        (OSError(28, "No space left on device", "/var/secret"), "No space left on device"),
        (KeyError("/var/secret"), "the encoder failed: KeyError"),
    ],
)
def test_the_reason_of_an_error_names_no_path(error: Exception, reason: str) -> None:
    said = encode._reason(error)
    assert said.endswith(reason)
    assert "secret" not in said
