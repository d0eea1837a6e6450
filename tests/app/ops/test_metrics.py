"""`/metrics`: a linter accepts it, the documents name what it has, and it counts what happened."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app.db.errors import DatabaseUnavailable
from app.jobs.states import MOVING
from app.jobs.storage import UnfinishedJobs
from app.ops.measuring import PROCESS_UP, SERVICE_METRICS, UNFINISHED_JOBS, WAITING_JOBS
from app.ops.metrics import JobCounter
from jobcache.observability.metrics import Metric
from tests.app.ops.lint import complaints
from tests.app.running import Service, Start, choosing
from tests.subjects import FakeClock

ROOT = Path(__file__).parents[3]
ALL = (*SERVICE_METRICS, UNFINISHED_JOBS, WAITING_JOBS, PROCESS_UP)

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(page: str) -> Samples:
    return {
        (each.name, frozenset(each.labels.items())): each.value
        for family in text_string_to_metric_families(page)
        for each in family.samples
    }


class Scraped:
    """A page of metrics."""

    def __init__(self, page: str) -> None:
        self.page = page
        self.samples = samples(page)

    def __call__(self, name: str, **labels: str) -> float:
        return self.samples[name, frozenset(labels.items())]


async def scrape(service: Service) -> Scraped:
    response = await service.http.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return Scraped(response.text)


@pytest.fixture(params=["memory", "tiered"])
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    return choosing(request, request.param)


async def test_a_linter_accepts_the_page(start: Start, environment: dict[str, str]) -> None:
    async with start(**environment) as service:
        job = await service.rendering()
        await service.job(job["id"])
        page = (await scrape(service)).page
    assert complaints(page) == []
    names = set(re.findall(r"^# TYPE (\S+)", page, re.MULTILINE))
    sums = {name for name in names if not name.startswith("jobcache_process_")}
    missing = {metric.name for metric in ALL} - sums - {PROCESS_UP.name}
    tiers = {each for each in missing if "feed" in each or "ahead" in each}
    of_postgres = {"jobcache_feed_queue_usage"}
    assert missing == (tiers if environment["JOBCACHE_BACKEND"] == "memory" else of_postgres)
    each = {
        metric.name.replace("jobcache_", "jobcache_process_", 1)
        for metric in SERVICE_METRICS
        if metric.kind != "histogram" and metric.name in sums
    }
    assert names - sums == each | {PROCESS_UP.name}


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("# HELP reads Reads.\n# TYPE reads counter\nreads 1\n", "reads is a counter"),
        ("# TYPE reads_total counter\nreads_total 1\n", "no help"),
        ("# HELP a_total A.\n# TYPE a_total gauge\na_total 1\n", "is a gauge"),
        ("# HELP a_ms A.\n# TYPE a_ms gauge\na_ms 1\n", "base unit"),
        ('# HELP a A.\n# TYPE a gauge\na{b="1"} 1\na 2\n', "different"),
        ("# HELP A A.\n# TYPE A gauge\nA 1\n", "small letters"),
        (
            "# HELP a A.\n# TYPE a gauge\n" + "".join(f'a{{b="{n}"}} 1\n' for n in range(99)),
            "bound",
        ),
    ],
)
def test_the_linter_complains(page: str, complaint: str) -> None:
    assert any(complaint in each for each in complaints(page)), complaints(page)


async def test_it_counts_what_happened(start: Start, environment: dict[str, str]) -> None:
    polls, fences = "jobcache_polls_total", "jobcache_fences_total"
    hits = {"name": "jobcache_reads_total", "tier": "memory", "result": "hit"}
    changes = {"name": "jobcache_job_changes_total", "status": "rendering"}
    async with start(**environment) as service:
        job = await service.rendering()
        path = f"/api/v2/jobs/{job['id']}"
        while True:
            tag = (await service.http.get(path)).headers["etag"]
            before = await scrape(service)
            for _ in range(5):
                await service.http.get(path)
            for _ in range(7):
                response = await service.http.get(path, headers={"If-None-Match": tag})
                assert response.status_code == 304
            after = await scrape(service)
            if after(**hits) == before(**hits) + 12:
                break  # no report of the feed has emptied the local tier meanwhile
        assert after(polls, outcome="200") == before(polls, outcome="200") + 5
        assert after(polls, outcome="304") == before(polls, outcome="304") + 7
        duration = "jobcache_hit_duration_seconds_count"
        assert after(duration) == before(duration) + 12
        assert after("jobcache_loads_total") == before("jobcache_loads_total")
        await service.post(f"{job['id']}/progress", percent=5)
        changed = await scrape(service)
        assert changed(**changes) == after(**changes) + 1
        assert changed(fences) == after(fences) + 1
        assert changed(UNFINISHED_JOBS.name, status="rendering") == 1
        assert changed(WAITING_JOBS.name) == 0  # nobody else renders it
        assert changed(PROCESS_UP.name, process="0") == 1


async def test_long_polls_are_counted_apart(start: Start) -> None:
    async with start() as service:
        job = await service.rendering()
        path = f"/api/v2/jobs/{job['id']}"
        tag = (await service.http.get(path)).headers["etag"]
        before = await scrape(service)
        held = {"If-None-Match": tag, "Prefer": "wait=1"}
        assert (await service.http.get(path, headers=held)).status_code == 304
        after = await scrape(service)
    polls = "jobcache_polls_total"
    for outcome, more in (("long_poll_timed_out", 1), ("304", 0), ("long_poll_answered", 0)):
        assert after(polls, outcome=outcome) == before(polls, outcome=outcome) + more
    seconds = "jobcache_long_poll_duration_seconds"
    assert after(f"{seconds}_count") == before(f"{seconds}_count") + 1
    assert after(f"{seconds}_bucket", le="0.536870912") == before(f"{seconds}_count")
    assert after(f"{seconds}_sum") >= 0.9


async def test_the_statistics_are_the_same_numbers(start: Start) -> None:
    async with start() as service:
        job = await service.rendering()
        await service.job(job["id"])
        stats = await service.stats()
        scraped = await scrape(service)
    statistics = stats["statistics"]
    reads = "jobcache_reads_total"
    assert statistics["hits"] == scraped(reads, tier="memory", result="hit")
    assert statistics["misses"] == scraped(reads, tier="memory", result="miss")
    assert statistics["fences"] == scraped("jobcache_fences_total")
    (process,) = stats["processes"]
    assert process["statistics"]["hits"] == statistics["hits"]
    assert process["process"] == stats["process"]


async def test_jobs_are_counted_once_in_a_while_and_not_while_the_database_is_away() -> None:
    clock, away, calls = FakeClock(), False, 0

    async def count() -> UnfinishedJobs:
        nonlocal calls
        calls += 1
        if away:
            raise DatabaseUnavailable("away")
        return UnfinishedJobs(dict.fromkeys(MOVING, 3), 2)

    counter = JobCounter(count, clock)
    assert await counter.unfinished() == UnfinishedJobs(dict.fromkeys(MOVING, 3), 2)
    clock.now += 9
    assert await counter.unfinished() is not None
    assert calls == 1
    away = True
    clock.now += 1
    assert await counter.unfinished() is None
    assert calls == 2


# --- documents, the dashboard and the rules ---


def test_the_page_lists_every_metric_as_the_code_declares_it() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    rows = re.findall(r"^\| `(jobcache_\w+)` \| (\w+) \| (.*?) \| (.+?) \|$", text, re.MULTILINE)
    listed = {
        name: (kind, tuple(re.findall(r"`(\w+)`", labels)), sentence)
        for name, kind, labels, sentence in rows
    }
    assert listed == {
        metric.name: (
            metric.kind,
            (*metric.labels, *(("process",) if metric is PROCESS_UP else ())),
            metric.help,
        )
        for metric in ALL
    }


def series(metric: Metric) -> set[str]:
    if metric.kind == "histogram":
        return {f"{metric.name}_{part}" for part in ("bucket", "sum", "count")}
    return {metric.name, metric.name.replace("jobcache_", "jobcache_process_", 1)}


def expressions() -> Iterator[tuple[str, str]]:
    dashboard = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text("utf-8"))
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus-rules.yaml").read_text("utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def test_the_dashboard_and_the_rules_name_metrics_that_exist() -> None:
    known: set[str] = set().union(*map(series, ALL))
    named: set[str] = set()
    for title, expression in expressions():
        used = set(re.findall(r"\bjobcache_\w+", expression))
        assert used or re.match(r"up\b", expression), title
        assert used <= known, title
        named |= used
    assert len(named) > 20


def test_the_dashboard_and_the_rules_use_labels_that_exist() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ((?:`|of a job).+) \|$", text, re.MULTILINE)
    values = {label: set(re.findall(r"`(\w+)`", listed)) for label, listed in rows}
    for title, expression in expressions():
        named = set(re.findall(r"\bjobcache_\w+", expression))
        of_metrics = {
            label
            for metric in ALL
            if named & {*series(metric), metric.name}
            for label in metric.labels
        }
        if any(name.startswith("jobcache_process_") for name in named):
            of_metrics.add("process")
        matched = re.findall(r"(\w+)\s*=~?\"([^\"]*)\"", expression)
        grouped = re.findall(r"\b(?:by|without)\s*\(([^)]*)\)", expression)
        used = {each.strip() for group in grouped for each in group.split(",")}
        used |= {label for label, _ in matched}
        assert used <= of_metrics | {"job", "instance", "le"}, title
        for label, value in matched:
            if label in of_metrics:
                assert set(value.split("|")) <= values[label], title


def test_each_rule_says_what_happens_and_what_to_do() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus-rules.yaml").read_text("utf-8"))
    found: list[Any] = [rule for group in rules["groups"] for rule in group["rules"]]
    assert found
    for rule in found:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}, rule
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "description"}


def test_each_panel_has_a_place_of_its_own() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text("utf-8"))
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not taken & cells, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["description"], panel["title"]
