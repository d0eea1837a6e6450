"""The service under the servers that people know: uvicorn, gunicorn, `fastapi run`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from app.devservers import free_port
from tests.app.forking import ROOT, can_fork, fork
from tests.app.process import Child, Process, clean_environment

PYTHON = (sys.executable, "-m")


def start(
    directory: Path, command: Sequence[str], log: Path, *, anew: bool = False, **environment: str
) -> Child:
    """Start a server: a fork of a process that has imported the service, unless `anew`.

    A server that starts Python for its workers, as uvicorn does, should be started `anew`.
    """
    variables = clean_environment() | {"PYTHONPATH": str(ROOT)} | environment
    with log.open("ab") as output:
        if not anew and can_fork(variables):
            assert tuple(command[:2]) == PYTHON
            return fork(directory, command[3:], variables, output, command[2])
        variables["PYTHONFAULTHANDLER"] = "1"
        return subprocess.Popen(
            command, cwd=directory, env=variables, stdout=output, stderr=subprocess.STDOUT
        )


def ended(child: Child, log: Path) -> tuple[int, str]:
    """Wait until a server has ended. Return its exit status, and all that it says."""
    try:
        # uvicorn's parent may wait for a minute for a worker that has ended.
        return child.wait(150), log.read_text()
    finally:
        child.kill()
        child.wait()


def at_port(command: Sequence[str], port: int) -> list[str]:
    """Return the command with the port filled in."""
    return [part.format(port=port) for part in command]


@contextmanager
def served(
    directory: Path, command: Sequence[str], *, anew: bool = False, **environment: str
) -> Iterator[Process]:
    """Run a server whose command has a place for the port, and wait until it is ready."""
    port, log = free_port(), directory / "log.txt"
    child = start(directory, at_port(command, port), log, anew=anew, **environment)
    process = Process(child, port, log)
    try:
        process.wait_until_ready()
        yield process
    finally:
        family = psutil.Process(child.pid).children(recursive=True) if child.poll() is None else []
        process.stop()
        psutil.wait_procs(family, timeout=10)
