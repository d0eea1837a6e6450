"""Proof that a connection still leads to a primary.

An address may be pointed at a new primary while connections to the old one stay open, and the old
one lives on as a replica. So every connection in use proves itself every half second: before
whatever else it sends, it sends a write that changes nothing. A server that refuses this write, or
any other, makes all connections suspect:

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
    """Decides when one connection has to prove itself again, and whether it has.

    Args:
        commands: makes the commands that prove it.
        check: given these commands and all replies, returns the error if they prove nothing.
        clock: monotonic time in seconds.

    Attributes:
        due_at: the time of the next proof.
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
        """Return the commands to send before the next ones; none if it is not time yet."""
        now = self._clock()
        if now < self.due_at:
            return []
        self.due_at = now + BETWEEN_PROOFS
        return self._commands()

    def strip(self, proof: Sequence[Command], replies: list[Any]) -> list[Any]:
        """Return the replies behind the proof's; if it has failed, its error in place of each."""
        if not proof:
            return replies
        others = replies[len(proof) :]
        error = self._check(proof, replies)
        return others if error is None else [error] * len(others)
