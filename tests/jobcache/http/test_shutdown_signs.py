"""`Shutdown` begins once: when the process stops listening, or at a signal."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from jobcache.http.shutdown import Shutdown

LIMIT = 60  # seconds
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)


class Server:
    """A server, as far as signals are concerned."""

    def __init__(self) -> None:
        self.signals: list[int] = []

    def handle_exit(self, number: int, frame: FrameType | None) -> None:
        self.signals.append(number)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    before = {each: signal.getsignal(each) for each in SIGNALS}
    for each in before:
        signal.signal(each, made.handle_exit)
    try:
        yield made
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


class Ended:
    """A callback that counts its calls, and can be waited for."""

    def __init__(self) -> None:
        self.calls = 0
        self._event = asyncio.Event()

    def __call__(self) -> None:
        self.calls += 1
        self._event.set()

    async def wait(self) -> None:
        async with asyncio.timeout(LIMIT):
            await self._event.wait()


async def test_it_begins_once_the_process_no_longer_listens() -> None:
    ended = Ended()
    shutdown = Shutdown(ended)
    with listening() as found:
        address = found.getsockname()
        with shutdown.watched(address):
            assert not shutdown.begun
            found.close()
            await ended.wait()
        assert shutdown.begun
        with shutdown.watched(address):
            shutdown.begin()
    assert ended.calls == 1


async def test_a_descriptor_that_is_used_again_for_another_port_counts_as_closed() -> None:
    ended = Ended()
    with listening() as one, listening() as other, Shutdown(ended).watched(one.getsockname()):
        os.dup2(other.fileno(), one.fileno())  # closed and used again between two looks
        await ended.wait()


async def test_a_descriptor_that_is_used_again_for_a_connection_counts_as_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jobcache.http.listening_sockets._inode", lambda _: 0)  # as on macOS
    ended = Ended()
    with listening() as found, Shutdown(ended).watched(found.getsockname()):
        with socket.create_connection(found.getsockname()) as connection:
            os.dup2(connection.fileno(), found.fileno())
        await ended.wait()


async def test_a_server_that_leaves_an_inherited_socket_open_closes_its_copy() -> None:
    ended = Ended()
    with listening() as inherited:
        copy = inherited.dup()
        with Shutdown(ended).watched(inherited.getsockname()):
            copy.close()
            await ended.wait()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_no_first_request_is_held_after_the_process_stopped_listening(
    tmp_path: Path, kind: str
) -> None:
    address: Any = ("127.0.0.1", 0) if kind == "tcp" else str(tmp_path / "s")
    with socket.socket(socket.AF_INET if kind == "tcp" else socket.AF_UNIX) as found:
        found.bind(address)
        found.listen()
        with socket.socket(found.family) as client:
            client.connect(found.getsockname())
            accepted, _ = found.accept()
            found.close()
            shutdown = Shutdown()
            name = accepted.getsockname()
            with accepted, shutdown.watched(name if kind == "tcp" else (name, None)):
                assert shutdown.begun


async def test_a_request_without_a_connection_can_be_held() -> None:
    shutdown = Shutdown()
    for server in [("testserver", 80), ("localhost", None), None]:
        with shutdown.watched(server):
            assert not shutdown.begun


async def test_sockets_of_other_ports_may_be_closed() -> None:
    shutdown = Shutdown()
    with listening() as one, listening() as other:
        with shutdown.watched(one.getsockname()):
            other.close()
        with shutdown.watched(one.getsockname()):  # looks at once
            assert not shutdown.begun


@pytest.mark.parametrize("named", [True, False])
async def test_a_unix_socket_counts_as_well(tmp_path: Path, *, named: bool) -> None:
    ended = Ended()
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as found:
        found.bind(path)
        found.listen()
        with Shutdown(ended).watched((path, None) if named else None):
            found.close()
            await ended.wait()


async def test_a_port_may_be_text() -> None:
    ended = Ended()
    with listening() as found:
        host, port = found.getsockname()
        with Shutdown(ended).watched((host, str(port))):
            found.close()
            await ended.wait()


async def test_a_signal_suffices_if_the_socket_stays_open(server: Server) -> None:
    ended = Ended()
    with listening() as found, Shutdown(ended).watched(found.getsockname()):
        signal.raise_signal(signal.SIGTERM)
        assert server.signals == [signal.SIGTERM]
        await ended.wait()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert server.signals == [signal.SIGTERM, signal.SIGTERM, signal.SIGINT]
    assert ended.calls == 1


async def test_a_signal_suffices_where_no_socket_is_found(server: Server) -> None:
    ended = Ended()
    with Shutdown(ended).watched(("testserver", 80)):
        signal.raise_signal(signal.SIGQUIT)
        await ended.wait()


async def test_a_signal_suffices_where_descriptors_cannot_be_listed(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "jobcache.http.listening_sockets._DESCRIPTORS", tmp_path / "none"
    )  # as on Windows
    ended = Ended()
    with listening() as found, Shutdown(ended).watched(found.getsockname()):
        signal.raise_signal(signal.SIGTERM)
        await ended.wait()


async def test_after_a_signal_the_server_has_time_to_stop_listening(server: Server) -> None:
    """As uvicorn does, which looks for a signal every 0.1 s, and then marks its connections."""
    order = []
    shutdown = Shutdown(lambda: order.append("the requests end"))

    async def stop() -> None:
        while not server.signals:
            await asyncio.sleep(0.1)
        order.append("the server stops")

    with listening() as found, shutdown.watched(found.getsockname()):
        stopping = asyncio.create_task(stop())
        await asyncio.sleep(0)
        signal.raise_signal(signal.SIGTERM)
        async with asyncio.timeout(LIMIT):
            while not shutdown.begun:
                await asyncio.sleep(0.01)
        await stopping
    assert order == ["the server stops", "the requests end"]


async def test_a_signal_between_two_held_requests_is_not_lost(server: Server) -> None:
    ended = Ended()
    shutdown = Shutdown(ended)
    with shutdown.watched(None):
        pass
    signal.raise_signal(signal.SIGTERM)
    with shutdown.watched(None):
        await ended.wait()


async def test_it_does_nothing_while_nothing_is_held(server: Server) -> None:
    ended = Ended()
    shutdown = Shutdown(ended)
    assert signal.getsignal(signal.SIGTERM) == server.handle_exit
    with listening() as found:
        address = found.getsockname()
        with shutdown.watched(address), shutdown.watched(address):
            assert shutdown._timer is not None
        assert shutdown._timer is None
        found.close()
        with shutdown.watched(address):
            assert shutdown.begun, "the first look is at once"
        assert shutdown._timer is None
    assert ended.calls == 1


async def test_the_handler_before_it_stays_visible_and_is_restored(server: Server) -> None:
    shutdown = Shutdown()
    with shutdown.watched(None):
        chained = signal.getsignal(signal.SIGTERM)
        assert chained != server.handle_exit
        assert getattr(chained, "__self__") is server, "where sse-starlette looks"  # noqa: B009
    shutdown.close()
    assert shutdown.begun
    assert {signal.getsignal(each) for each in SIGNALS} == {server.handle_exit}


async def test_a_handler_that_was_chained_later_stays(server: Server) -> None:
    one, two = Shutdown(), Shutdown()
    with one.watched(None), two.watched(None):
        later = signal.getsignal(signal.SIGTERM)
    one.close()
    assert signal.getsignal(signal.SIGTERM) is later
    signal.raise_signal(signal.SIGTERM)
    assert server.signals == [signal.SIGTERM], "through both"


async def test_signals_that_nobody_handles_are_left_alone(server: Server) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Shutdown().watched(None):
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_outside_of_the_main_thread_the_socket_suffices(server: Server) -> None:
    calls = []

    async def main() -> None:
        ended = Ended()
        with listening() as found, Shutdown(ended).watched(found.getsockname()):
            found.close()
            await ended.wait()
        calls.append(ended.calls)

    thread = threading.Thread(target=asyncio.run, args=[main()])
    thread.start()
    thread.join(LIMIT)
    assert calls == [1]
    assert signal.getsignal(signal.SIGTERM) == server.handle_exit
