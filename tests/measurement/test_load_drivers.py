"""The clients that Locust does not imitate: a real run of each, with few clients and short jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadtests.__main__ import main
from loadtests.drivers.__main__ import DRIVERS
from loadtests.drivers.connection import HOST, Connection
from loadtests.drivers.session import DriverFailed, Options, Session
from loadtests.pollers.record import Record
from loadtests.report.document import from_json
from loadtests.scenarios import SCENARIOS
from tests.measurement.in_process import Command

DRIVEN = [name for name, scenario in SCENARIOS.items() if scenario.driver]


def test_each_driver_has_a_scenario() -> None:
    assert {SCENARIOS[name].driver for name in DRIVEN} == DRIVERS.keys()


@pytest.mark.usefixtures("undrawn")
def test_clients_count_what_the_service_counts(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in DRIVEN:
        small = replace(
            SCENARIOS[name], users=6, shared_jobs=2, interval=0.1, job_seconds=1.0, updates=4
        )
        monkeypatch.setitem(SCENARIOS, name, small)
    options = f"run --scenarios {','.join(DRIVEN)} --backends memory --database sqlite --results"
    status, said, complained = command.run(main, *options.split(), str(tmp_path))
    assert status == 0, said + complained
    (path,) = tmp_path.glob("*/report.json")
    runs = {run.scenario: run for run in from_json(path.read_bytes()).runs}
    for run in runs.values():
        assert run.jobs == run.completed == 2
        assert run.ends_seen == 6
        assert run.polls == sum(bucket.count for bucket in run.polls_ms) > 0
        assert run.updates > 0
    stampede = runs["stampede"]
    assert 1 <= stampede.statements["load"] <= stampede.jobs
    assert stampede.service.misses >= stampede.statements["load"]
    assert stampede.clients == stampede.service
    assert runs["dashboards"].reads_without_outcome > 0
    assert runs["streams"].held == 6
    # Four reports and the end; a busy service sends the newest version only.
    assert 6 <= runs["streams"].updates <= 6 * 5
    assert runs["streams"].delay_ms["p50"] is not None
    assert runs["leaving_clients"].cut_off > 0
    writers = {each.name: each.count for each in runs["writers"].requests}
    assert writers["job: report progress"] > 2 * 4  # more than at the pace of the others
    assert runs["writers"].clients == runs["writers"].service


def served(reply: bytes, use: Callable[[int], Coroutine[Any, Any, None]]) -> None:
    """Use a server that sends the same reply to every connection and closes it."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def run() -> None:
        async with await asyncio.start_server(answer, HOST, 0) as server:
            await use(server.sockets[0].getsockname()[1])

    asyncio.run(run())


def session_of(port: int) -> Session:
    options = Options(users=1, jobs=1, interval=1, job_seconds=1, updates=1)
    return Session(port, Record(), options)


def test_an_older_version_and_another_status_are_failures() -> None:
    body = b'{"id":1,"version":4,"status":"rendering","terminal":false}'
    head = b"Content-Length: %d\r\nCache-Status: jobcache; hit\r\n\r\n" % len(body)

    async def poll_twice(port: int) -> None:
        session = session_of(port)
        for seen in (4, 5):
            assert session.record.report()["failures"] == {}
            connection = await session.connect()
            assert (await session.poll(connection, 1, seen)).version == 4
            await connection.close()
        assert session.record.errors == ["poll: hit: version 4 after 5"]
        assert session.record.report()["outcomes"]["hits"] == 2

    served(b"HTTP/1.1 200 OK\r\n" + head + body, poll_twice)

    async def refused(port: int) -> None:
        session = session_of(port)
        connection = await session.connect()
        with pytest.raises(DriverFailed, match="status 503"):
            await session.poll(connection, 1)
        await connection.close()
        assert session.record.report()["failures"] == {"poll: no answer": 1}

    served(b"HTTP/1.1 503 Unavailable\r\nContent-Length: 2\r\n\r\n{}", refused)


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"])
def test_a_lost_connection_is_an_error(reply: bytes) -> None:
    async def call(port: int) -> None:
        connection = await Connection.open(port)
        with pytest.raises(ConnectionError, match="lost"):
            await connection.call("GET", "/")
        await connection.close()

    served(reply, call)
