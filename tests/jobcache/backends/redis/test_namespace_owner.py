"""The marker of a prefix is claimed on the server that has it, and on no other's behalf."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import pytest
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AskError, MovedError, NoPermissionError, ResponseError

from jobcache.backends.redis.namespace_owner import Source
from jobcache.backends.redis.refused_commands import CommandRefused
from jobcache.backends.redis.url import Address
from jobcache.errors import NamespaceConflict

SOURCE = Source("p:", "us")
FORBIDDEN = NoPermissionError("this user has no permissions to run the command")


class Scripted:
    """A connection whose replies a test gives."""

    host = "first"

    def __init__(self, *replies: object) -> None:
        self.replies = list(replies)
        self.sent: list[str] = []
        self.closed = False

    async def connect(self) -> None:
        """It is connected."""

    async def disconnect(self, *, nowait: bool = False) -> None:
        self.closed = nowait

    async def send_command(self, *words: str) -> None:
        self.sent.append(" ".join(words))

    async def read_response(self) -> object:
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply


async def claim(first: Scripted, others: Iterable[Scripted] = (), *, sharded: bool = True) -> Any:
    """Claim the marker; return the addresses that the servers referred to."""
    found: list[Address] = []
    following = iter(others)

    def connect(address: Address) -> AbstractConnection:
        found.append(address)
        return cast("AbstractConnection", next(following))

    connection = cast("AbstractConnection", first)
    await SOURCE.claim(connection, connect if sharded else None)
    return found


async def test_a_missing_marker_is_set_and_read_again() -> None:
    server = Scripted(None, b"OK", b"us")
    await claim(server)
    assert server.sent == [
        "GET p:jobcache:source",
        "SET p:jobcache:source us NX",
        "GET p:jobcache:source",
    ]


async def test_a_marker_that_is_set_first_by_another_source_is_a_conflict() -> None:
    with pytest.raises(NamespaceConflict):
        await claim(Scripted(None, None, b"others"))


async def test_a_marker_of_another_type_is_a_conflict() -> None:
    with pytest.raises(NamespaceConflict):
        await claim(Scripted(ResponseError("WRONGTYPE Operation against a key")))


@pytest.mark.parametrize(("replies", "command"), [([FORBIDDEN], "GET"), ([None, FORBIDDEN], "SET")])
async def test_a_command_that_is_forbidden_is_named(replies: list[object], command: str) -> None:
    with pytest.raises(CommandRefused, match=f"refuses {command}"):
        await claim(Scripted(*replies))


async def test_other_errors_of_a_read_are_raised() -> None:
    with pytest.raises(ResponseError, match="LOADING"):
        await claim(Scripted(ResponseError("LOADING the dataset")))


async def test_a_server_that_takes_no_writes_now_is_no_conflict() -> None:
    await claim(Scripted(None, ResponseError("MISCONF it cannot persist")))


async def test_the_owner_of_the_slot_is_asked_and_its_connection_closed() -> None:
    owner = Scripted(b"us")
    (address,) = await claim(Scripted(MovedError("1 other:7001")), [owner])
    assert address == Address("other", 7001)
    assert owner.sent == ["GET p:jobcache:source"]
    assert owner.closed


async def test_a_slot_that_is_migrating_is_asked_for_on_both_sides() -> None:
    old = Scripted(AskError("1 new:7002"))
    new = Scripted(b"OK", None, b"OK", AskError("1 third:7003"))
    third = Scripted(b"OK", b"us")
    found = await claim(Scripted(MovedError("1 :7001")), [old, new, third])
    assert [address.host for address in found] == ["first", "new", "third"]
    assert new.sent == [
        "ASKING",
        "GET p:jobcache:source",
        "ASKING",
        "SET p:jobcache:source us NX",
    ]
    assert third.sent == ["ASKING", "GET p:jobcache:source"]
    assert [each.closed for each in (old, new, third)] == [True] * 3


async def test_a_server_outside_of_a_cluster_may_not_refer_to_another() -> None:
    with pytest.raises(MovedError):
        await claim(Scripted(MovedError("1 other:7001")), sharded=False)


async def test_servers_that_refer_to_each_other_are_not_followed_for_ever() -> None:
    others = [Scripted(MovedError("1 other:7001")) for _ in range(10)]
    found = await claim(Scripted(MovedError("1 other:7001")), others)
    asked = [each for each in others if each.sent]
    assert len(found) < len(others)
    assert all(each.closed for each in others[: len(found)])
    assert len(asked) == len(found) - 1
