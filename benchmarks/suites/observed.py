"""The cost of a hit over HTTP while the service is observed: by metrics, and by spans."""

from __future__ import annotations

import threading
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import httpx

from benchmarks.interleaving import Subject, take_turns
from benchmarks.results import Section
from benchmarks.service import HOST, Service
from benchmarks.suites.polls import BYTES, CONNECTIONS, Server, made_jobs, subject

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from contextlib import AbstractContextManager, ExitStack

    from benchmarks.drivers import Driver
    from benchmarks.suites.polls import Plan

UNOBSERVED = "memory, polls not counted"
METRICS = "memory, as shipped, scraped every second"
SPANS = "memory, spans at 1 %, at most 100/s"
ALL_SPANS = "memory, spans at 1 %, without a limit"
_EVERY = 1.0  # seconds: as often as anybody does, and fifteen times as often as most


async def observed(stack: ExitStack, driver: Driver, plan: Plan) -> Section:
    """Return the section. `stack` ends the servers."""
    sink = stack.enter_context(_sink())
    spans = {"JOBCACHE_TRACE_RATE": "0.01", "OTEL_EXPORTER_OTLP_ENDPOINT": sink}
    services = {
        UNOBSERVED: (Service(_ON_MEMORY, "benchmarks.uncounted"), "nobody looks at it"),
        METRICS: (Service(_ON_MEMORY), "`/metrics` is requested meanwhile"),
        SPANS: (Service({**_ON_MEMORY, **spans}), "sent to a process that drops them"),
        ALL_SPANS: (
            Service({**_ON_MEMORY, **spans, "JOBCACHE_TRACES_PER_SECOND": "0"}),
            "sent to a process that drops them",
        ),
    }
    for service, _ in services.values():
        stack.enter_context(service)
    subjects = []
    for name, (service, how) in services.items():
        service.wait_until_ready()
        server = Server(
            "limit" if name == UNOBSERVED else "ours",
            how,
            service.port,
            service.stats()["process"],
            "/api/v2/jobs/{}",
            made_jobs(service, 1),
        )
        plain = subject(server, name, driver, plan, 1, costs=True)
        scraping = _scraping(service.port) if name == METRICS else nullcontext
        subjects.append(Subject(name, server.kind, how, _during(scraping, plain)))
    return Section(
        "observed",
        "The cost of a hit with metrics and with spans",
        f"GET over {CONNECTIONS} connections without pause of one job, no two requests alike, a "
        f"document of {BYTES} bytes, one worker",
        "µs of the worker's processor time for each answer",
        more_is_better=False,
        reference=UNOBSERVED,
        driver=driver.words,
        series=await take_turns(subjects, plan.turns),
    )


_ON_MEMORY = {"JOBCACHE_BACKEND": "memory"}


def _during(
    observing: Callable[[], AbstractContextManager[object]], one: Subject
) -> Callable[[], Awaitable[tuple[float, dict[str, Any]]]]:
    async def once() -> tuple[float, dict[str, Any]]:
        with observing():
            return await one.once()

    return once


def _scraping(port: int) -> Callable[[], AbstractContextManager[object]]:
    """Return a block during which the metrics of a service are requested."""

    @contextmanager
    def scraping() -> Iterator[None]:
        ended = threading.Event()

        def scrape() -> None:
            with httpx.Client(base_url=f"http://{HOST}:{port}", timeout=10) as client:
                while True:
                    client.get("/metrics").raise_for_status()
                    if ended.wait(_EVERY):
                        return

        thread = threading.Thread(target=scrape)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    return scraping


@contextmanager
def _sink() -> Iterator[str]:
    """Receive spans, and drop them; yield the URL to send them to."""

    class Sink(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer((HOST, 0), Sink) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{HOST}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
