"""Start a module by a fork of a process that has imported the service once.

A start spends most of its time in imports. A fork server does them once for each worker of the
tests. Each service is a child that it forks, and otherwise a process like any other, with its own
directory, environment, output, signal handlers and exit status.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
LONGEST_REQUEST = 2**20


class Forked:
    """A child of the fork server, with the interface of `subprocess.Popen` that tests use."""

    def __init__(self, arguments: Sequence[str], status_pipe: int) -> None:
        """Args: the arguments; a pipe that brings its id, and later its exit status."""
        self.args = arguments
        self.returncode: int | None = None
        self._status_pipe = open(status_pipe, "rb", buffering=0)  # noqa: SIM115 - until it ends
        self._lock = threading.Lock()
        self.pid = self._number()

    def poll(self) -> int | None:
        """Return the exit status if it has ended."""
        with self._lock:
            if self.returncode is None and self._is_readable(0):
                self.returncode = self._number()
                self._status_pipe.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended, and return its exit status.

        Raises:
            subprocess.TimeoutExpired: it has not ended in so many seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            status = self.poll()
            if status is not None:
                return status
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0)
            self._is_readable(left)

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _is_readable(self, seconds: float | None) -> bool:
        waiting = select.poll()  # unlike select.select, for descriptors of any number
        waiting.register(self._status_pipe, select.POLLIN)
        return bool(waiting.poll(None if seconds is None else seconds * 1000))

    def _number(self) -> int:
        text = b""
        while not text.endswith(b"\n"):
            piece = self._status_pipe.read(1)
            if not piece:
                raise RuntimeError("the fork server has died")
            text += piece
        return int(text)


def fork(
    directory: Path,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    output: IO[bytes],
    module: str = "app",
) -> Forked:
    """Run `python -m module` with these arguments in `directory`."""
    request = json.dumps([str(directory), module, list(arguments), dict(environment)]).encode()
    status_pipe, child_end = os.pipe()
    try:
        socket.send_fds(_server(), [request], [output.fileno(), child_end])
    finally:
        os.close(child_end)
    return Forked(arguments, status_pipe)


def can_fork(environment: Mapping[str, str]) -> bool:
    """Tell whether children can be forked here, and measured as they should be."""
    return sys.platform == "linux" and "COVERAGE_PROCESS_CONFIG" not in environment


@functools.cache
def _server() -> socket.socket:
    """Start the fork server and return its socket. It ends with this process at the latest."""
    requests, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("JOBCACHE_")
        and name not in {"DATABASE_URL", "REDIS_URL", "COVERAGE_PROCESS_CONFIG"}
    }
    with server_end:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.app.forking", str(server_end.fileno())],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[server_end.fileno()],
        )

    def end() -> None:
        requests.close()
        server.wait()

    atexit.register(end)
    return requests


@dataclass
class Start:
    """What a child runs, and where."""

    directory: str
    module: str
    arguments: list[str]
    environment: dict[str, str]
    output: int
    status_pipe: int


def main() -> None:
    """Run the fork server, and in each of its children the program."""
    import_app()
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        start = serve(requests)
    if start is not None:
        run(start)


def import_app() -> None:
    """Import what a service imports until it is ready, and keep that out of later collections."""
    for name in (
        "app.__main__",
        "app.main",
        "app.http.fast_path_protocol",
        "aiosqlite",
        "asyncpg",
        "jobcache.backends.memory",
        "jobcache.backends.null",
        "jobcache.backends.redis.backend",
        "jobcache.backends.tiered",
        "pydantic.v1",
        "throttled.rate_limiter.quota_parser",
        "uvicorn.lifespan.on",
        "uvicorn.loops.auto",
    ):
        importlib.import_module(name)
    del sys.modules["app.__main__"]  # each child runs it anew, by the name of __main__
    if threading.active_count() > 1:
        raise RuntimeError("a thread runs, which no child would have")
    gc.collect()
    gc.freeze()


def serve(requests: socket.socket) -> Start | None:
    """Fork for each request, until no more can come. Returns in children, too."""
    children: dict[int, int] = {}  # the pipe that takes its exit status, by process id
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the tests end first
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    waiting = select.poll()
    waiting.register(requests, select.POLLIN)
    waiting.register(woken, select.POLLIN)
    while True:
        ready = {number for number, _ in waiting.poll()}
        if woken in ready:
            os.read(woken, 1000)
            report_exits(children)
        if requests.fileno() not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(requests, LONGEST_REQUEST, 2)
        if not message:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            return None
        start = Start(*json.loads(message), *descriptors)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for descriptor in (woken, wake, start.status_pipe, *children.values()):
                os.close(descriptor)
            return start
        children[pid] = start.status_pipe
        os.close(start.output)
        with contextlib.suppress(BrokenPipeError):
            os.write(start.status_pipe, b"%d\n" % pid)


def report_exits(children: dict[int, int]) -> None:
    """Report the exit status of each child that has ended."""
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        status_pipe = children.pop(pid)
        with contextlib.suppress(BrokenPipeError):
            os.write(status_pipe, b"%d\n" % os.waitstatus_to_exitcode(status))
        os.close(status_pipe)


def run(start: Start) -> None:
    """Do in a child what `python -m module` does, and end as that does."""
    os.dup2(start.output, 1)
    os.dup2(start.output, 2)
    os.close(start.output)
    os.chdir(start.directory)
    os.environ.clear()
    os.environ.update(start.environment)
    time.tzset()
    tempfile.tempdir = None  # which depends on the environment
    path = start.environment.get("PYTHONPATH", "")
    sys.path[:1] = [start.directory, *filter(None, path.split(os.pathsep))]
    sys.argv = [start.module, *start.arguments]
    runpy.run_module(start.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
