"""What a service process is to do wrong, so that the check can be seen to fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

BREAKS = {
    "fence": "writers do not fence",
    "order": "a writer's publish is stored whatever the cell holds",
    "lease": "what a reader loaded is stored without a lease",
    "removal": "a publish that is only to remove what is older is dropped",
    "incarnation": "cells do not tell which life of Redis they were written in",
    "lifetime": "entries stay fresh for an hour",
    "invalidation": "a change of a value without a version is not announced (with --values)",
    "interruption": "the local tier outlives an interruption of the feed (with postgres)",
    "report": "the local tier is not told what has changed",
    "keys": "this version has other keys than the older one (with --older)",
}
"""What can be taken away, and what is left then."""


class Switches:
    """The faults that this process is to cause."""

    def __init__(self, broken: str) -> None:
        self.broken = broken
        self.dies_at_publish = False

    def arm(self, _number: int, _frame: FrameType | None) -> None:
        """Kill this process at the next publish by a writer."""
        self.dies_at_publish = True
