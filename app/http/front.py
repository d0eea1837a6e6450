"""The outermost middleware: it protects the service and its users from other web pages.

- It refuses requests for other hosts.
- If the service has no keys, it refuses changes from a page of another origin: a browser sends such
  a request for any page, and nothing else would detect it.
- It answers preflight requests (CORS), and adds the headers that every answer carries.
- It gives each request its id, for the log lines about it and for its response.

`PollFastPath` follows the same rules for the polls that it answers. But it makes no ids for hits: a
response has the one that its poll came with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.middleware.cors import CORSMiddleware

from app.http.common_headers import NOSNIFF
from app.http.origins import is_same_origin
from app.http.problems import problem
from app.http.request_context import REQUEST_ID, current, read_context

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from fastapi.responses import JSONResponse
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from app.http.forwarded import TrustedProxies
    from app.http.hosts import AllowedHosts

_CLOSE = (b"connection", b"close")

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_SENT = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-None-Match",
    "Last-Event-ID",
    "Prefer",
    "Range",
    "Traceparent",
    "X-Request-Id",
)
_SHOWN = (
    "Accept-Ranges",
    "Age",
    "Cache-Status",
    "Content-Range",
    "ETag",
    "Location",
    "Preference-Applied",
    "Retry-After",
    "WWW-Authenticate",
    "X-Request-Id",
)


class Front:
    """The outermost ASGI middleware.

    Args:
        app: answers the requests that are not refused.
        hosts: the hosts that requests may name.
        origins: the origins whose pages may read and change everything that they have a key for.
        keyed: whether the service has keys, which no browser sends by itself.
        proxies: those that may name the path under which they have the service.
        root_path: this path, if no proxy names it.
        routes: the routes of the service.
        closes_upgrades: whether to close the connection after a request with `Upgrade`. For
            uvicorn's own protocol: it skips the body of such a request, and would take the body for
            the next request.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: AllowedHosts,
        origins: Collection[str],
        *,
        keyed: bool,
        proxies: TrustedProxies,
        root_path: str,
        routes: Sequence[BaseRoute],
        closes_upgrades: bool = False,
    ) -> None:
        self._closes_upgrades = closes_upgrades
        self._proxies = proxies
        self._root_path = root_path
        self._routes = routes
        self._hosts = hosts
        self._origins = frozenset(origins)
        self._keyed = keyed
        self._app = app
        if origins:
            self._app = CORSMiddleware(
                app,
                allow_origins=tuple(origins),
                allow_methods=("GET", "HEAD", "POST"),
                allow_headers=_SENT,
                expose_headers=_SHOWN,
                allow_private_network=True,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request as ASGI middleware."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        context = read_context(scope["headers"])
        added = [NOSNIFF, (REQUEST_ID, context.request_id.encode())]
        if self._closes_upgrades and any(name == b"upgrade" for name, _ in scope["headers"]):
            added.append(_CLOSE)

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ())]
                message["headers"] = headers + [each for each in added if each not in headers]
            await send(message)

        self._set_root_path(scope)
        refusal = self._refusal(scope)
        answer = self._app if refusal is None else refusal
        token = current.set(context)
        try:
            await answer(scope, receive, send_on)
        finally:
            current.reset(token)

    def _set_root_path(self, scope: Scope) -> None:
        """Set `root_path` to the prefix of links. Routing removes it from a path."""
        if scope.get("root_path"):
            return  # set by the server, which has added it to the path
        root = self._root_path
        forwarded = self._proxies.prefix(scope)
        if forwarded is not None and not (root and scope["path"].startswith(f"{root}/")):
            root = forwarded
        scope["root_path"] = root
        path = scope["path"]
        if (
            root
            and (path == root or path.startswith(f"{root}/"))
            and self._serves(path)
            and not self._serves(path.removeprefix(root))
        ):
            # The proxy has removed the prefix, and what is left begins with it: /api of /api/v2.
            scope["path"] = root + path

    def _serves(self, path: str) -> bool:
        """Return whether a route may match: one that begins with the same segment."""
        segment = path.split("/", 2)[1:2]
        return any(getattr(each, "path", "").split("/", 2)[1:2] == segment for each in self._routes)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        path, headers = scope["path"], scope["headers"]
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) != 1:
            # HTTP/1.0 has no Host; its clients are not browsers.
            if hosts or scope.get("http_version") == "1.1":
                return problem(400, "A request names one host, in Host.", instance=path)
        elif not self._hosts.allows(hosts[0]) and not _is_from_test_client(scope, hosts[0]):
            detail = "This service does not answer for that host; see JOBCACHE_ALLOWED_HOSTS."
            return problem(421, detail, instance=path)
        if not self._keyed and scope["method"] not in _SAFE and self._is_foreign(scope):
            detail = "A page of another origin changes nothing here; see JOBCACHE_CORS_ORIGINS."
            return problem(403, detail, instance=path)
        return None

    def _is_foreign(self, scope: Scope) -> bool:
        """Return True if a page of another origin, and not one of `origins`, sent the request.

        Browsers say so in Fetch Metadata, or else in Origin. Other clients send neither.
        """
        headers = scope["headers"]
        origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
        if len(origins) == 1 and (origins[0] in self._origins or "*" in self._origins):
            return False
        sites = [value.strip() for name, value in headers if name == b"sec-fetch-site"]
        if sites:
            return any(site not in {b"same-origin", b"none"} for site in sites)
        if not origins:
            return False
        host = dict(headers).get(b"host", b"").decode("latin-1")
        return len(origins) > 1 or not is_same_origin(origins[0], host)


def _is_from_test_client(scope: Scope, host: bytes) -> bool:
    """Return True if Starlette's test client sent the request, in this process.

    A listening server gives its own address, and no client can make it give this name.
    """
    server = scope.get("server")
    return host == b"testserver" and server is not None and server[0] == "testserver"
