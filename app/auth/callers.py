"""Who may do what: the decisions, synchronous and without I/O, for whoever answers a request."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

CLIENT_ID = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"


class Role(StrEnum):
    """What a key is for."""

    CLIENT = "client"
    """Sees and moves the jobs of one client."""
    WORKER = "worker"
    """Sees all jobs, and reports on them."""
    OPERATOR = "operator"
    """Does everything."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent a request.

    Attributes:
        name: what its calls are counted by: the public id of its key, or its address.
        role: what it may do.
        client: the one client whose jobs there are for it; None: everybody's.
    """

    name: str
    role: Role
    client: str | None

    def can_view(self, owner: str) -> bool:
        """True if a job of `owner` exists for this caller."""
        return self.client is None or self.client == owner

    def may(self, *roles: Role) -> bool:
        """True if it has one of the roles; an operator has them all."""
        return self.role is Role.OPERATOR or self.role in roles


TRUSTED = Caller("", Role.OPERATOR, None)
"""The service itself, and everybody who reaches a service without keys."""
