"""The benchmarks work, which says nothing about how fast anything is."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_benchmark_runs_once() -> None:
    command = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-disable", "-q"]
    child = subprocess.Popen(
        [*command, "-p", "no:cacheprovider", "-p", "no:randomly"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said, _ = child.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)  # so that it ends its servers
        said, _ = child.communicate(timeout=60)
    assert child.returncode == 0, said
    assert " passed" in said
    assert "skipped" not in said
