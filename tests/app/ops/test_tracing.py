"""Spans of the service arrive where OpenTelemetry is told to send them; without a rate, none."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from app.ops.tracing import check_installed
from jobcache import SettingsError
from tests.app.process import run, serving
from tests.app.running import Start
from tests.spans import CLIENT


class Collector:
    """Receives spans by OTLP over HTTP.

    Attributes:
        url: for OTEL_EXPORTER_OTLP_ENDPOINT.
        services: the names of the services that have sent spans.
        spans: the attributes of the spans, by the name of the span.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.services: set[str] = set()
        self.spans: dict[str, list[dict[str, Any]]] = {}

    def receive(self, body: bytes) -> None:
        for each in ExportTraceServiceRequest.FromString(body).resource_spans:
            named = {item.key: item.value.string_value for item in each.resource.attributes}
            self.services.add(named["service.name"])
            for scope in each.scope_spans:
                for span in scope.spans:
                    values = {
                        item.key: getattr(item.value, item.value.WhichOneof("value"))
                        for item in span.attributes
                    }
                    self.spans.setdefault(span.name, []).append(values)


@contextmanager
def collecting() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            collector.receive(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(server.server_port)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


def test_spans_of_each_kind_arrive(tmp_path: Path, redis_url: str) -> None:
    with collecting() as collector:
        with serving(
            tmp_path,
            JOBCACHE_TRACE_RATE="1",
            JOBCACHE_BACKEND="redis",
            REDIS_URL=redis_url,
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        ) as process:
            job = process.rendering(renderer="external")
            for _ in range(3):  # the connection itself writes these, without a task
                process.http.get(f"/api/v2/jobs/{job}").raise_for_status()
        assert set(collector.spans) >= {"jobcache.poll", "jobcache.write"}
        assert collector.services == {"jobcache"}
        hits = [
            each for each in collector.spans["jobcache.poll"] if each["jobcache.result"] == "hit"
        ]
        assert len(hits) >= 3
        assert all(each["jobcache.tier"] == "redis" for each in hits)
        assert {each["jobcache.result"] for each in collector.spans["jobcache.write"]} == {
            "published"
        }


async def test_without_a_rate_nothing_is_followed(start: Start) -> None:
    async with start() as service:
        assert service.services.tracing is None
        assert service.services.cache.instrumentation is None
        job = await service.rendering()
        traced = {"traceparent": CLIENT.format(flags="01")}
        response = await service.http.get(f"/api/v2/jobs/{job['id']}", headers=traced)
        assert response.status_code == 200


def test_a_service_without_opentelemetry_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"^JOBCACHE_TRACE_RATE=0\.5: needs opentelemetry"):
        check_installed(0.5)
    check_installed(0.0)
    status, said = run(tmp_path, "serve", JOBCACHE_TRACE_RATE="2")
    assert (status, said.count("\n")) == (2, 1)
    assert "JOBCACHE_TRACE_RATE" in said
