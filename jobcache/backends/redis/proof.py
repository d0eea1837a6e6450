"""Proof that a connection still leads to a primary.

An address may be pointed at a new primary while connections to the old one stay open, and the old
one continues as a replica. So every connection in use is checked every half second: a write that
changes nothing is sent before its next commands. If the server refuses this write, or any other,
all connections become suspect:

    the address moves from A to B; A becomes a replica of B, and has not copied B's cells yet
    W commits v2, and publishes it on B; R would go on reading v1 from A on its old connection
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jobcache.backends.redis.pipelined_connection import Command

BETWEEN_PROOFS = 0.5
"""Seconds."""


class Proof:
    """Decides when one connection must be checked again, and reads the result of the check.

    Args:
        commands: makes the commands of the check.
        check: called with these commands and all replies; returns an error if the check failed.
        clock: monotonic time in seconds.

    Attributes:
        due_at: the time of the next check.
    """

    def __init__(
        self,
        commands: Callable[[], list[Command]],
        check: Callable[[Sequence[Command], Sequence[Any]], Exception | None],
        clock: Callable[[], float],
    ) -> None:
        self._commands = commands
        self._check = check
        self._clock = clock
        self.due_at = -math.inf

    def due(self) -> list[Command]:
        """Return the commands of the check, to be sent first; none before it is due."""
        now = self._clock()
        if now < self.due_at:
            return []
        self.due_at = now + BETWEEN_PROOFS
        return self._commands()

    def strip(self, proof: Sequence[Command], replies: list[Any]) -> list[Any]:
        """Return the replies behind those of the check; if it failed, its error for each."""
        if not proof:
            return replies
        others = replies[len(proof) :]
        error = self._check(proof, replies)
        return others if error is None else [error] * len(others)
