"""The service as users run it: a process started with `python -m app serve`."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Self

import httpx

from app.devservers import free_port
from benchmarks.process import Process

if TYPE_CHECKING:
    from collections.abc import Mapping

HOST = "127.0.0.1"

_START = 60.0  # seconds to become ready, and for a storyboard
_PAUSE = 0.02  # seconds between two looks
_SETTINGS = ("JOBCACHE_", "DATABASE_URL", "REDIS_URL")


class ServiceFailed(Exception):  # noqa: N818 - says what is the matter
    """The service did not start, or did not answer as it should; ends with its last words."""


class Service:
    """A service on a free loopback port; entering starts it, leaving ends it.

    Entering does not wait, so that several can start at once: call `wait_until_ready` then.

    Args:
        settings: environment variables, see `app.settings`; none of ours reaches it. The port is
            chosen here, and its files go where the process goes. `JOBCACHE_WORKERS` is how many
            worker processes it has.
        module: is run in place of the service, with the same arguments.
    """

    def __init__(self, settings: Mapping[str, str], module: str = "app") -> None:
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        self._workers = int(settings.get("JOBCACHE_WORKERS", "1"))
        kept = {name: text for name, text in os.environ.items() if not name.startswith(_SETTINGS)}
        self._process = Process(
            [sys.executable, "-m", module, "serve"],
            {**kept, "JOBCACHE_PORT": str(self.port), **settings},
        )
        self._client = httpx.Client(base_url=self.url, timeout=10)

    def __enter__(self) -> Self:
        self._process.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._process.__exit__()

    @property
    def pid(self) -> int:
        """The process that was started. It serves by itself, or is the parent of the workers."""
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Return once this very service, and not another on the port, has all its workers.

        Raises:
            ServiceFailed: it ended, or took too long.
        """
        deadline = time.monotonic() + _START
        while self._process.alive and time.monotonic() < deadline:
            # What answers may be another process, which has the port and may end.
            with contextlib.suppress(httpx.TransportError, ServiceFailed):
                if self._client.get("/readyz").is_success and self._is_ours():
                    return
            time.sleep(_PAUSE)
        raise ServiceFailed(f"the service is not ready:\n{self._process.log_tail()}")

    def stats(self) -> dict[str, Any]:
        """Return the document of `/api/v2/cache/stats`."""
        return self.call("GET", "/api/v2/cache/stats")

    def stats_of_all(self) -> dict[str, Any]:
        """Return the same, to which every worker has contributed what it has counted by now.

        Raises:
            ServiceFailed: that takes too long.
        """
        deadline = time.monotonic() + _START
        while True:
            # Of a worker that is slow to answer, and of one that has ended, older counts are used.
            found = self.stats()
            if len(found["processes"]) == self._workers and not found["unresponsive_processes"]:
                return found
            if time.monotonic() > deadline:
                raise ServiceFailed(
                    f"{len(found['processes'])} of {self._workers} workers report their counts:\n"
                    f"{self._process.log_tail()}"
                )
            time.sleep(_PAUSE)

    def call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Send a request; return the JSON of the response.

        Raises:
            ServiceFailed: the answer was not a success, or there was none.
        """
        try:
            answer = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise ServiceFailed(
                f"{method} {path} was not answered: {error!r}\n{self._process.log_tail()}"
            ) from error
        if not answer.is_success:
            raise ServiceFailed(
                f"{method} {path} was answered {answer.status_code}: {answer.text[:200]}\n"
                f"{self._process.log_tail()}"
            )
        document: dict[str, Any] = answer.json()
        return document

    def rendering(self, count: int, prompt: str) -> dict[int, int]:
        """Make so many jobs that an external worker is rendering; their versions by their ids.

        Raises:
            ServiceFailed: one of them has no storyboard in time.
        """
        body = {"client_id": "acme", "prompt": prompt, "renderer": "external"}
        made = [self.call("POST", "/api/v2/jobs", body)["id"] for _ in range(count)]
        versions = {}
        for job in made:
            self.wait_for_storyboard(job)
            self.call("POST", f"/api/v2/jobs/{job}/approve")
            versions[job] = self.call("POST", f"/api/v2/jobs/{job}/render")["version"]
        return versions

    def wait_for_storyboard(self, job: int) -> None:
        """Return once a job has one.

        Raises:
            ServiceFailed: that takes too long.
        """
        deadline = time.monotonic() + _START
        path = f"/api/v2/jobs/{job}"
        while self.call("GET", path)["status"] != "storyboard_ready":
            if time.monotonic() > deadline:
                raise ServiceFailed(f"{path} has no storyboard")
            time.sleep(_PAUSE)

    def _is_ours(self) -> bool:
        # Between finding a free port and binding it, another process may have bound it.
        found = {each["process"] for each in self.stats()["processes"]}
        ours = {self.pid, *(each.pid for each in self._process.descendants())}
        return len(found) == self._workers and found <= ours
