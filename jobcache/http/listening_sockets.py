"""The sockets that this process listens on, found in its list of open files.

ASGI gives an application the local address of a connection, and not the socket that accepted it.
Windows has no list of open files, and Linux has none where `/proc` is not mounted. No sockets are
found there.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    Server = tuple[str, int | str | None] | None
    """The local address of a connection, from `scope["server"]`. granian's port is text."""

_DESCRIPTORS = Path("/dev/fd")


class ListeningSockets:
    """The sockets of this process that accept connections with a local address.

    Args:
        server: the address, as `scope["server"]` of ASGI has it.
    """

    def __init__(self, server: Server) -> None:
        self._inodes = {each: _inode(each) for each in _descriptors() if _accepts(each, server)}
        # The server may have stopped listening already, but still has the connection.
        self._were_closed = not self._inodes and any(
            _has_address(each, server) for each in _descriptors()
        )

    def are_open(self) -> bool:
        """Return False if one of the sockets has been closed; True if none was found."""
        # A closed descriptor may be used again, for a connection or to listen on another port.
        return not self._were_closed and all(
            _listens(each) and _inode(each) == inode for each, inode in self._inodes.items()
        )


def _descriptors() -> Iterator[int]:
    try:
        names = os.listdir(_DESCRIPTORS)  # noqa: PTH208 - names are all there is to know
    except OSError:
        return
    yield from map(int, names)


def _accepts(descriptor: int, server: Server) -> bool:
    """Return True for a socket that listens and accepts connections with this local address."""
    if not _listens(descriptor):
        return False
    if server is None:  # some servers do not name their Unix socket
        return isinstance(_stream_address(descriptor), str | bytes)
    return _has_address(descriptor, server)


def _listens(descriptor: int) -> bool:
    """Return True for a socket that listens: few do, so this is what a search takes time for."""
    try:
        # With a family and a type, right or wrong, the constructor does not ask for them.
        found = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, descriptor)
    except OSError:  # it is not a socket
        return False
    try:
        return bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False
    finally:
        found.detach()  # the server closes it


def _has_address(descriptor: int, server: Server) -> bool:
    """Return True for a socket that has this local address, up to the host."""
    address = _stream_address(descriptor)
    if server is None or not address:
        return False
    if isinstance(address, tuple):  # the server may listen on all hosts
        return str(address[1]) == str(server[1])
    return bool(address == server[0])


def _stream_address(descriptor: int) -> tuple[str, int] | str | bytes | None:
    """Return the local address of a stream socket, or None."""
    try:
        found = socket.socket(fileno=descriptor)
    except OSError:  # it is not a socket, or another thread has closed it
        return None
    try:
        address: tuple[str, int] | str | bytes = found.getsockname()
    except OSError:
        return None
    else:
        return address if found.type == socket.SOCK_STREAM else None
    finally:
        found.detach()  # the server closes it


def _inode(descriptor: int) -> int | None:
    """Return the number that tells open sockets apart; only on Linux is it never 0.

    None: the descriptor has been closed by another thread.
    """
    try:
        return os.fstat(descriptor).st_ino
    except OSError:
        return None
