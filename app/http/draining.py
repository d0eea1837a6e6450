"""The end of held requests, once the server has stopped listening.

A server that stops closes its listening sockets first. Then it waits for the responses under way,
and only then ends the lifespan of the application. Long polls and event streams would keep it
waiting until they end by themselves. uvicorn, gunicorn, hypercorn, granian and `fastapi run` all do
so, whether a signal, a reload or a limit on requests stops them. So a process checks its own
listening sockets, from the first request on. The service's own protocols are faster: see
`app.http.lifespan_state`.

Rejected: a signal handler in front of the server's. It misses the stops that have no signal.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Server = tuple[str, int | None] | None

_EVERY = 0.1  # seconds
_DESCRIPTORS = Path("/dev/fd")


class ListeningWatch:
    """Calls back once this process no longer listens where its first request came in.

    Args:
        on_stopped: called once, in the event loop.

    Attributes:
        begun: whether `begin` was called.
    """

    def __init__(self, on_stopped: Callable[[], None]) -> None:
        self.begun = False
        self._on_stopped = on_stopped
        self._sockets: dict[int, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, server: Server) -> None:
        """Find the listening sockets, and watch them if there are any.

        Args:
            server: the local address of the connection, as `scope["server"]` of ASGI has it.
        """
        self.begun = True
        self._sockets = dict(_listening(server))
        if self._sockets:
            self._check()

    def close(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        if all(_socket_inode(each) == inode for each, inode in self._sockets.items()):
            self._timer = asyncio.get_running_loop().call_later(_EVERY, self._check)
        else:
            self._on_stopped()


def _listening(server: Server) -> Iterator[tuple[int, int]]:
    """Yield the descriptor and inode of each socket that listens at the address of a connection."""
    try:
        names = os.listdir(_DESCRIPTORS)  # noqa: PTH208 - names are all there is to know
    except OSError:  # there is no such directory on Windows
        return
    for descriptor in map(int, names):
        inode = _socket_inode(descriptor)
        if inode is not None and _listens_at(descriptor, server):
            yield descriptor, inode


def _listens_at(descriptor: int, server: Server) -> bool:
    try:
        found = socket.socket(fileno=descriptor)
    except OSError:
        return False
    try:
        if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return False
        name = found.getsockname()
    except OSError:
        return False
    finally:
        found.detach()  # the server closes it
    if isinstance(name, tuple):  # the port decides: it may listen on all addresses
        return server is not None and name[1] == server[1]
    return server is None or name == server[0]  # a Unix socket, which some servers do not name


def _socket_inode(descriptor: int) -> int | None:
    """Return the inode of an open socket; None: the descriptor is closed, or of something else."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return found.st_ino if stat.S_ISSOCK(found.st_mode) else None
