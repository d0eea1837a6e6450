"""The sockets that the service listens on, opened before anything else is started.

The service opens them, and not its server, for two reasons. An address in use is found before a
database is used or a server of `app dev` started. And all workers share the same sockets. They
listen at once: on Linux two processes that only bind can both succeed, and one fails much later.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

BACKLOG = 2048
_UNIX_MODE = 0o666  # as open as a port on loopback; the directory's mode restricts it


class CannotListen(Exception):  # noqa: N818 - reads better where it is raised
    """The address cannot be listened on. The message names the address and the reason."""


@contextmanager
def listening(host: str, port: int, uds: Path | None) -> Iterator[list[socket.socket]]:
    """Listen while the block runs; close the sockets, and remove a Unix socket's file, after it.

    Args:
        host: a name or an address; a name may have several, each gets a socket.
        port: 0 for any free one.
        uds: the path of a Unix socket, to be used instead of host and port.

    Raises:
        CannotListen: it is in use, or not allowed, or not an address of this machine.
    """
    sockets = _tcp(host, port) if uds is None else [_unix(uds)]
    made = None if uds is None else _identity(uds)
    try:
        yield sockets
    finally:
        for each in sockets:
            each.close()
        if uds is not None and made is not None and _identity(uds) == made:
            uds.unlink()  # it is still this process's, and has not been replaced


def shown(sockets: Sequence[socket.socket]) -> str:
    """Return the addresses of sockets as URLs, for the log."""
    return ", ".join(map(_shown, sockets))


def _shown(each: socket.socket) -> str:
    name = each.getsockname()
    if each.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if each.family == socket.AF_INET6 else name[0]
    return f"http://{host}:{name[1]}"


def _tcp(host: str, port: int) -> list[socket.socket]:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise CannotListen(f"{where}: {_reason(error)}") from error
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in found:
            if port == 0 and sockets:  # the same free port for all addresses of a name
                address = (address[0], sockets[0].getsockname()[1], *address[2:])  # noqa: PLW2901
            try:
                sockets.append(_bound(family, kind, protocol, address))
            except OSError as error:
                # "localhost" may name an IPv6 address on a machine that has no IPv6.
                absent = error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
                if not absent or len(found) == 1:
                    raise
        if not sockets:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))  # noqa: TRY301
    except OSError as error:
        for each in sockets:
            each.close()
        raise CannotListen(f"{where}: {_reason(error)}") from error
    return sockets


def _bound(family: int, kind: int, protocol: int, address: tuple[object, ...]) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it would let two processes share the port
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # "::" means every address, those of IPv4 included; any other is IPv6 alone.
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        made.bind(address)
        made.listen(BACKLOG)
        made.set_inheritable(True)
    except BaseException:
        made.close()
        raise
    return made


def _unix(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        made.bind(str(path))
        path.chmod(_UNIX_MODE)
        made.listen(BACKLOG)
        made.set_inheritable(True)
    except OSError as error:
        made.close()
        raise CannotListen(f"{path}: {_reason(error)}") from error
    return made


def _remove_stale(path: Path) -> None:
    """Remove a Unix socket that a dead process has left behind, and no other file.

    Raises:
        OSError: something else is there, or a process that listens.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "there is a file that is not a socket; it was not removed")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(1)
        try:
            caller.connect(str(path))
        except ConnectionRefusedError:  # nobody has it open
            with suppress(FileNotFoundError):
                path.unlink()
            return
        except TimeoutError:  # somebody has, and is slow
            pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISSOCK(found.st_mode) else None


def _reason(error: Exception) -> str:
    # A path that is too long has no number, and so no `strerror`.
    text = getattr(error, "strerror", None)
    return str(text or error)
