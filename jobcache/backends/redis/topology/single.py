"""Which server a key belongs to: the only one, the master that sentinels name, a slot's owner."""

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
    """Which server a key belongs to."""

    is_sharded: bool
    """Whether there is more than one server, so that no command can be of several keys."""

    @property
    def connect(self) -> Callable[[Address], AbstractConnection] | None:
        """Makes a connection to an address, not yet connected; None if there is one server."""

    @property
    def generation(self) -> int:
        """Changes whenever `servers`, their tags or who they are may have changed."""

    def owner(self, key: str | bytes) -> Server | None:
        """The server that `key` belongs to; None where that is not known."""

    def servers(self) -> Sequence[Server]:
        """All that own keys, as far as is known."""

    def tag_of(self, server: Server) -> str:
        """What at the end of a key makes the key that server's."""

    def name_of(self, server: Server) -> str:
        """Its host and port, for people."""

    def redirected(self, error: AskError, server: Server) -> Server:
        """Whom `server` has referred to by `error`. Raises `error` where nobody can be."""

    def doubt(self) -> None:
        """A server has failed: what is known is learned anew, soon."""

    async def refresh(self) -> None:
        """Learn it anew, now. Raises `RedisError` where nobody can tell."""

    async def aclose(self) -> None:
        """Close the servers."""


class SingleServer:
    """One server for all keys.

    Args:
        server: it.
        name: its host and port, for people; of a master that sentinels name, what they call it.
        sentinels: those who name it, if any do: it may be another one at any time.
    """

    is_sharded = False
    connect: None = None

    def __init__(self, server: Server, name: str, sentinels: Sentinels | None = None) -> None:
        self._server = server
        self._name = name
        self._sentinels = sentinels
        if sentinels is not None:
            sentinels.deposed.append(server.identity.invalidate)

    @property
    def generation(self) -> int:
        """A number that changes whenever the servers may have changed."""
        switches = 0 if self._sentinels is None else self._sentinels.switches
        return switches + self._server.identity.incarnations

    def owner(self, key: str | bytes) -> Server:  # noqa: ARG002 - whatever the key
        """Return the server that `key` belongs to; None where that is not known."""
        return self._server

    def servers(self) -> Sequence[Server]:
        """Return all servers that own keys, as far as is known."""
        return [self._server]

    def tag_of(self, server: Server) -> str:  # noqa: ARG002 - any key
        """Return what at the end of a key makes it belong to `server`."""
        return ""

    def name_of(self, server: Server) -> str:  # noqa: ARG002 - there is one
        """Return the host and port of `server`, for people."""
        if self._sentinels is None or self._sentinels.master is None:
            return self._name
        return str(self._sentinels.master)

    def redirected(self, error: AskError, server: Server) -> Server:  # noqa: ARG002 - there is one
        """Raise an error: the server is a cluster's node, and the URL does not say so."""
        raise cluster_node(error)

    def doubt(self) -> None:
        """Do nothing: there is nothing to learn but by connecting."""

    async def refresh(self) -> None:
        """Ask the sentinels which server is the master, if there are any."""
        if self._sentinels is not None:
            await self._sentinels.discover_master(self._name)

    async def aclose(self) -> None:
        """Close the servers."""
        await self._server.aclose()
        if self._sentinels is not None:
            await self._sentinels.aclose()
