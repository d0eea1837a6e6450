"""Locust with the project's locustfile, in a process of its own, because of gevent."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCUSTFILE = Path(__file__).parents[2] / "loadtests" / "locustfile.py"
WITHIN = 90.0  # seconds, on a machine as busy as it may be


@contextmanager
def locust(directory: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Start Locust in a directory that is not the project's; kill what is left of it in the end."""
    kept = {
        name: text
        for name, text in os.environ.items()
        if not name.startswith("LOCUST_") or name.startswith("LOCUST_WAIT_")
    }
    kept.pop("PYTHONPATH", None)
    child = subprocess.Popen(
        [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), *options],
        cwd=directory,
        env=kept,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    with child:
        try:
            yield child
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # with the workers that it has forked


def master_port(port: int) -> tuple[str, ...]:
    """Return the options for a master and its workers on a port of this machine."""
    return (
        *("--master-bind-host", "127.0.0.1", "--master-bind-port", str(port)),
        *("--master-host", "127.0.0.1", "--master-port", str(port)),
    )


def run_locust(directory: Path, *options: str) -> tuple[int, str]:
    """Run Locust until it ends by itself; return its exit status and what it printed."""
    with locust(directory, "--headless", "--only-summary", *options) as child:
        printed, _ = child.communicate(timeout=WITHIN)
        return child.returncode, printed
