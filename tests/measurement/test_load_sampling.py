"""Counters that are read during a load test."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from typing import Any

import asyncpg
import pytest

from app.devservers import PostgresServer
from loadtests.sampling.postgres import COUNTERS, database_counters
from loadtests.sampling.processes import usage
from loadtests.sampling.sampler import Sampler

_SPINS = """
import subprocess, sys, time
subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.3: pass"])
print("spun", flush=True)
memory = bytearray(b"x" * 60_000_000)
print("filled", flush=True)
sys.stdin.read()
"""


def test_children_count_for_their_parent_also_when_they_have_ended() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SPINS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"spun\n"
        spun = usage(process.pid)
        assert process.stdout.readline() == b"filled\n"
        filled = usage(process.pid)
        process.stdin.close()
    assert spun is not None
    assert filled is not None
    assert spun.cpu_seconds >= 0.3
    assert filled.resident_bytes >= 60_000_000
    assert usage(process.pid) is None


class Service:
    def __init__(self) -> None:
        self.calls = 0
        self.enough = threading.Event()
        self.fails = False

    def stats(self) -> dict[str, Any]:
        if self.fails:
            raise ConnectionError("gone")
        self.calls += 1
        if self.calls == 4:
            self.enough.set()
        return {
            "statistics": {"total_requests": 10 * self.calls, "hits": 9 * self.calls},
            "database": {"purposes": {"load": self.calls, "write": 1}},
        }


def test_a_sample_is_taken_at_both_ends_and_in_between() -> None:
    service = Service()
    with Sampler(service, {"me": os.getpid(), "ended": 2**22 + 1}, every=0.01) as sampler:
        assert service.enough.wait(30)
    taken = sampler.samples
    assert len(taken) == service.calls >= 4
    assert (taken[0].reads, taken[0].hits, taken[0].statements) == (10, 9, 2)
    assert taken[-1].reads == 10 * service.calls
    assert [each.second for each in taken] == sorted(each.second for each in taken)
    assert taken[0].cpu_seconds.keys() == taken[0].resident_bytes.keys() == {"me"}


def test_a_service_that_cannot_be_asked_is_an_error() -> None:
    service = Service()
    sampler = Sampler(service, {}, every=0.01)
    with pytest.raises(ConnectionError, match="gone"), sampler:
        service.fails = True


def test_an_error_of_the_block_comes_first() -> None:
    service = Service()

    def lose(service: Service) -> None:
        service.fails = True
        raise LookupError

    with pytest.raises(LookupError), Sampler(service, {}, every=60):
        lose(service)


def test_the_database_counts_the_transactions_of_others_only(postgres: PostgresServer) -> None:
    postgres.create_database("counted")
    place = postgres.socket_directory

    async def send() -> None:
        connection = await asyncpg.connect(host=str(place), user="postgres", database="counted")
        for _ in range(50):
            await connection.execute("SELECT 1")
        await connection.close()

    before = database_counters(place, "counted")
    assert before.keys() == set(COUNTERS)
    assert database_counters(place, "counted") == before
    asyncio.run(send())
    after = database_counters(place, "counted")
    assert 50 <= after["xact_commit"] - before["xact_commit"] <= 60
    postgres.drop_database("counted")
