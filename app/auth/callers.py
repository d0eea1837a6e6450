"""Callers and their roles: decisions about access, synchronous and without I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobcache import Entry

CLIENT_ID = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"


class Role(StrEnum):
    """The role of a key."""

    CLIENT = "client"
    """May see and change the jobs of one client."""
    WORKER = "worker"
    """May see all jobs, and report their progress."""
    OPERATOR = "operator"
    """May do everything."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request.

    Attributes:
        name: its calls are counted by this: the public id of its key, or its address.
        role: its role.
        client: the only client whose jobs it can see; None: all clients.
    """

    name: str
    role: Role
    client: str | None

    def can_view(self, owner: str) -> bool:
        """Return True if a job of `owner` is visible to this caller."""
        return self.client is None or self.client == owner

    def can_view_entry(self, entry: Entry) -> bool:
        """Return True if the job of a cache entry is visible to this caller."""
        return self.client is None or self.client == entry.owner

    def may(self, *roles: Role) -> bool:
        """Return True if the caller has one of the roles; an operator has them all."""
        return self.role is Role.OPERATOR or self.role in roles


TRUSTED = Caller("", Role.OPERATOR, None)
"""The service itself, and every caller of a service without keys."""
