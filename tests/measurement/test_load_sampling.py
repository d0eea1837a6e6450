"""Counters that are read during a load test."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import threading
import time
from typing import Any

import asyncpg
import pytest

from app.devservers import PostgresServer
from loadtests.sampling.postgres import COUNTERS, database_counters
from loadtests.sampling.processes import busy_seconds, usage
from loadtests.sampling.sampler import Sampler

_SPINS = """
import subprocess, sys
spins = "import time\\nwhile time.process_time() < 0.3: pass"
subprocess.run([sys.executable, "-c", spins])
print("spun", flush=True)
fills = "import sys; memory = b'x' * 60_000_000; print('filled', flush=True); sys.stdin.read()"
subprocess.run([sys.executable, "-c", fills])
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
        self.enough_at = 4
        self.fails = False
        self.fails_at = 0
        self.failed = threading.Event()

    def stats(self) -> dict[str, Any]:
        self.calls += 1
        if self.fails or self.calls == self.fails_at:
            self.failed.set()
            raise ConnectionError("gone")
        if self.calls == self.enough_at:
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


def test_a_service_that_could_not_be_asked_once_is_an_error() -> None:
    service = Service()
    service.fails_at = 3
    sampler = Sampler(service, {}, every=0.01)
    with pytest.raises(ConnectionError, match="gone"), sampler:
        assert service.failed.wait(30)


def test_what_the_machine_has_used_grows_with_what_this_process_uses() -> None:
    before, ends = busy_seconds(), time.process_time() + 0.2
    while time.process_time() < ends:
        pass
    assert busy_seconds() - before > 0.1


def test_samples_that_were_missed_are_left_out() -> None:
    service = Service()
    slow = threading.Event()
    stats = service.stats

    def first_slow() -> dict[str, Any]:
        if service.calls == 1:
            slow.wait(0.5)
        return stats()

    service.stats = first_slow  # type: ignore[method-assign]
    service.enough_at = 15
    with Sampler(service, {}, every=0.05) as sampler:
        assert service.enough.wait(30)
    taken = sampler.samples
    assert max(b.second - a.second for a, b in itertools.pairwise(taken)) > 0.49  # both rounded
    assert len(taken) <= (taken[-1].second - 0.5) / 0.05 + 4  # no burst for those missed


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
