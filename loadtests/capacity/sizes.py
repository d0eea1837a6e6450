"""Measures bytes: of messages, of the memory of a process, and of entries."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from redis import Redis

from app.devservers import RedisServer
from benchmarks.process_cpu import processor_seconds, resident
from jobcache import Document, Lifetimes
from jobcache.backends.memory import MemoryBackend
from loadtests.connection import HOST, get
from loadtests.open_loop.load import Load, Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.service import Service
    from loadtests.capacity.observation import Observation

_END = b"\r\n\r\n"
_TRACKERS = 20
_CHANGES = 3000
_CHANGES_PER_SECOND = 2000.0


def response_sizes(port: int, job: int) -> tuple[int, int, int]:
    """Return the bytes of a response without its body, of its body, and of a response 304."""
    path = f"/api/v2/jobs/{job}"
    head, body = _exchange(port, get(path))
    version = int(json.loads(body)["version"])
    unchanged, _ = _exchange(port, get(path, version))
    return len(head), len(body), len(unchanged)


def _exchange(port: int, request: bytes) -> tuple[bytes, bytes]:
    received = b""
    with socket.create_connection((HOST, port), timeout=10) as connection:
        connection.sendall(request)
        while True:
            received += connection.recv(65536)
            head, complete, body = received.partition(_END)
            length = 0
            for line in head.decode().lower().split("\r\n"):
                if line.startswith("content-length:") and " 304 " not in head.decode():
                    length = int(line.partition(":")[2])
            if complete and len(body) >= length:
                return head + _END, body


def connection_bytes(service: Service, versions: dict[int, int], count: int) -> tuple[float, float]:
    """Return the memory of a process without connections, and of each connection."""
    process = int(service.stats()["process"])
    before = resident(process)
    plan = Plan(pollers=count, interval=1.0, jobs=1, update_interval=None, conditional=False)
    with Load(service.port, dict(list(versions.items())[:1]), plan) as load:
        load.run(1.5)
        return before, max(0.0, (resident(process) - before) / count)


def message_bytes(observations: Sequence[Observation], body: int) -> tuple[float, float]:
    """Return the bytes of a key's get, and of a script, without the body.

    Args:
        observations: of the backend redis; with and without updates.
        body: bytes of each body.
    """
    without = [each for each in observations if not each.updates and not each.loads]
    updating = [each for each in observations if each.updates]
    one_get = sum(each.redis_bytes / each.gets for each in without) / len(without) - body
    scripts = [
        (each.redis_bytes - each.gets * (one_get + body) - (each.updates + each.loads) * body)
        / each.scripts
        for each in updating
    ]
    return max(0.0, one_get), max(0.0, sum(scripts) / len(scripts))


def entry_bytes(cell: bytes, body: int, count: int) -> tuple[float, float, float]:
    """Return the memory of a local entry and of one in Redis without the body; of an empty Redis.

    Args:
        cell: what Redis holds for a job.
        body: bytes of the body in it.
        count: entries that are stored.
    """
    with RedisServer() as server, Redis(port=server.port) as client:
        empty = _used(client)
        with client.pipeline(transaction=False) as commands:
            for number in range(count):
                commands.set(f"job:{number}:progress", cell, px=3_600_000)
            commands.execute()
        remote = (_used(client) - empty) / count - body
    gc.collect()
    before = resident(os.getpid())
    backend = asyncio.run(_filled(body, count))
    local = (resident(os.getpid()) - before) / count - body
    del backend  # only now: its memory was measured
    return max(0.0, local), max(0.0, remote), empty


async def _filled(body: int, count: int) -> MemoryBackend:
    backend = MemoryBackend(max_entries=count, max_bytes=1 << 40)
    lifetimes, now_ms = Lifetimes(default=3600.0), time.time_ns() // 1_000_000
    for number in range(count):
        # Each body is an object of its own, as it would come from a database.
        document = Document(7, "acme", bytes(bytearray(body)), "rendering", 6)
        key = f"job:{number}:progress"
        await backend.lease(key, "t")
        await backend.publish(key, "t", lifetimes.entry(document, now_ms))
    return backend


def _used(client: Redis) -> float:
    found = client.info("memory")
    return float(found["used_memory"])


def report_cost() -> tuple[float, float]:
    """Return the processor seconds and the bytes of a report, for each changed key and process."""
    with RedisServer() as server, Redis(port=server.port) as client:
        alone, alone_bytes = _change(client, server.pid)
        with ExitStack() as stack:
            for _ in range(_TRACKERS):
                _track(stack, server.port)
            told, told_bytes = _change(client, server.pid)
    reports = _TRACKERS * _CHANGES
    return max(0.0, (told - alone) / reports), max(0.0, (told_bytes - alone_bytes) / reports)


def _track(stack: ExitStack, port: int) -> None:
    """Open a connection on which Redis reports every change; nobody reads the reports."""
    connection = stack.enter_context(socket.create_connection((HOST, port), timeout=10))
    connection.sendall(b"HELLO 3\r\nCLIENT TRACKING ON BCAST\r\n")
    connection.recv(65536)


def _change(client: Redis, process: int) -> tuple[float, float]:
    sent, cores, began = _sent(client), processor_seconds(process), time.perf_counter()
    for number in range(_CHANGES):
        client.set("job:1:progress", number)
        time.sleep(max(0.0, began + number / _CHANGES_PER_SECOND - time.perf_counter()))
    return processor_seconds(process) - cores, _sent(client) - sent


def _sent(client: Redis) -> float:
    return float(client.info("stats")["total_net_output_bytes"])
