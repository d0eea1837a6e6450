"""Whole polls over HTTP: all servers run at the same time and take turns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

from benchmarks.asgi import Uvicorn
from benchmarks.backends import EVERY_BACKEND
from benchmarks.constant import constant_server
from benchmarks.generator import WrongAnswer
from benchmarks.handwritten import DATABASE
from benchmarks.interleaving import Subject, take_turns
from benchmarks.nginx import micro_cache, nginx_program
from benchmarks.parser_only import parser_server
from benchmarks.peers.routes import REDIS, ROUTE
from benchmarks.peers.table import ROUTES, absent
from benchmarks.process_cpu import processor_seconds
from benchmarks.results import Missing, Section
from benchmarks.service import HOST, Service

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import ExitStack

    from app.devservers import PostgresServer
    from benchmarks.drivers import Driver, Request
    from benchmarks.results import Kind

PLAIN = "plain ASGI function"
PARSER = "uvicorn's parser, and a constant"
HANDWRITTEN = "FastAPI route, no cache"
NULL_ON_SQLITE = "null on SQLite"
WITHOUT_PROTOCOL = "memory without the fast protocol"
NGINX = "nginx, kept for 1 s, before null"
NOT_MODIFIED = "{}, 304"
"""The name of a backend that is asked with `If-None-Match`."""
NUMBER = "X-Request-Id: %d"
"""A header that makes each request different from all others, as those of real clients are."""

OURS = (*EVERY_BACKEND, WITHOUT_PROTOCOL, NULL_ON_SQLITE)
"""The service, with each cache."""
OF_ONE_JOB = ("null", "memory", "redis", "tiered", "postgres", PLAIN, PARSER, HANDWRITTEN, NGINX)
"""The servers that are also asked for one job only."""

CONNECTIONS = 32
JOBS = 100
BYTES = 700
"""Of the document."""
SCALE = (1, 8, 32, 128, 512)
"""Connections."""

_PATIENCE = 15.0  # seconds for the storyboards of all jobs


@dataclass(frozen=True)
class Server:
    """A server that answers polls.

    Attributes:
        kind: see `benchmarks.results.Series`.
        how: see `benchmarks.results.Series`.
        port: of loopback.
        pid: the process that answers; None where others do too.
        path: of a job's poll, to be formatted with its number.
        jobs: numbers of the jobs that it knows.
    """

    kind: Kind
    how: str
    port: int
    pid: int | None
    path: str
    jobs: Sequence[int]

    def requests(self, count: int) -> list[Request]:
        """Polls of so many of the jobs."""
        return [(self.path.format(job), NUMBER) for job in self.jobs[:count]]


@dataclass
class Servers:
    """The servers by name, and the subjects that are missing."""

    found: dict[str, Server] = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)


def started(
    stack: ExitStack,
    postgres: PostgresServer,
    redis_url: str,
    *,
    peers: bool,
    jobs: int,
    services: Sequence[str] = OURS,
    memcached_url: str | None = None,
) -> Servers:
    """Start them all; `stack` ends them.

    Args:
        stack: closed by the caller.
        postgres: where each service gets a database of its own.
        redis_url: the services' and the peers'.
        peers: whether to start the peers, too.
        jobs: how many each service is to know.
        services: which of them; those on null and on memory are among them.
        memcached_url: a private server; None: it is not installed.
    """
    servers = Servers()
    running = {}
    for name in services:
        settings = {"JOBCACHE_BACKEND": name.split()[0], "REDIS_URL": redis_url}
        if name == "memcached":
            if memcached_url is None:
                servers.missing.append(Missing(name, "not installed"))
                continue
            settings["MEMCACHED_URL"] = memcached_url
        if name != NULL_ON_SQLITE:
            plain_name = name.replace(" ", "_")
            database = f"polls_{plain_name}"
            postgres.create_database(database)
            # all in one Redis, where jobs of different databases have the same numbers
            settings |= {
                "DATABASE_URL": postgres.url(database),
                "JOBCACHE_PREFIX": f"{plain_name}:",
            }
        if name == WITHOUT_PROTOCOL:
            settings["JOBCACHE_FAST_PROTOCOL"] = "0"
        running[name] = stack.enter_context(Service(settings))
    for name, service in running.items():
        service.wait_until_ready()
        database = "SQLite" if name == NULL_ON_SQLITE else "PostgreSQL"
        servers.found[name] = Server(
            "ours",
            f"the service as shipped, on {database}",
            service.port,
            service.stats()["process"],
            "/api/v2/jobs/{}",
            made_jobs(service, jobs),
        )
    null = servers.found["null"]
    url = f"http://{HOST}:{running['memory'].port}{servers.found['memory'].requests(1)[0][0]}"
    httpx.get(url)  # a hit is to be had from now on
    poll = httpx.get(url, headers={"Accept-Encoding": "identity"})
    plain = stack.enter_context(constant_server(poll))
    servers.found[PLAIN] = Server(
        "limit", "the same bytes and headers, from a constant", plain.port, plain.pid, "/{}", [1]
    )
    parser = stack.enter_context(parser_server(poll))
    how = "the same bytes; nothing looks at the request"
    servers.found[PARSER] = Server("limit", how, parser.port, parser.pid, "/{}", [1])
    _add_routes(servers, stack, postgres.url("polls_null"), redis_url, peers=peers)
    program = nginx_program()
    if program is None:
        servers.missing.append(Missing("nginx", "not installed"))
    else:
        port = stack.enter_context(micro_cache(program, null.port))
        servers.found[NGINX] = Server(
            "limit", "one worker; up to a second stale", port, None, null.path, null.jobs
        )
    return servers


def _add_routes(
    servers: Servers, stack: ExitStack, database_url: str, redis_url: str, *, peers: bool
) -> None:
    jobs = servers.found["null"].jobs
    environment = {DATABASE: database_url, REDIS: redis_url}
    started = {
        HANDWRITTEN: stack.enter_context(
            Uvicorn.factory("benchmarks.handwritten:make", environment)
        )
    }
    kinds: dict[str, tuple[Kind, str]] = {
        HANDWRITTEN: ("limit", "the same SELECT and document, on PostgreSQL")
    }
    if peers:
        missing = absent()
        servers.missing += missing
        for name, route in ROUTES.items():
            if route.package not in {one.subject for one in missing}:
                settings = {**environment, ROUTE: name}
                server = Uvicorn.factory("benchmarks.peers.routes:make", settings)
                started[name] = stack.enter_context(server)
                kinds[name] = route.kind, route.how
    for name, server in started.items():
        try:
            server.wait_until_it_listens()
            _check(server.port, f"/jobs/{jobs[0]}")
        except (AssertionError, WrongAnswer, httpx.HTTPError) as error:
            if name == HANDWRITTEN:
                raise
            servers.missing.append(Missing(f"{name} over HTTP", str(error)[:200]))
            continue
        kind, how = kinds[name]
        servers.found[name] = Server(kind, how, server.port, server.pid, "/jobs/{}", jobs)


def _check(port: int, path: str) -> None:
    for _ in range(2):  # what is loaded, and what is cached
        answer = httpx.get(f"http://{HOST}:{port}{path}", timeout=10)
        if answer.status_code != 200 or "version" not in answer.json():
            raise WrongAnswer(f"{path} was answered {answer.status_code}: {answer.text[:120]}")


def made_jobs(service: Service, count: int) -> list[int]:
    """Make so many jobs, all of them waiting for approval, with documents of `BYTES` bytes."""
    prompt = "A fox crosses a frozen river at night, meets a bear and shares its fish. "
    body = {"client_id": "acme", "prompt": prompt}
    first = service.call("POST", "/api/v2/jobs", body)["id"]
    service.wait_for_storyboard(first)
    length = len(httpx.get(f"{service.url}/api/v2/jobs/{first}").content)
    body["prompt"] = (prompt * 10)[: len(prompt.strip()) + BYTES - length - 2]
    made: list[int] = [service.call("POST", "/api/v2/jobs", body)["id"] for _ in range(count)]
    for job in made:
        service.wait_for_storyboard(job)
    return made


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        turns: of all subjects.
        seconds: of each in a turn.
    """

    turns: int
    seconds: float


async def one_document(servers: Servers, driver: Driver, plan: Plan) -> Section:
    """All connections ask for the same job."""
    found = servers.found
    chosen = [name for name in OF_ONE_JOB if name in found]
    return Section(
        "polls-one",
        "Polls of one document",
        f"GET over {CONNECTIONS} connections without pause, all of the same job, no two requests "
        f"alike, a document of {BYTES} bytes, one worker",
        "answers/s",
        more_is_better=True,
        reference=PLAIN,
        driver=driver.words,
        series=await take_turns(
            [subject(found[name], name, driver, plan, 1) for name in chosen], plan.turns
        ),
    )


async def many_documents(servers: Servers, driver: Driver, plan: Plan) -> Section:
    """The connections ask for the jobs in turn."""
    found = servers.found
    subjects = [subject(server, name, driver, plan, JOBS) for name, server in found.items()]
    subjects += [
        _conditional(found[name], name, driver, plan, JOBS)
        for name in ("memory", "tiered", "redis")
        if name in found
    ]
    known = len(found["null"].jobs)
    return Section(
        "polls-many",
        f"Polls of {min(JOBS, known)} documents",
        f"GET over {CONNECTIONS} connections without pause, of {min(JOBS, known)} jobs in turn, "
        f"no two requests alike, documents of {BYTES} bytes, one worker",
        "answers/s",
        more_is_better=True,
        reference=PLAIN,
        driver=driver.words,
        series=await take_turns(subjects, plan.turns, missing=servers.missing),
    )


async def connections(
    servers: Servers, driver: Driver, plan: Plan, scale: Sequence[int] = SCALE
) -> Section:
    """The processor time of a poll, by the number of connections."""
    subjects = [
        subject(servers.found[name], name, driver, plan, 1, connections=count, costs=True)
        for name in ("memory", "tiered", PLAIN)
        if name in servers.found
        for count in scale
    ]
    return Section(
        "connections",
        "The cost of a hit by the number of connections",
        f"GET without pause of one job, no two requests alike, a document of {BYTES} bytes, "
        "one worker",
        "µs of the worker's processor time for each answer",
        more_is_better=False,
        reference=PLAIN,
        scale="connections",
        driver=driver.words,
        series=await take_turns(subjects, plan.turns),
    )


def _conditional(server: Server, name: str, driver: Driver, plan: Plan, jobs: int) -> Subject:
    requests = []
    for path, _ in server.requests(jobs):
        answer = httpx.get(f"http://{HOST}:{server.port}{path}", headers={"Accept-Encoding": "x"})
        requests.append((path, f"If-None-Match: {answer.headers['ETag']}\r\n{NUMBER}"))
    once = _turn(server, requests, driver, plan, status=304)
    return Subject(NOT_MODIFIED.format(name), server.kind, "asked with the ETag it has", once)


def subject(
    server: Server,
    name: str,
    driver: Driver,
    plan: Plan,
    jobs: int,
    *,
    connections: int | None = None,
    costs: bool = False,
) -> Subject:
    """Return the subject that polls so many of the jobs of a server."""
    once = _turn(server, server.requests(jobs), driver, plan, connections=connections, costs=costs)
    return Subject(name, server.kind, server.how, once, connections)


def _turn(
    server: Server,
    requests: Sequence[Request],
    driver: Driver,
    plan: Plan,
    *,
    status: int = 200,
    connections: int | None = None,
    costs: bool = False,
) -> Callable[[], Awaitable[tuple[float, dict[str, Any]]]]:
    expected = _bytes_of(server, requests[0], status)
    count = CONNECTIONS if connections is None else connections

    async def once() -> tuple[float, dict[str, Any]]:
        before = None if server.pid is None else processor_seconds(server.pid)
        pace = driver.load(server.port, requests, connections=count, seconds=plan.seconds)
        # Neither generator looks at each status: what is no answer to a poll has another size.
        if not 0.8 < pace.bytes / expected < 1.25:
            raise WrongAnswer(f"answers of {pace.bytes:.0f} bytes instead of {expected:.0f}")
        details: dict[str, Any] = {
            "per_second": pace.per_second,
            "generator_busy": pace.busy,
            "latency_ms": pace.latency_ms,
        }
        spent = 0.0
        if server.pid is not None and before is not None:
            spent = 1e6 * (processor_seconds(server.pid) - before) / pace.answers
            details["processor_us"] = spent
        return (spent if costs else pace.per_second), details

    return once


def _bytes_of(server: Server, request: Request, status: int) -> float:
    path, lines = request
    headers = {"Accept-Encoding": "x"}
    for line in lines.splitlines():
        name, _, value = line.partition(": ")
        headers[name] = value
    answer = httpx.get(f"http://{HOST}:{server.port}{path}", headers=headers)
    if answer.status_code != status:
        raise WrongAnswer(f"{path} was answered {answer.status_code} instead of {status}")
    head = sum(len(name) + len(text) + 4 for name, text in answer.headers.raw)
    return head + 19 + len(answer.content)
