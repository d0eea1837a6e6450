"""The application: `create_app(settings)`, and the factories that servers call."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from app import container, environment, log_format, settings
from app.auth.middleware import Authenticator, AuthMiddleware
from app.auth.openapi import describe
from app.http import loopback_only, openapi, problems
from app.http.access_log import AccessLog, LoggedApp
from app.http.body_limit import BodyLimit
from app.http.common_headers import CommonHeaders
from app.http.forwarded import TrustedProxies, read_prefix
from app.http.front import Front
from app.http.garbage_collection import tune_garbage_collection
from app.http.hosts import LOOPBACK, AllowedHosts, read_hosts
from app.http.lifespan_state import FAST_PATH, LIMITS
from app.http.origins import read_origins
from app.http.routing import with_heads
from app.jobs import problems as job_problems
from app.jobs.api import routes as jobs
from app.jobs.logged_fast_path import LoggedPollFastPath
from app.jobs.poll_fast_path import PollFastPath
from app.ops import routes as ops
from app.ops.greeting import greeting_elsewhere
from app.ops.log_limit import limit_request_logs
from app.web import routes as web
from jobcache import JobCacheError, SettingsError
from jobcache.http.deferred_response import DeferredResponseMiddleware

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from app.settings import Settings


logger = logging.getLogger("app")

_CANNOT_START = 3
"""The exit status after which neither uvicorn nor gunicorn starts the process again."""


class Application(FastAPI):
    """FastAPI, behind the fast path for polls.

    Attributes:
        fast_path: answers polls.
        front: the outermost middleware, for all other requests; the access log may be around it.
        local_only: whether to answer on loopback only.
        started: True once it has been started. It may be stopped, and started again.
    """

    fast_path: PollFastPath
    front: ASGIApp
    local_only: bool
    started: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or the lifespan, by ASGI."""
        if scope["type"] == "lifespan":
            await super().__call__(scope, receive, partial(_say_briefly, send))
            return
        if self.local_only and not loopback_only.is_local(scope.get("server")):
            await loopback_only.refuse(scope, receive, send)
            return
        answer = self.fast_path.answer(scope, receive, send)
        if answer is None:
            answer = self.front(scope, receive, send)
        await answer

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that the front has not refused."""
        await super().__call__(scope, receive, send)


async def _say_briefly(send: Send, message: Message) -> None:
    """Pass on a message of the lifespan; an error of the service, without its traceback."""
    error = sys.exception()
    if message["type"] == "lifespan.startup.failed" and isinstance(error, JobCacheError):
        message = {**message, "message": f"The service cannot start: {error}"}
    await send(message)


def create_app(
    chosen: Settings, *, closes_upgrades: bool = False, tables_checked: bool = False
) -> Application:
    """Return the service with the chosen settings. It connects to nothing until it is started.

    Args:
        chosen: the settings.
        closes_upgrades: for a server whose protocol is not the service's own; see `Front`.
        tables_checked: as for `container.running`.

    Raises:
        SettingsError: the cache backend cannot be set up so, or the keys cannot be read.
    """
    services = container.build(chosen)
    proxies = TrustedProxies(chosen.forwarded_allow_ips)
    authenticator = Authenticator(services.keys, services.rate, proxies)
    keyed = services.keys is not None
    hosts = AllowedHosts(_hosts(chosen, keyed=keyed))
    origins = read_origins(chosen.cors_origins)
    root_path = read_prefix(chosen.root_path)
    local_only = not keyed and not chosen.insecure
    limits = chosen.connection_limits

    @asynccontextmanager
    async def lifespan(this: Application) -> AsyncIterator[Mapping[str, Any]]:
        if this.started:
            # Its services have been closed, and belonged to an earlier event loop. So this object
            # takes the state of a new application with the same settings.
            another = create_app(
                chosen, closes_upgrades=closes_upgrades, tables_checked=tables_checked
            )
            vars(this).update(vars(another))
            async with another.router.lifespan_context(another) as state:
                yield {} if state is None else state
            return
        this.started = True
        async with container.running(services, tables_checked=tables_checked):
            shared: dict[str, Any] = {LIMITS: limits}
            yield {**shared, FAST_PATH: this.fast_path} if chosen.fast_protocol else shared

    app = Application(
        title="jobcache",
        version="2",
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect would name the host of the Host header
        docs_url=None,  # FastAPI's pages load files from other hosts; see app.web
        redoc_url=None,
    )
    app.state.services = services
    app.add_middleware(DeferredResponseMiddleware)
    app.add_middleware(BodyLimit)  # outside of the one above, and so on
    app.add_middleware(AuthMiddleware, authenticator=authenticator)
    app.front = Front(
        app.respond,
        hosts,
        origins,
        keyed=keyed,
        proxies=proxies,
        root_path=root_path,
        routes=app.routes,
        closes_upgrades=closes_upgrades,
    )
    fast_path: Callable[..., PollFastPath] = PollFastPath
    if chosen.access_log:
        log = AccessLog(proxies, as_json=chosen.log_format == "json")
        app.front = LoggedApp(app.front, log)
        fast_path = partial(LoggedPollFastPath, log)
    app.fast_path = fast_path(
        app.front,
        services.jobs,
        authenticator,
        hosts,
        CommonHeaders(origins),
        root_path=root_path,
        local_only=local_only,
        instrumentation=services.cache.instrumentation,
    )
    app.local_only = local_only
    problems.install(app)
    job_problems.install(app)
    for router in (
        jobs.router(services.jobs, services.polling, chosen.videos),
        ops.router(
            services.cache,
            services.database,
            services.reports,
            services.unfinished,
            services.keys,
        ),
        web.router(),
    ):
        # Not `include_router`, which creates each route once more at the first request.
        app.routes.extend(with_heads(router.routes))
    openapi.publish(app)
    describe(app, keyed=keyed, limited=services.rate is not None)
    return app


def _hosts(chosen: Settings, *, keyed: bool) -> list[str]:
    """Return the hosts that requests may name: any, or those on loopback and of the settings."""
    if chosen.allowed_hosts:
        return [*LOOPBACK, *read_hosts(chosen.allowed_hosts)]
    if keyed:
        return ["*"]
    own = [] if chosen.host in {"", "0.0.0.0", "::"} else [chosen.host]  # noqa: S104 - names all
    return [*LOOPBACK, *own]


def worker() -> Application:
    """Return the service for a worker of `python -m app serve`, which has prepared all else."""
    log_format.configure(os.environ)  # workers are started anew, not forked
    return _made(settings.load(), tables_checked=True)


def _made(
    chosen: Settings, *, closes_upgrades: bool = False, tables_checked: bool = False
) -> Application:
    limit_request_logs()
    made = create_app(chosen, closes_upgrades=closes_upgrades, tables_checked=tables_checked)
    tune_garbage_collection()
    return made


def from_environment() -> Application:
    """Return the service with the settings of `.env` and the environment, for any ASGI server.

    Raises:
        SystemExit: a setting is wrong; one line on standard error says which. Servers pass this on
            without a traceback, and do not try again.
    """
    try:
        environment.prepare()
        chosen = settings.load()
        made = _made(chosen, closes_upgrades=True)
    except SettingsError as error:
        print(error, file=sys.stderr)  # noqa: T201 - instead of a traceback in the log
        raise SystemExit(_CANNOT_START) from error
    logger.info("%s", greeting_elsewhere(chosen))
    return made


def __getattr__(name: str) -> Application:
    """Create `app` when a server first reads it: importing this module does nothing."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = globals()["app"] = from_environment()
    return made


def __dir__() -> list[str]:
    """Return the names of this module, with `app`, which `fastapi run` searches for."""
    return sorted({*globals(), "app"})
