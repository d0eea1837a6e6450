"""The head of a response is sent together with its body, unless the body comes later."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from app.http.exchange import Exchange

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEAD = GET.replace(b"GET", b"HEAD")
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}


class Recorder(asyncio.Transport):
    """A connection that keeps what is written to it, one item for each system call."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.too_late: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        (self.too_late if self.closed else self.written).append(bytes(data))

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        pieces = list(list_of_data)
        assert all(pieces), "asyncio never finishes with an empty piece"
        self.write(b"".join(pieces))

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


def connected(application: ASGIApp) -> tuple[Exchange, Recorder]:
    config = uvicorn.Config(application, lifespan="off", log_config=None, proxy_headers=False)
    config.load()
    protocol, recorder = Exchange(config, ServerState(), {}), Recorder()
    protocol.access_log = False
    protocol.connection_made(recorder)
    return protocol, recorder


async def some_turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def answer(_scope: object, _receive: object, send: Any) -> None:
    await send(START)
    await send({"type": "http.response.body", "body": b"ok"})


async def test_a_head_and_its_body_are_one_write() -> None:
    protocol, recorder = connected(answer)
    for count in (1, 2):
        protocol.data_received(GET)
        await some_turns()
        assert len(recorder.written) == count
        assert recorder.written[-1].startswith(b"HTTP/1.1 200 OK\r\n")
        assert recorder.written[-1].endswith(b"\r\n\r\nok")
    protocol.connection_lost(None)


async def test_a_head_without_a_body_is_sent_alone() -> None:
    async def unchanged(_scope: object, _receive: object, send: Any) -> None:
        await send({"type": "http.response.start", "status": 304, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    protocol, recorder = connected(unchanged)
    protocol.data_received(GET)
    await some_turns()
    assert len(recorder.written) == 1
    assert recorder.written[0].startswith(b"HTTP/1.1 304 Not Modified\r\n")
    protocol.connection_lost(None)


async def test_a_head_does_not_wait_for_a_body_that_comes_later() -> None:
    go_on = asyncio.Event()

    async def stream(_scope: object, _receive: object, send: Any) -> None:
        await send(START)
        for piece in (b"o", b"k"):
            await go_on.wait()
            await send({"type": "http.response.body", "body": piece, "more_body": piece == b"o"})

    protocol, recorder = connected(stream)
    protocol.data_received(GET)
    await some_turns()
    (head,) = recorder.written
    assert head.endswith(b"\r\n\r\n")
    go_on.set()
    await some_turns()
    assert recorder.written == [head, b"o", b"k"]
    protocol.connection_lost(None)


async def test_a_response_without_a_body_is_sent_before_the_next() -> None:
    protocol, recorder = connected(answer)
    protocol.data_received(HEAD + GET)
    await some_turns()
    said = b"".join(recorder.written)
    assert said.count(b"HTTP/1.1 200 OK") == 2
    assert said.count(b"ok") == 1
    assert said.endswith(b"ok")
    protocol.connection_lost(None)


async def test_a_head_is_sent_before_the_connection_is_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(_scope: object, _receive: object, send: Any) -> None:
        await send(START)
        raise RuntimeError("after the head")

    protocol, recorder = connected(fail)
    protocol.data_received(GET)
    await some_turns()
    assert recorder.closed
    assert recorder.too_late == []
    assert b"".join(recorder.written).startswith(b"HTTP/1.1 200 OK\r\n")
    assert "after the head" in caplog.text
    protocol.connection_lost(None)


async def test_nothing_is_written_to_a_connection_that_is_lost() -> None:
    async def lose(_scope: object, _receive: object, send: Any) -> None:
        await send(START)
        recorder.closed = True
        protocol.connection_lost(ConnectionResetError())

    protocol, recorder = connected(lose)
    protocol.data_received(GET)
    await some_turns()
    assert recorder.closed
    assert recorder.written == recorder.too_late == []


async def test_nothing_is_held_for_a_connection_that_is_closing() -> None:
    protocol, recorder = connected(answer)
    protocol._guarded.close()
    protocol._guarded.expect_head()
    protocol._guarded.write(b"head")
    await some_turns()
    assert recorder.written == recorder.too_late == []
    protocol.connection_lost(None)


async def test_a_refusal_comes_behind_the_response_before_it() -> None:
    protocol, recorder = connected(answer)
    broken = GET.replace(b"GET", b"POST").replace(
        b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\nzz"
    )
    protocol.data_received(HEAD + broken)
    await some_turns()
    said = b"".join(recorder.written)
    assert [said.index(b"HTTP/1.1 200 "), said.count(b"HTTP/1.1")] == [0, 2]
    assert b"HTTP/1.1 400 " in said
    protocol.connection_lost(None)
