"""Commands that run a script on the server: by its digest, or by its text if that is refused."""

from __future__ import annotations

import logging
from hashlib import sha1
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from redis.exceptions import NoScriptError

from jobcache.backends.redis.refused_commands import is_refused
from jobcache.protocol.codec import encode_entry
from jobcache.protocol.entry import Entry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jobcache.backends.redis.pipelined_connection import Command

logger = logging.getLogger("jobcache")

_NAMES = ("lease", "fence", "publish", "purge", "evict")


class Call(NamedTuple):
    """A script to run on one key.

    Attributes:
        script: the name of the script.
        key: the key, with its prefix.
        arguments: the arguments after the incarnation id; an entry is sent as its cell.
        others: more keys of the same server, for a script that takes any number of keys.
    """

    script: str
    key: str | bytes
    arguments: tuple[str | int | bytes | Entry, ...] = ()
    others: tuple[str | bytes, ...] = ()


def script_texts() -> dict[str, str]:
    """Return the texts of all scripts, by name."""
    folder = files("jobcache.backends.redis").joinpath("scripts")
    return {name: folder.joinpath(f"{name}.lua").read_text("utf-8") for name in _NAMES}


class ScriptCalls:
    """Make the commands that run scripts on one server.

    Args:
        texts: the texts of the scripts, by name.
    """

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts
        self._digests = {
            name: sha1(text.encode(), usedforsecurity=False).hexdigest()
            for name, text in texts.items()
        }
        self._refuses_digests = False
        self._warned = False

    def by_digest(self, calls: Sequence[Call], incarnation_id: str) -> list[Command]:
        """Return an EVALSHA for each call; an EVAL where the server refuses EVALSHA."""
        if self._refuses_digests:
            return self.as_text(calls, incarnation_id)
        return _commands("EVALSHA", self._digests, calls, incarnation_id)

    def as_text(self, calls: Sequence[Call], incarnation_id: str) -> list[Command]:
        """Return an EVAL for each call.

        The server then also knows the script by its digest. SCRIPT LOAD would do the same, but many
        proxies refuse it.
        """
        return _commands("EVAL", self._texts, calls, incarnation_id)

    def wants_text(self, reply: object) -> bool:
        """Return whether the server has refused a digest, and may take the text."""
        return isinstance(reply, Exception) and (
            isinstance(reply, NoScriptError) or (not self._refuses_digests and is_refused(reply))
        )

    def use_text(self, refusal: object) -> None:
        """Send scripts as text from now on."""
        if not self._warned:
            self._warned = True
            logger.warning(
                "Redis refuses EVALSHA (%s): scripts are sent whole, with EVAL, each time", refusal
            )
        self._refuses_digests = True

    def reset(self) -> None:
        """Try digests again: there is a new connection, maybe to another server."""
        self._refuses_digests = False


def _commands(
    word: str, scripts: Mapping[str, str], calls: Sequence[Call], incarnation_id: str
) -> list[Command]:
    commands: list[Command] = []
    for script, key, arguments, others in calls:
        values: list[str | int | bytes] = []
        for each in arguments:
            values.append(encode_entry(each, incarnation_id) if isinstance(each, Entry) else each)  # noqa: PERF401 - a comprehension would be a call
        head = (word, scripts[script], 1 + len(others), key, *others)
        commands.append((*head, incarnation_id, *values))
    return commands
