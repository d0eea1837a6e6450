"""A process of the service that is stopped and started again, as in a deployment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import httpx

from app.devservers import free_port
from benchmarks.process import Process

if TYPE_CHECKING:
    from collections.abc import Mapping

HOST = "127.0.0.1"
GRACE = 60.0
"""Seconds for a process to end by itself; the machine may be busy."""

_START = 60.0  # seconds to become ready
_PAUSE = 0.02  # seconds between two looks
_CUT_OFF = "timeout graceful shutdown exceeded"  # uvicorn says so of requests that it cancels
_OURS = ("JOBCACHE_", "DATABASE_URL", "REDIS_URL", "COVERAGE_")


class NodeFailed(Exception):  # noqa: N818 - says what is the matter
    """A process did not start, ended, or disconnected clients; the message has its last output."""


class Node:
    """A process of the service, on the same port whenever it runs.

    Args:
        settings: environment variables, see `app.settings`; none of ours reaches it.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.port = free_port()
        kept = {name: text for name, text in os.environ.items() if not name.startswith(_OURS)}
        self._environment = {**kept, "JOBCACHE_PORT": str(self.port), **settings}
        self._stack = contextlib.ExitStack()

    def start(self) -> None:
        """Start it without waiting."""
        process = Process([sys.executable, "-m", "app", "serve"], self._environment)
        self._process = self._stack.enter_context(process)

    async def wait_until_ready(self) -> None:
        """Return once it reports that it is ready."""
        deadline = time.monotonic() + _START
        async with httpx.AsyncClient(base_url=f"http://{HOST}:{self.port}", timeout=5) as http:
            while self._process.alive and time.monotonic() < deadline:
                with contextlib.suppress(httpx.TransportError):
                    if (await http.get("/readyz")).is_success:
                        return
                await asyncio.sleep(_PAUSE)
        raise NodeFailed(f"a process is not ready:\n{self._process.log_tail()}")

    async def end(self) -> tuple[int | None, float]:
        """Stop it; return its status (None if it had to be killed) and the seconds that it took.

        Raises:
            NodeFailed: it had ended before, or did not answer a request that it held.
        """
        if not self._process.alive:
            raise NodeFailed(f"a process ended by itself:\n{self._process.log_tail()}")
        began = time.monotonic()
        os.kill(self._process.pid, signal.SIGTERM)
        status = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = await asyncio.to_thread(self._process.wait, GRACE)
        took = time.monotonic() - began
        if _CUT_OFF in (words := self._process.log_tail()):
            raise NodeFailed(f"a process did not answer the requests that it held:\n{words}")
        if status is None:
            os.kill(self._process.pid, signal.SIGKILL)
        await asyncio.to_thread(self._stack.close)
        return status, took

    def close(self) -> None:
        """Stop it if it is running."""
        self._stack.close()
