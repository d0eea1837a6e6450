"""The service as a process of its own, started as people start it."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from app.devservers import free_port
from tests.app.forking import Forked, can_fork, fork

Child = subprocess.Popen[bytes] | Forked
NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For a client without TLS: each would read all certificates otherwise, which takes long."""

_START_SECONDS = 150.0
_UNPREFIXED = {"CELERY_BROKER_URL", "DATABASE_URL", "REDIS_URL"}


class Process:
    """A running service, its base URL and a client."""

    def __init__(self, child: Child, port: int, log: Path) -> None:
        self.child = child
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=60, verify=NO_CERTIFICATES)
        self.log = log

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        seen: object = None
        while time.monotonic() < deadline:
            assert self.child.poll() is None, self.log.read_text()
            try:
                seen = self.http.get("/readyz", timeout=10).status_code
            except httpx.TransportError as error:
                seen = error
            if seen == 200:
                return
            time.sleep(0.02)  # between bounded attempts, not instead of a condition
        self.child.send_signal(signal.SIGABRT)  # Python's fault handler writes where it is
        with suppress(subprocess.TimeoutExpired):
            self.child.wait(10)
        raise AssertionError(f"not ready, but {seen!r}: {self.log.read_text()}")

    def until(self, job_id: int, *statuses: str) -> dict[str, object]:
        """Poll until the job has one of these statuses."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            job: dict[str, object] = self.http.get(f"/api/v2/jobs/{job_id}").json()
            if job["status"] in statuses:
                return job
            assert not job["terminal"], job
            time.sleep(0.02)
        raise AssertionError(f"job {job_id} stays {job['status']}: {self.log.read_text()}")

    def rendering(self, **fields: object) -> int:
        """A job the service itself is rendering."""
        body = {"client_id": "acme", "prompt": "A cat sits. A dog runs.", **fields}
        job_id: int = self.http.post("/api/v2/jobs", json=body).raise_for_status().json()["id"]
        self.until(job_id, "storyboard_ready")
        self.http.post(f"/api/v2/jobs/{job_id}/approve").raise_for_status()
        self.http.post(f"/api/v2/jobs/{job_id}/render").raise_for_status()
        return job_id

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it, and wait until it has."""
        self.http.close()
        if self.child.poll() is None:
            self.child.send_signal(how)
        try:
            return self.child.wait(60)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            raise


def launch(
    directory: Path,
    port: int,
    log: Path,
    *arguments: str,
    measured: bool = True,
    anew: bool = False,
    module: str = "app",
    **environment: str,
) -> Child:
    """Start a service in `directory`, and wait for nothing.

    Not `measured`, its lines are not counted as covered: under load that takes too long. Unless it
    is to be `anew`, it is the fork of a process that has imported it, if that makes no difference.
    """
    variables = {"JOBCACHE_PORT": str(port), "JOBCACHE_CLAIM_SECONDS": "0.6", **environment}
    run = arguments or ("serve",)
    return start(directory, log, *run, measured=measured, anew=anew, module=module, **variables)


def start(
    directory: Path,
    log: Path,
    *arguments: str,
    measured: bool = True,
    anew: bool = False,
    workers: bool = True,
    module: str = "app",
    **environment: str,
) -> Child:
    """Start `python -m app`, or another module, with no other variables; see `launch`.

    Without `workers` it ends before it starts any, whatever the settings say.
    """
    inherited = clean_environment()
    if not measured:
        inherited.pop("COVERAGE_PROCESS_CONFIG", None)
    whole = {**inherited, **environment}
    with log.open("ab") as output:
        if not anew and _can_fork(arguments, whole, environment, workers=workers):
            return fork(directory, arguments, whole, output, module)
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=directory,
            env=whole,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def run(
    directory: Path,
    *arguments: str,
    anew: bool = False,
    workers: bool = True,
    **environment: str,
) -> tuple[int, str]:
    """Run `python -m app` to its end. Returns its exit status and all that it says."""
    with tempfile.NamedTemporaryFile() as log:
        child = start(
            directory, Path(log.name), *arguments, anew=anew, workers=workers, **environment
        )
        try:
            status = child.wait(60)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        return status, log.read().decode()


def _can_fork(
    arguments: Sequence[str], whole: dict[str, str], own: dict[str, str], *, workers: bool
) -> bool:
    """Tell whether a fork would be as a process that is started anew."""
    return (
        can_fork(whole)
        and not any(name.startswith("PYTHON") for name in own)  # which Python reads as it starts
        and (
            not workers
            or ("--workers" not in arguments and own.get("JOBCACHE_WORKERS", "1") == "1")
        )
    )


@contextmanager
def serving(
    directory: Path,
    *arguments: str,
    measured: bool = True,
    anew: bool = False,
    module: str = "app",
    **environment: str,
) -> Iterator[Process]:
    """Run `python -m app serve` (or what `arguments` say) in `directory`; see `launch`."""
    port = free_port()
    log = directory / f"log-{port}.txt"
    child = launch(
        directory, port, log, *arguments, measured=measured, anew=anew, module=module, **environment
    )
    with until_stopped(Process(child, port, log)) as process:
        yield process


@contextmanager
def until_stopped(process: Process) -> Iterator[Process]:
    """Wait until the service is ready, and stop it at the end of the block."""
    try:
        process.wait_until_ready()
        yield process
    finally:
        process.stop()


def clean_environment() -> dict[str, str]:
    """This process's environment, without settings of a service that a developer may run."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("JOBCACHE_") and name not in _UNPREFIXED
    }
