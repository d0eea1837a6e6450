"""Locust with the project's locustfile, in a process of its own, because of gevent."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCUSTFILE = Path(__file__).parents[2] / "loadtests" / "locustfile.py"
WITHIN = 90.0  # seconds, on a machine as busy as it may be


@contextmanager
def locust(directory: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Start Locust in a directory that is not the project's; kill it if it is still running."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("LOCUST_")}
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
            if child.poll() is None:
                child.kill()


def run_locust(directory: Path, *options: str) -> tuple[int, str]:
    """Run Locust until it ends by itself; return its exit status and what it printed."""
    with locust(directory, "--headless", "--only-summary", *options) as child:
        printed, _ = child.communicate(timeout=WITHIN)
        return child.returncode, printed
