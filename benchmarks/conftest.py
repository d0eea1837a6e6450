"""Servers and an event loop for the benchmarks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import uvloop

from app.devservers import RedisServer
from benchmarks.machine import surroundings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Benchmark(Protocol):
    """The used part of pytest-benchmark's fixture, which has no types."""

    group: str | None
    extra_info: dict[str, Any]

    def __call__(self, function: Callable[[], object]) -> object:
        """Measure it, in as many rounds as there is time for."""


def pytest_sessionstart(session: pytest.Session) -> None:
    """Make the directory that the results go to."""
    results = session.config.getoption("benchmark_json")
    if results is not None:
        results.parent.mkdir(parents=True, exist_ok=True)


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Add the origin of the figures."""
    output_json["surroundings"] = surroundings()


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Provide a private Redis-compatible server."""
    with RedisServer() as server:
        yield server.url


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """Provide an event loop of the kind that the service uses."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        yield loop
