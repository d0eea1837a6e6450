"""Servers, an event loop, and hooks of pytest-benchmark for the benchmarks."""

from __future__ import annotations

import asyncio
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from pytest_benchmark.logger import PytestBenchmarkWarning

from app.devservers import MemcachedServer, PostgresServer, RedisServer, ServerMissing
from benchmarks.machine import surroundings
from benchmarks.one_operation import OneOperation

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from benchmarks.one_operation import Benchmark


def pytest_sessionstart(session: pytest.Session) -> None:
    """Make the directory that the results go to."""
    results = session.config.getoption("benchmark_json")
    if results is not None:
        results.parent.mkdir(parents=True, exist_ok=True)


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Drop what differs between two runs on one machine, and what nobody reads in a warning."""
    for name in ("hz_actual", "hz_actual_friendly", "flags"):
        machine_info["cpu"].pop(name, None)


@pytest.hookimpl(wrapper=True)
def pytest_benchmark_compare_machine_info(
    compared_benchmark: dict[str, Any],
) -> Generator[None, object, object]:
    """Warn of another machine, too, if its results are not below the working directory."""
    try:
        return (yield)
    except ValueError:  # of pytest-benchmark's message, which names the place relative to it
        saved = compared_benchmark["machine_info"]
        message = f"Benchmark machine_info is different. Saved: {saved}."
        warnings.warn(PytestBenchmarkWarning(message), stacklevel=1)
        return None


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Add the origin of the figures."""
    output_json["surroundings"] = surroundings()


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Provide a private Redis-compatible server."""
    with RedisServer() as server:
        yield server.url


@pytest.fixture(scope="session")
def memcached_url() -> Iterator[str]:
    """Provide a private memcached, or skip what needs it."""
    try:
        server = MemcachedServer()
    except ServerMissing as error:
        pytest.skip(str(error))
    with server:
        yield server.url


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Provide a private PostgreSQL server."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """Provide an event loop of the kind that the service uses."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        yield loop


@pytest.fixture
def one_operation(benchmark: Benchmark, runner: asyncio.Runner) -> OneOperation:
    """Measure a coroutine function of one operation."""
    return OneOperation(benchmark, runner)
