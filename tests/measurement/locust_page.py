"""Locust's web page, driven over HTTP as a browser would."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from typing import Any, Self

import httpx

from tests.measurement.locust_process import WITHIN

PAUSE = 0.05  # seconds between two looks


class LocustPage:
    """The page of a Locust that is starting on a port of this machine."""

    def __init__(self, port: int) -> None:
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WITHIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def wait_until_shown(self) -> str:
        """Return the page once it is there."""
        deadline = time.monotonic() + WITHIN
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                return self.get("/")
            time.sleep(PAUSE)
        raise AssertionError("there is no page")

    def get(self, path: str) -> str:
        """Return what is at a path."""
        response = self._client.get(path)
        assert response.status_code == 200, response.text
        return response.text

    def start(self, users: int, **options: object) -> dict[str, Any]:
        """Start the test, or change the number of users while it is running."""
        form = {"user_count": users, "spawn_rate": 50, **options}
        answer: dict[str, Any] = self._client.post("/swarm", data=form).json()
        return answer

    def stop(self) -> None:
        """Stop the test."""
        assert self._client.post("/stop").json()["success"]

    def stats(self) -> dict[str, Any]:
        """Return what the tables show."""
        shown: dict[str, Any] = self._client.get("/stats/requests").json()
        return shown

    def wait_for(self, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return what the tables show, once they are as wanted."""
        deadline = time.monotonic() + WITHIN
        while not reached(shown := self.stats()):
            assert time.monotonic() < deadline, shown
            time.sleep(PAUSE)
        return shown

    def workers(self) -> int:
        """Return the number of workers that are connected."""
        count: int = self._client.get("/worker-count").json()["worker_count"]
        return count

    def options(self) -> set[str]:
        """Return the names of the options that the page has fields for."""
        found = re.search(r'"extra_options": (\{.*?\}\}), "', self.get("/"))
        assert found is not None
        return set(re.findall(r'"(\w+)": \{"choices"', found[1]))


def requests_of(shown: dict[str, Any]) -> dict[str, int]:
    """Return the number of requests by row."""
    return {row["name"]: row["num_requests"] for row in shown["stats"]}


def polls_of(shown: dict[str, Any]) -> int:
    """Return the number of polls."""
    return sum(count for row, count in requests_of(shown).items() if row.startswith("poll: "))


def table_of(shown: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Return the lines of a table of the project's own."""
    (lines,) = [each["data"] for each in shown["extended_stats"] if each["key"] == key]
    found: list[dict[str, Any]] = lines
    return found
