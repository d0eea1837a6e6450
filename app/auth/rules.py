"""The roles that an endpoint is for, in its declaration."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fastapi import Depends, HTTPException, Request

from app.auth.callers import Role
from app.auth.middleware import caller_of
from app.http.openapi import problems

if TYPE_CHECKING:
    from collections.abc import Mapping


def only(
    *roles: Role, answers: Mapping[int | str, dict[str, Any]] = MappingProxyType({})
) -> dict[str, Any]:
    """Return the arguments that declare an endpoint for these roles and for operators.

    Args:
        roles: of the keys that it accepts, besides an operator's.
        answers: its answers for OpenAPI, besides the refusal.
    """
    needed = " or ".join(dict.fromkeys([*roles, Role.OPERATOR]))

    async def check(request: Request) -> None:
        caller = caller_of(request)
        if not caller.may(*roles):
            raise forbidden(f"This needs a key whose role is {needed}, not {caller.role}.")

    return {"dependencies": [Depends(check)], "responses": {**answers, **problems(403)}}


def forbidden(detail: str) -> HTTPException:
    """Return a 403 with the challenge of RFC 6750."""
    challenge = 'Bearer realm="jobcache", error="insufficient_scope"'
    return HTTPException(403, detail, {"WWW-Authenticate": challenge})
