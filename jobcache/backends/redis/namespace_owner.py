"""The owner of a prefix: a marker key holds the identity of the source of all cells under it.

Two services with different databases must not share a prefix, or each would return the other's
documents. The marker has no expiry. If it is evicted or flushed, the first process that notices
sets it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import AskError, MovedError, ResponseError

from jobcache.backends.redis.refused_commands import is_refused, named
from jobcache.backends.redis.url import Address
from jobcache.errors import NamespaceConflict

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio.connection import AbstractConnection

    Connect = Callable[[Address], AbstractConnection]

_REFERRALS = 4


class Source:
    """The source whose cells are under a prefix.

    Args:
        prefix: put before every key.
        source_id: the identity of the source, such as a random id kept in the database; empty if
            the caller is sure that no other service uses the prefix.

    Attributes:
        key: the marker key.
    """

    def __init__(self, prefix: str, source_id: str) -> None:
        self.key = f"{prefix}jobcache:source"
        self.source_id = source_id
        self._prefix = prefix

    def owns(self, marker: object) -> bool:
        """Return whether the marker is ours; False if there is none.

        Args:
            marker: the reply to a GET of `key`.

        Raises:
            NamespaceConflict: the marker is another source's.
        """
        if marker is None:
            return False
        if marker != self.source_id.encode():
            raise NamespaceConflict(self._prefix, self.key)
        return True

    async def claim(self, connection: AbstractConnection, connect: Connect | None) -> None:
        """Set the marker if there is none, and check that it is ours.

        A server that refuses writes now is no conflict. The marker is then set later, by a process
        that notices that it is missing.

        Args:
            connection: leads to any server.
            connect: makes a connection to the server that owns the marker's slot, in a cluster.

        Raises:
            NamespaceConflict: the marker is another source's.
            RedisError: as raised by redis-py.
        """
        asking = False
        own: AbstractConnection | None = None  # a connection made here, to be closed here
        try:
            for _ in range(_REFERRALS):
                try:
                    await self._claim(connection if own is None else own, asking=asking)
                except AskError as error:
                    if connect is None:
                        raise
                    asking = not isinstance(error, MovedError)
                    host = error.host or getattr(connection, "host", "")
                    if own is not None:
                        await own.disconnect(nowait=True)
                    own = connect(Address(host, error.port))
                    await own.connect()  # type: ignore[no-untyped-call] # redis-py's
                else:
                    return
        finally:
            if own is not None:
                await own.disconnect(nowait=True)

    async def _claim(self, connection: AbstractConnection, *, asking: bool) -> None:
        try:
            if self.owns(await _reply(connection, "GET", self.key, asking=asking)):
                return
        except AskError:
            raise
        except ResponseError as error:
            if str(error).startswith("WRONGTYPE"):
                raise NamespaceConflict(self._prefix, self.key) from error
            raise named("GET", error) from error
        try:
            await _reply(connection, "SET", self.key, self.source_id, "NX", asking=asking)
        except AskError:
            raise
        except ResponseError as error:
            if is_refused(error):
                raise named("SET", error) from error
            return
        self.owns(await _reply(connection, "GET", self.key, asking=asking))


async def _reply(connection: AbstractConnection, *words: str, asking: bool) -> Any:  # noqa: ANN401
    if asking:
        await connection.send_command("ASKING")
        await connection.read_response()
    await connection.send_command(*words)
    return await connection.read_response()
