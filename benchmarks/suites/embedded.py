"""Polls of applications that embed the library, under three servers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from app.devservers import free_port
from benchmarks.asgi import Uvicorn
from benchmarks.embedded_application import PATH
from benchmarks.interleaving import take_turns
from benchmarks.results import Section
from benchmarks.service import HOST, Service
from benchmarks.suites.polls import BYTES, CONNECTIONS, Server, made_jobs, subject

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

    from benchmarks.drivers import Driver
    from benchmarks.results import Kind
    from benchmarks.suites.polls import Plan

COMMANDS = {
    "uvicorn": ("uvicorn", "--host", HOST, "--port", "{port}", "--no-access-log"),
    "granian": ("granian", "--interface", "asgi", "--host", HOST, "--port", "{port}"),
    "hypercorn": ("hypercorn", "--bind", f"{HOST}:{{port}}"),
}
"""The servers, each with one worker."""
PLAIN = "plain ASGI function on {}"
WRAPPED = "FastPath on {}"
REPEATED = "RepeatedPolls on {}"
ROUTES = "PollingRoutes on {}"
SERVICE = "the service's own route on uvicorn"
"""The same work behind the middleware of the service."""
_WAYS: dict[str, tuple[str, Kind, str]] = {
    PLAIN: ("plain", "limit", "the same document, from a constant"),
    WRAPPED: ("wrapped", "ours", "the outermost wrapper"),
    REPEATED: ("repeated", "ours", "around an application of FastAPI"),
    ROUTES: ("routes", "ours", "routes of FastAPI"),
}


async def embedded(
    stack: ExitStack, driver: Driver, plan: Plan, servers: Sequence[str] = tuple(COMMANDS)
) -> Section:
    """The section. `stack` ends the servers."""
    started = {}
    for server in servers:
        for way, (name, kind, how) in _WAYS.items():
            port = free_port()
            words = [word.format(port=port) for word in COMMANDS[server]]
            application = f"benchmarks.embedded_application:{name}"
            command = [sys.executable, "-m", *words, application]
            root = {"PYTHONPATH": str(Path(__file__).parents[2])}
            process = stack.enter_context(Uvicorn(command, port, root))
            started[way.format(server)] = process, kind, how
    settings = {"JOBCACHE_BACKEND": "memory", "JOBCACHE_FAST_PROTOCOL": "0"}
    service = stack.enter_context(Service(settings))
    subjects = []
    for name, (process, kind, how) in started.items():
        process.wait_until_it_listens()
        found = Server(kind, how, process.port, None, PATH, [1])
        subjects.append(subject(found, name, driver, plan, 1))
    service.wait_until_ready()
    path = "/api/v2/jobs/{}?asked=of-the-route"  # the fast path leaves a query to the application
    process_id, jobs = service.stats()["process"], made_jobs(service, 1)
    found = Server("ours", "asked past the fast path", service.port, process_id, path, jobs)
    subjects.append(subject(found, SERVICE, driver, plan, 1))
    return Section(
        "embedded",
        "Polls of applications that embed the library",
        f"GET over {CONNECTIONS} connections without pause, all of one document on memory, no two "
        f"requests alike, a document of about {BYTES} bytes, one worker",
        "answers/s",
        more_is_better=True,
        reference=PLAIN.format(servers[0]),
        driver=driver.words,
        series=await take_turns(subjects, plan.turns),
    )
