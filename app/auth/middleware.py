"""Authentication: finds the caller of each request, or refuses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi.responses import JSONResponse
from starlette._utils import get_route_path

from app.auth.callers import TRUSTED, Caller
from app.auth.rate_limit import address_name
from app.http.forwarded import TrustedProxies
from app.http.problems import problem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from app.auth.key_file import KeyFile
    from app.auth.rate_limit import RateLimit

HEALTH = frozenset({"/healthz", "/readyz"})
OPEN = HEALTH | {"/", "/docs", "/redoc", "/openapi.json"}
"""Paths without data, which need no key."""
_OPEN_FOLDER = "/assets/"

_CALLER = "app.caller"
_CHALLENGE = 'Bearer realm="jobcache"'  # RFC 6750, 3
_MISSING = "This service needs a key: Authorization: Bearer <key>."
_WRONG = "The key is not one that this service knows, or knows any more."


def caller_of(request: Request) -> Caller:
    """Return the caller that `AuthMiddleware` has found for a request."""
    caller: Caller = request.scope[_CALLER]
    return caller


def bearer_token(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return the bearer token of a request, which may be malformed; None if it has none."""
    found = [value for name, value in headers if name == b"authorization"]
    if not found:
        return None
    scheme, _, token = found[0].partition(b" ")
    if scheme.lower() != b"bearer":
        return None
    return token.strip(b" ") if len(found) == 1 else b""  # two callers in one request count as none


class Authenticator:
    """Finds the caller of a request, and counts its calls.

    Args:
        keys: the keys; None: the service is open, and every caller is trusted.
        rate: the limit on calls; None: there is none.
        proxies: the proxies that may name a client's address; None: those on loopback.
    """

    def __init__(
        self,
        keys: KeyFile | None,
        rate: RateLimit | None,
        proxies: TrustedProxies | None = None,
    ) -> None:
        self._keys = keys
        self._rate = rate
        self._proxies = TrustedProxies() if proxies is None else proxies
        self.everybody = TRUSTED if keys is None and rate is None else None

    def identify(self, token: bytes | None) -> Caller | None:
        """Return the caller whose token this is now, or None. The call is not counted."""
        if self._keys is None:
            return TRUSTED
        return None if token is None else self._keys.ring.identify(token)

    def judge(self, scope: Scope, path: str) -> Caller | JSONResponse | None:
        """Return the caller, or the refusal; None: no caller, at a path that needs no key.

        The call is counted, so a request must be judged only once.

        Args:
            scope: of ASGI.
            path: of the request, without the prefix under which a proxy has the service.
        """
        if self.everybody is not None:
            return self.everybody
        token = bearer_token(scope["headers"])
        caller = self.identify(token)
        if self._rate is not None and path not in HEALTH:
            wait = self._rate.wait(self._counted_by(caller, scope))
            if wait > 0:
                return problem(
                    429,
                    "Too many calls; Retry-After says when the next is let through.",
                    instance=path,
                    headers={"Retry-After": str(wait)},
                )
        if caller is None and path not in OPEN and not path.startswith(_OPEN_FOLDER):
            return unauthorized(path, token)
        return caller

    def _counted_by(self, caller: Caller | None, scope: Scope) -> str:
        # Two name spaces: no address that a proxy forwards can name a key.
        if caller is not None and caller.name:
            return f"key:{caller.name}"
        address = self._proxies.address(scope)
        return f"address:{'' if address is None else address_name(str(address))}"


def unauthorized(path: str, token: bytes | None) -> JSONResponse:
    """Return the answer to a request without a key, or with a token that is not valid."""
    error = "" if token is None else ', error="invalid_token"'
    return problem(
        401,
        _MISSING if token is None else _WRONG,
        instance=path,
        headers={"WWW-Authenticate": _CHALLENGE + error},
    )


class AuthMiddleware:
    """ASGI middleware that puts the caller into the scope, or refuses the request."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator) -> None:
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request as ASGI middleware."""
        if scope["type"] == "http":
            caller = self._authenticator.judge(scope, get_route_path(scope))
            if isinstance(caller, JSONResponse):
                await caller(scope, receive, send)
                return
            scope[_CALLER] = caller
        await self._app(scope, receive, send)
