"""The keys of which this process must notify, until it is certain that it did.

A notification that is not part of a commit may be accepted, and reach nobody:

    the address moves from A to B, and A lives on; R in P1 loads v1 from B; W in P0 commits v2 on B,
    and notifies on a pooled connection to A, which succeeds; P1 serves v1 until it expires

So its keys are owed until both have happened:

    this process has heard it           else it was sent to another server than the feed listens to
    a heartbeat sent later came back    else the feed may listen to the former primary, as above

If that heartbeat comes back first, or is missing, the keys are sent again, in one transaction with
a heartbeat. When that comes back, nothing is owed any more. Without faults, each is sent once. What
is sent while no connection listens cannot be heard, so it is sent again when one does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_MOST_KEYS = 10_000


@dataclass
class Unproven:
    """A notification of some keys.

    Attributes:
        keys: the keys.
        by_statement: whether a transaction should have sent it.
        decisive: the number of the first heartbeat that is sent after it.
        heard: whether this process has heard it.
    """

    keys: Sequence[str]
    by_statement: bool = False
    decisive: float = math.inf
    heard: bool = False


class Owed:
    """The keys of which this process must notify. Heartbeats have numbers that grow."""

    def __init__(self) -> None:
        self._keys: dict[str, None] = {}  # to be sent with the next heartbeat
        self._carried: dict[str, None] = {}  # sent with the heartbeat that is awaited
        self._sent: dict[tuple[str, str], Unproven] = {}  # by token and first key

    def __len__(self) -> int:
        """Return how many keys and notifications are not certain."""
        return len(self._keys) + len(self._carried) + len(self._sent)

    def add(self, keys: Iterable[str]) -> None:
        """Owe these keys. With too many, anything may have changed."""
        self._keys.update(dict.fromkeys(keys))
        if len(self._keys) > _MOST_KEYS:
            self._keys = {"": None}

    def carry(self) -> list[str]:
        """Return the keys to be sent with the heartbeat that is sent now."""
        self._carried, self._keys = self._keys, {}
        return list(self._carried)

    # --- notifications that are sent without a heartbeat ---

    def sending(self, token: str, keys: Sequence[str]) -> None:
        """Note that a notification is about to be sent."""
        self._sent[token, keys[0]] = Unproven(keys)

    def sent(self, token: str, keys: Sequence[str], decisive: int) -> None:
        """Note that it was sent, before the heartbeat of this number."""
        sent = self._sent.get((token, keys[0]))
        if sent is not None:
            sent.decisive = decisive

    def failed(self, token: str, keys: Sequence[str]) -> None:
        """Owe the keys of a notification that may not have been sent."""
        self._sent.pop((token, keys[0]), None)
        self.add(keys)

    def committed(self, token: str, key: str, decisive: int) -> None:
        """Note that a transaction should have notified, before the heartbeat of this number."""
        self._sent[token, key] = Unproven((key,), by_statement=True, decisive=decisive)

    def heard(self, token: str, keys: Sequence[str] | None) -> None:
        """Note that a notification has been reported; None: that anything may have changed."""
        if not token or not self._sent:
            return
        if keys is None:
            keys = [key for other, key in self._sent if other == token]
        for key in keys:
            sent = self._sent.get((token, key))
            if sent is not None:
                sent.heard = True

    # --- heartbeats that were not sent ---

    def not_sent(self) -> None:
        """Owe the keys of a heartbeat that was not sent."""
        self.add(self._carried)
        self._carried = {}

    def refused(self) -> None:
        """Owe that anything may have changed: the database cannot encode one of the keys."""
        if self._carried:
            self._carried = {"": None}

    # --- proof ---

    def came_back(self, heartbeat: int) -> list[Unproven]:
        """Decide about all that was sent before this heartbeat; return, and owe, what was lost."""
        self._carried = {}
        decided = [name for name, sent in self._sent.items() if sent.decisive <= heartbeat]
        lost = [sent for sent in map(self._sent.pop, decided) if not sent.heard]
        for sent in lost:
            self.add(sent.keys)
        return lost

    def doubt(self) -> None:
        """Owe all that is not certain: the heartbeat is missing, or the connection is lost.

        Not what is part of a commit: the server of the commit sends it.
        """
        self.not_sent()
        for sent in self._sent.values():
            if not sent.by_statement:
                self.add(sent.keys)
        self._sent.clear()
