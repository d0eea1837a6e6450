"""Which server a key belongs to: the protocol, and its implementation for a single server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from jobcache.backends.redis.refused_commands import cluster_node

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis.asyncio.connection import AbstractConnection
    from redis.exceptions import AskError

    from jobcache.backends.redis.server import Server
    from jobcache.backends.redis.topology.sentinel import Sentinels
    from jobcache.backends.redis.url import Address


class Topology(Protocol):
    """The servers, and which of them each key belongs to."""

    is_sharded: bool
    """Whether the keys are spread over several servers, so that no command may name several."""

    @property
    def connect(self) -> Callable[[Address], AbstractConnection] | None:
        """Makes a connection to an address, not yet connected; None if there is one server."""

    @property
    def generation(self) -> int:
        """A number that changes whenever the servers, their tags or incarnations may have."""

    def owner(self, key: str | bytes) -> Server | None:
        """Return the server that `key` belongs to, or None if it is not known."""

    def servers(self) -> Sequence[Server]:
        """Return all known servers that own keys."""

    def tag_of(self, server: Server) -> str:
        """Return a hash tag: a key that ends with it belongs to `server`."""

    def name_of(self, server: Server) -> str:
        """Return the host and port of `server`, for log messages."""

    def redirected(self, error: AskError, server: Server) -> Server:
        """Return the server that `error`, a reply of `server`, redirects to.

        Raises:
            CommandRefused: this topology has no other server.
        """

    def refresh_soon(self) -> None:
        """Learn the topology again in the background, because a server has failed."""

    async def refresh(self) -> None:
        """Learn the topology again, and wait for the result.

        Raises:
            RedisError: no server could be asked.
        """

    async def aclose(self) -> None:
        """Close the servers."""


class SingleServer:
    """One server for all keys.

    Args:
        server: the server.
        name: its host and port, for log messages; with sentinels, the name of the service.
        sentinels: name the master, if there are any. The master may change at any time.
    """

    is_sharded = False
    connect: None = None

    def __init__(self, server: Server, name: str, sentinels: Sentinels | None = None) -> None:
        self._server = server
        self._name = name
        self._sentinels = sentinels
        if sentinels is not None:
            sentinels.on_switch.append(server.identity.invalidate)

    @property
    def generation(self) -> int:
        """A number that changes whenever the servers may have changed."""
        switches = 0 if self._sentinels is None else self._sentinels.switches
        return switches + self._server.identity.incarnations

    def owner(self, key: str | bytes) -> Server:  # noqa: ARG002 - whatever the key
        """Return the one server."""
        return self._server

    def servers(self) -> Sequence[Server]:
        """Return the one server."""
        return [self._server]

    def tag_of(self, server: Server) -> str:  # noqa: ARG002 - any key
        """Return no tag: every key belongs to the one server."""
        return ""

    def name_of(self, server: Server) -> str:  # noqa: ARG002 - there is one
        """Return the host and port of `server`, for log messages."""
        if self._sentinels is None or self._sentinels.master is None:
            return self._name
        return str(self._sentinels.master)

    def redirected(self, error: AskError, server: Server) -> Server:  # noqa: ARG002 - there is one
        """Raise an error: the server is a node of a cluster, and the URL does not say so."""
        raise cluster_node(error)

    def refresh_soon(self) -> None:
        """Do nothing: a new connection asks the sentinels anyway."""

    async def refresh(self) -> None:
        """Ask the sentinels which server is the master, if there are any."""
        if self._sentinels is not None:
            await self._sentinels.discover_master(self._name)

    async def aclose(self) -> None:
        """Close the servers."""
        await self._server.aclose()
        if self._sentinels is not None:
            await self._sentinels.aclose()
