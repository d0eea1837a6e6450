"""Counts the bytes of Locust's connections, headers included: the cost of polls for clients."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from geventhttpclient.connectionpool import ConnectionPool

if TYPE_CHECKING:
    from collections.abc import Callable


def count_bytes(count: Callable[[int, int], None]) -> None:
    """Call `count` with the bytes received and sent, for all connections that are made later."""

    class CountedSocket(socket.socket):  # gevent's
        def recv(self, *arguments: Any) -> bytes:  # noqa: ANN401 - as its base
            data: bytes = super().recv(*arguments)
            count(len(data), 0)
            return data

        def sendall(self, data: Any, *arguments: Any) -> None:  # noqa: ANN401 - as its base
            count(0, len(data))
            super().sendall(data, *arguments)

    def create(_: ConnectionPool, *kind: Any) -> CountedSocket:  # noqa: ANN401 - a socket's own
        return CountedSocket(*kind)

    ConnectionPool._create_tcp_socket = create  # type: ignore[method-assign, assignment] # noqa: SLF001 - all there is
