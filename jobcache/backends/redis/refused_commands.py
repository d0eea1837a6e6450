"""Classify the errors with which a Redis server refuses a command."""

from __future__ import annotations

import re

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    MasterDownError,
    NoPermissionError,
    ReadOnlyError,
    ResponseError,
)

_SUSPECT = (ReadOnlyError, MasterDownError, BusyLoadingError, AuthenticationError)
# Redis 6 wraps the errors of commands within scripts, and redis-py has no types for some others.
_SUSPECT_WORDS = re.compile(r"(?:^|[ -])(?:READONLY|MASTERDOWN|NOREPLICAS|MISCONF) ")
_WITHIN_SCRIPT = re.compile("ACL failure in script|The user executing the script can't run")
_UNKNOWN = re.compile("unknown (?:command|subcommand)", re.IGNORECASE)


class CommandRefused(ResponseError):  # noqa: N818 - says what is the matter
    """The server lacks a command, or forbids it. The message names the command."""


def is_suspect(reply: object) -> bool:
    """Return whether the reply says that this server may no longer be the primary."""
    if not isinstance(reply, Exception):
        return False
    return isinstance(reply, _SUSPECT) or _SUSPECT_WORDS.search(str(reply)) is not None


def is_unknown(reply: object) -> bool:
    """Return whether the server says that it has no such command."""
    return isinstance(reply, ResponseError) and _UNKNOWN.match(str(reply)) is not None


def is_refused(reply: object) -> bool:
    """Return whether the server lacks the command, or forbids it."""
    return isinstance(reply, NoPermissionError) or is_unknown(reply)


def named(command: str, reply: Exception) -> Exception:
    """Return the error with the command's name in it, if the command was refused."""
    if isinstance(reply, ClusterCrossSlotError):
        return cluster_node(reply)
    if _WITHIN_SCRIPT.search(str(reply)):
        command = "a command of its scripts (GET, GETRANGE, SET, DEL, PTTL)"
    elif isinstance(reply, CommandRefused) or not is_refused(reply):
        return reply
    return CommandRefused(f"Redis refuses {command} ({reply}), which the cache needs")


def cluster_node(error: Exception) -> Exception:
    """Return the error for a server that turned out to be one node of a cluster."""
    said = f"{type(error).__name__}: {error}"
    return CommandRefused(f"it is a node of a cluster ({said}): REDIS_URL needs redis+cluster://")
