"""How an endpoint says who may call it."""

from __future__ import annotations

from typing import Any

from fastapi import Depends, HTTPException, Request

from app.access.callers import Role
from app.access.gate import caller_of

FORBIDDEN: dict[str, Any] = {
    "description": "The key's role, or its client, does not allow this",
    "content": {"application/problem+json": {}},
}


def only(*roles: Role) -> dict[str, Any]:
    """What an endpoint for these roles, and for operators, is declared with."""
    needed = " or ".join(dict.fromkeys([*roles, Role.OPERATOR]))

    async def check(request: Request) -> None:
        caller = caller_of(request)
        if not caller.may(*roles):
            raise forbidden(f"This needs a key whose role is {needed}, not {caller.role}.")

    return {"dependencies": [Depends(check)], "responses": {403: FORBIDDEN}}


def forbidden(detail: str) -> HTTPException:
    """A 403 with the challenge of RFC 6750."""
    challenge = 'Bearer realm="jobcache", error="insufficient_scope"'
    return HTTPException(403, detail, {"WWW-Authenticate": challenge})
