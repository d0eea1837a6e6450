"""A service that the fork server starts is as one that Python starts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.app.forking import Forked
from tests.app.process import Process, launch, serving

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or "COVERAGE_PROCESS_CONFIG" in os.environ, reason="nothing is forked"
)


def kinds(process: Process) -> list[str]:
    """Return what each open descriptor is, without what differs from process to process."""
    directory = Path(f"/proc/{process.child.pid}/fd")
    # Numbers, and the directory of the service's processes, which is named after the database.
    own = re.compile(r"(?<=/processes/)[0-9a-f]+|\d+")
    return sorted(own.sub("", str(path.readlink())) for path in directory.iterdir())


def signals(process: Process) -> list[str]:
    """Return which signals are blocked, ignored and caught."""
    lines = Path(f"/proc/{process.child.pid}/status").read_text().splitlines()
    return [line for line in lines if line.startswith(("SigBlk", "SigIgn", "SigCgt"))]


def test_it_has_the_descriptors_and_signal_handlers_of_a_process_started_anew(
    tmp_path: Path,
) -> None:
    with ExitStack() as stack:
        directories = [tmp_path / name for name in ("one", "two", "anew")]
        for directory in directories:
            directory.mkdir()
        # Of two forks: the second could have what belongs to the first.
        _, forked, anew = (
            stack.enter_context(serving(directory, anew=directory.name == "anew"))
            for directory in directories
        )
        assert isinstance(forked.child, Forked)
        assert isinstance(anew.child, subprocess.Popen)
        assert [kind.replace("two", "anew") for kind in kinds(forked)] == kinds(anew)
        assert signals(forked) == signals(anew)
        assert psutil.Process(forked.child.pid).cwd() == str(tmp_path / "two")


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (("nothing",), {}),
        (("serve",), {"DATABASE_URL": "postgresql://127.0.0.1:1/none"}),
    ],
)
def test_it_says_the_same_and_has_the_same_exit_status(
    tmp_path: Path, arguments: tuple[str, ...], environment: dict[str, str]
) -> None:
    said = []
    for anew in (False, True):
        log = tmp_path / f"{anew}.txt"
        child = launch(tmp_path, 0, log, *arguments, anew=anew, **environment)
        said.append((child.wait(60), log.read_text()))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("how", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_it_ends_by_a_signal(tmp_path: Path, how: signal.Signals, status: int) -> None:
    with serving(tmp_path) as service:
        assert service.child.poll() is None
        assert service.stop(how) == status
        assert service.child.poll() == service.child.returncode == status


def test_waiting_for_it_has_a_time_limit(tmp_path: Path) -> None:
    with serving(tmp_path) as service, pytest.raises(subprocess.TimeoutExpired):
        service.child.wait(0.01)
