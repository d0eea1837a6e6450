"""A server that cannot be tracked, or does not answer, is lost; defects are not hidden."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from jobcache.backends.heartbeat_feed import FeedLost, FeedUnsupported
from jobcache.backends.redis.redis_py import closed_is_lost
from jobcache.backends.redis.tracking import connection as tracking
from jobcache.backends.redis.tracking.connection import Endpoint, RedirectedReports


class Connection:
    """A connection that a test controls."""

    protocol = "3"

    def __init__(self, error: Exception | None = None, *replies: object) -> None:
        self.error = error
        self.replies = list(replies)
        self.closed = False

    async def connect(self) -> None:
        if self.error is not None:
            raise self.error

    async def disconnect(self, *, nowait: bool = False) -> None:
        self.closed = nowait

    async def send_command(self, *words: object) -> None:
        """It is sent."""

    async def read_response(self, **_: object) -> object:
        return self.replies.pop(0)


class Hanging(Connection):
    async def connect(self) -> None:
        await asyncio.Event().wait()


async def open_tracking(*connections: Connection) -> None:
    following = iter(connections)

    async def heartbeat(*_: str) -> None:
        """Nothing is written."""

    endpoint = Endpoint(
        "server:1",
        lambda **_: cast("AbstractConnection", next(following)),
        lambda word: word,
        heartbeat,
        lambda: None,
    )
    async with tracking.track(endpoint, b"p:", lambda _: True):
        pass


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ConnectionRefusedError("refused"), FeedLost),
        (RedisConnectionError("no route"), FeedLost),
        (RuntimeError("unable to perform operation; the handler is closed"), FeedLost),
        (RuntimeError("a defect"), RuntimeError),
    ],
)
async def test_a_connection_that_fails_is_lost(error: Exception, raised: type[Exception]) -> None:
    connection = Connection(error)
    with pytest.raises(raised, match=str(error).rpartition(";")[2]) as caught:
        await open_tracking(connection)
    assert type(caught.value) is raised
    assert connection.closed


async def test_a_server_that_does_not_answer_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "HANDSHAKE", 0.01)
    connection = Hanging()
    with pytest.raises(FeedLost, match="server:1 does not answer"):
        await open_tracking(connection)
    assert connection.closed


async def test_a_server_that_refuses_both_ways_is_untracked() -> None:
    refused = ResponseError("unknown command")
    connections = [Connection(refused) for _ in range(3)]
    with pytest.raises(FeedUnsupported, match="unknown command"):
        await open_tracking(*connections)
    assert [each.closed for each in connections] == [True] * 3


async def test_only_messages_of_the_channel_are_reports() -> None:
    channel = b"__redis__:invalidate"
    subscribed: Any = Connection(
        None,
        None,
        [b"subscribe", channel, 1],
        [b"message", b"other", [b"p:k"]],
        [b"message", channel, [b"p:k"]],
        [b"message", channel, None],
    )
    reports = RedirectedReports(cast("AbstractConnection", Connection()), subscribed)
    found = [await reports.report(1) for _ in range(5)]
    assert found == [[], [], [], [b"p:k"], None]


def test_the_error_of_uvloop_for_a_closed_connection_is_a_lost_connection() -> None:
    closed = "unable to perform operation on <TCPTransport closed=True>; the handler is closed"
    with pytest.raises(RedisConnectionError, match="handler is closed"), closed_is_lost():
        raise RuntimeError(closed)
    with pytest.raises(RuntimeError, match="a defect"), closed_is_lost():
        raise RuntimeError("a defect")
