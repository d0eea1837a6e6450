"""The limit on open files, of which each connection is one."""

from __future__ import annotations

import resource

_OTHERS = 200  # files of this process that are not connections


class TooManyConnections(Exception):  # noqa: N818 - says what is the matter
    """This process may not open so many files."""


def allow_files() -> None:
    """Let this process, and those that it starts, open as many files as they may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def check_connections(count: int) -> None:
    """Check that `allow_files` allows so many connections.

    Raises:
        TooManyConnections: it does not.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and count + _OTHERS > hard:
        most = max(0, hard - _OTHERS)
        raise TooManyConnections(
            f"at most {most} pollers are possible here: {hard} files may be open (ulimit -Hn)"
        )
