"""A poll that comes again is answered as it was, to the byte, and without being parsed."""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest

from app.jobs.hot import _Job
from app.jobs.known import Known
from app.jobs.service import JobNotFound
from app.limits import HEAD_BYTES
from tests.service.wires import END, Stream, Wire, answer, get, job_of, know

# Requests of one read each, that are said again and again; whether they are known from the third
# time on, where the cache is in the process.
AGAIN: dict[str, tuple[Stream, bool]] = {
    "one": (lambda p, _: get(p), True),
    "unchanged": (lambda p, t: get(p, f"If-None-Match: {t}"), True),
    "another tag": (lambda p, _: get(p, 'If-None-Match: "1-1"'), True),
    "gzip": (lambda p, t: get(p, "Accept-Encoding: gzip", f"If-None-Match: {t}"), True),
    "an empty line before it": (lambda p, _: b"\r\n" + get(p), True),
    "an empty line behind it": (lambda p, _: get(p) + b"\r\n", True),
    "many headers": (lambda p, _: get(p, *(f"X-{n}: {n}" for n in range(90))), True),
    "a long head": (lambda p, _: get(p, "X: " + "x" * 1900), True),
    "one too long to keep": (lambda p, _: get(p, "X: " + "x" * 2100), False),
    "two": (lambda p, _: get(p) * 2, False),
    "an unknown job": (lambda *_: get("/api/v2/jobs/999"), False),
    "HEAD": (lambda p, _: get(p, method="HEAD"), False),
    "a body": (lambda p, _: get(p, "Content-Length: 3") + b"abc", False),
    "a query": (lambda p, _: get(p + "?a=1"), False),
}


@pytest.mark.parametrize("name", AGAIN)
async def test_a_request_that_comes_again_is_answered_alike_without_being_parsed(
    wire: Wire, name: str
) -> None:
    path, tag = await job_of(wire)
    made, known = AGAIN[name]
    sent = made(path, tag)
    said = {}
    for short in (False, True):
        reader, writer = await wire.connect(short=short)
        answers = []
        for _ in range(4):
            writer.write(sent)
            answers.append(b"")
            async with asyncio.timeout(60):
                for _ in range(sent.count(b"HTTP/1.1")):
                    answers[-1] += await answer(reader, bodiless=name == "HEAD")
        said[short] = answers
        writer.close()
    assert said[True] == said[False]
    assert len(set(said[True])) == 1
    assert wire.known == (2 if known and not wire.elsewhere else 0)


# Reads that are not one poll from the first byte to the last, though one of them ends with it.
NOT_ALONE: dict[str, Callable[[str], list[bytes]]] = {
    "half of the next": lambda p: [get(p) + END[:9], END[9:-2]],
    "its other half before": lambda p: [get(p)[:9], get(p)[9:]],
    "the end of a body": lambda p: [
        get(p, "Content-Length: 3", method="POST") + b"a",
        b"bc" + get(p),
    ],
    "another behind": lambda p: [get(p) + get("/healthz")],
    "another before": lambda p: [get("/healthz") + get(p)],
    "the same": lambda p: [get(p) * 2],
}


@pytest.mark.parametrize("name", NOT_ALONE)
async def test_a_request_that_does_not_come_alone_is_not_remembered(wire: Wire, name: str) -> None:
    path, _ = await job_of(wire)
    said = []
    for short in (True, False):
        reader, writer = await wire.connect(short=short)
        reads = NOT_ALONE[name](path)
        for read in reads:
            wire.protocols[-1].data_received(read)
        assert wire.met == []
        open_head = not b"".join(reads).endswith(b"\r\n\r\n")
        wire.protocols[-1].data_received(END[-2:] if open_head else END)
        async with asyncio.timeout(60):
            said.append(await reader.read())
        writer.close()
    assert said[0] == said[1]
    assert b" 200 " in said[0]


async def test_a_request_is_known_again_after_others(wire: Wire) -> None:
    path, _ = await job_of(wire)
    reader, writer = await wire.connect(short=True)
    one, two = get(path), get(path, 'If-None-Match: "1-1"')
    for request in (one, one, get("/healthz"), one, one, two, one, two, two):
        writer.write(request)
        async with asyncio.timeout(60):
            assert b" 200 " in await answer(reader)
    assert wire.known == (0 if wire.elsewhere else 4)
    writer.close()


async def test_however_requests_come_they_are_answered_alike(wire: Wire) -> None:
    path, tag = await job_of(wire)
    requests = [
        get(path),
        get(path),
        get(path, f"If-None-Match: {tag}"),
        get(path, method="HEAD"),
        get("/nowhere"),
        get(path, "Content-Length: 3") + b"abc",
        b"\r\n",
    ]
    random = Random(4711)

    def cut(sent: bytes) -> list[bytes]:
        """Most often between two requests, where it matters most."""
        ends = [found.start() for found in re.finditer(rb"GET|HEAD", sent)]
        often = [end for end in ends if random.random() < 0.8]
        cuts = sorted([*often, *random.choices(range(1, len(sent)), k=random.randrange(3))])
        return [sent[start:end] for start, end in pairwise([0, *cuts, len(sent)]) if start < end]

    for _ in range(100):
        reads = cut(b"".join(random.choices(requests, k=random.randint(2, 8))))
        pauses = [random.random() < 0.7 for _ in reads]
        said = []
        for short in (True, False):
            reader, writer = await wire.connect(short=short)
            protocol = wire.protocols[-1]
            for read, pause in zip(reads, pauses, strict=True):
                protocol.data_received(read)
                cycle = protocol.cycle
                while pause and cycle and not (cycle.response_complete or cycle.more_body):
                    await asyncio.sleep(0)
            protocol.data_received(END)
            async with asyncio.timeout(60):
                said.append(await reader.read())
            writer.close()
        assert said[0] == said[1], reads
    assert (wire.known > 50) is not wire.elsewhere


async def test_what_comes_with_no_request_is_not_remembered(wire: Wire) -> None:
    """uvicorn, on its own, would answer the poll after it has refused the rest, or not at all."""
    path, _ = await job_of(wire)
    said = await wire.say(get(path) + b"\0", short=True)
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"200", b"400"]
    assert wire.met == []


async def test_known_bytes_in_the_middle_of_a_request_are_a_part_of_it(wire: Wire) -> None:
    path, _ = await job_of(wire)
    known = get(path)
    said = []
    for short in (True, False):
        reader, writer = await wire.connect(short=short)
        protocol = wire.protocols[-1]
        for _ in range(2):
            protocol.data_received(known)
            await answer(reader)
        protocol.data_received(get("/nowhere")[:-2] + b"X-Known: ")
        protocol.data_received(known)
        protocol.data_received(END)
        async with asyncio.timeout(60):
            said.append(await reader.read())
        writer.close()
    assert said[0] == said[1]
    assert re.findall(rb"HTTP/1.1 (\d+)", said[0]) == [b"400", b"200"], "it has two hosts"
    assert wire.known == 0


async def test_known_requests_count_as_heard(wire: Wire) -> None:
    """What is skipped between requests is bounded; that is counted anew from each of them."""
    known, reader, writer = await know(wire)
    protocol = wire.protocols[-1]
    for _ in range(4):
        protocol.data_received(b"\r\n" * (HEAD_BYTES // 3))
        protocol.data_received(known)
        async with asyncio.timeout(60):
            assert b" 200 " in await answer(reader)
    assert wire.known == (0 if wire.elsewhere else 4)
    writer.close()


async def test_a_known_request_waits_for_the_answer_before_it(wire: Wire) -> None:
    known, reader, writer = await know(wire)
    for read in (get("/nowhere"), known, END):
        wire.protocols[-1].data_received(read)
    async with asyncio.timeout(60):
        assert re.findall(rb"HTTP/1.1 (\d+)", await reader.read()) == [b"404", b"200", b"200"]
    writer.close()


async def test_a_known_request_ends_the_idleness_before_it(wire: Wire) -> None:
    known, reader, writer = await know(wire)
    writer.write(get("/healthz"))
    async with asyncio.timeout(60):
        await answer(reader)
    protocol = wire.protocols[-1]
    due = protocol._timer._due
    protocol.data_received(known)
    async with asyncio.timeout(10):
        await answer(reader)
    assert protocol._timer._due > due
    writer.close()


async def test_a_known_request_that_fails_is_known_no_more(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, reader, writer = await know(wire)

    def strangers(*_: object) -> None:
        raise JobNotFound(1)

    monkeypatch.setattr(wire.service.parts.jobs, "seen_by", strangers)
    statistics = wire.service.parts.cache.statistics
    for number in range(3):
        before = statistics.hits
        writer.write(known)
        async with asyncio.timeout(60):
            assert b" 404 " in await answer(reader)
        if number > 0:
            assert statistics.hits == before + 1
    writer.close()


@pytest.mark.parametrize("wire", ["memory"], indirect=True)
async def test_what_goes_wrong_with_a_known_request_is_answered_by_the_application(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, reader, writer = await know(wire)

    def stopped() -> int:
        raise RuntimeError("no clock")

    monkeypatch.setattr(wire.service.parts.cache, "_clock_ms", stopped)
    writer.write(known)
    async with asyncio.timeout(60):
        assert b" 500 " in await answer(reader)
    writer.close()


async def test_what_is_known_is_bounded(wire: Wire) -> None:
    path, _ = await job_of(wire)
    hot = wire.polls()
    hot.known = Known(3)
    reader, writer = await wire.connect(short=True)
    requests = [get(path, f"X-Number: {number}") for number in range(8)]
    for request in [*requests, *requests, *requests]:
        writer.write(request)
        async with asyncio.timeout(60):
            assert b" 200 " in await answer(reader)
    assert len(hot.known) == (0 if wire.elsewhere else 3)
    assert wire.known == (0 if wire.elsewhere else 3)
    writer.close()


async def test_known_requests_keep_no_jobs_at_hand(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.jobs.hot._KNOWN", 3)
    paths = [(await job_of(wire))[0] for _ in range(8)]
    reader, writer = await wire.connect(short=True)
    for path in [path for path in paths for _ in range(3)]:
        writer.write(get(path))
        async with asyncio.timeout(60):
            assert b" 200 " in await answer(reader)
    assert wire.known == (0 if wire.elsewhere else 8)
    gc.collect()
    # Objects of other libraries may answer `isinstance` with an error.
    jobs = [one for one in gc.get_objects() if type(one) is _Job]
    assert len(jobs) <= 3 + 1  # the last scope's poll
    writer.close()


async def test_known_requests_are_counted_and_then_idle(wire: Wire) -> None:
    await wire.serve(short=True, timeout_keep_alive=0)
    known, reader, writer = await know(wire, apart=True)
    before = wire.protocols[-1].server_state.total_requests
    writer.write(known)
    async with asyncio.timeout(60):
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
    assert wire.known == (0 if wire.elsewhere else 1)
    assert wire.protocols[-1].server_state.total_requests == before + 1
    writer.close()


async def test_what_is_known_may_come_in_a_bytearray(wire: Wire) -> None:
    """As it does on Windows."""
    known, reader, writer = await know(wire)
    wire.protocols[-1].data_received(bytearray(known))
    async with asyncio.timeout(60):
        assert b" 200 " in await answer(reader)
    assert wire.known == (0 if wire.elsewhere else 1)
    writer.close()
