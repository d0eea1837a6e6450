"""The report as one HTML page without external resources."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from loadtests.report import figures, plots
from loadtests.report.comparison import compare
from loadtests.report.tables import ANSWERS, BACKENDS, COSTS, REQUESTS, backends, cells

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from loadtests.report.comparison import Verdict
    from loadtests.report.document import Bucket, Described, Document, Measurement


_NOISE = 20.0
"""Processor time of other programs, in percent of one core, above which a run is noisy."""


Drawn: TypeAlias = "Mapping[str, Mapping[str, str]]"
"""Plots as elements of a page, by scenario and name."""


def html(document: Document, drawn: Drawn) -> str:
    """Return the page, with those plots of its scenarios that have been drawn."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        document=document,
        problems=document.all_problems,
        noisy=[run.name for run in document.runs if (figures.others_percent(run) or 0) > _NOISE],
        noise=f"{_NOISE:g} %",
        backends_head=list(BACKENDS),
        backends_rows=[cells(BACKENDS, each) for each in backends(document)],
        verdicts=[_verdict(verdict) for verdict in compare(document)],
        sections=[
            _section(document, scenario, drawn.get(scenario.name, {}))
            for scenario in document.scenarios
        ],
        answers_head=list(ANSWERS),
        costs_head=list(COSTS),
        requests_head=["backend", *REQUESTS],
    )


def _verdict(verdict: Verdict) -> dict[str, str]:
    goal = verdict.goal
    bound = f"{'at least' if goal.at_least else 'at most'} {goal.bound:g} {goal.unit}".strip()
    said = {True: "met", False: "missed", None: "not judged"}[verdict.met]
    return {
        "figure": goal.figure,
        "run": verdict.run.name,
        "first_version": goal.first_version,
        "bound": bound,
        "value": f"{verdict.value:.4g} {goal.unit}".strip(),
        "met": said,
    }


def _section(
    document: Document, scenario: Described, drawn: Mapping[str, str]
) -> dict[str, object]:
    runs = [run for run in document.runs if run.scenario == scenario.name]
    return {
        "scenario": scenario,
        "answers": [cells(ANSWERS, run) for run in runs],
        "costs": [cells(COSTS, run) for run in runs],
        "requests": [
            [run.backend, *cells(REQUESTS, requests)] for run in runs for requests in run.requests
        ],
        "plots": [Markup(svg) for svg in drawn.values()],  # noqa: S704 - ours
    }


def draw(document: Document) -> Drawn:
    """Draw the plots of all scenarios."""
    return {scenario.name: _draw(document, scenario.name) for scenario in document.scenarios}


def _draw(document: Document, scenario: str) -> Mapping[str, str]:
    runs = [run for run in document.runs if run.scenario == scenario]
    lines: Mapping[str, Sequence[Bucket]] = {r.backend: r.polls_ms for r in runs if r.polls_ms}
    drawn = {"durations": plots.distribution(lines)} if lines else {}
    marks = [(fault.second, fault.text) for run in runs for fault in run.faults]
    if runs:
        for name, (unit, series) in _EACH_SECOND.items():
            drawn[name] = plots.over_time(unit, {run.backend: series(run) for run in runs}, marks)
    return drawn


_EACH_SECOND: Mapping[str, tuple[str, Callable[[Measurement], figures.Series]]] = {
    "hits": ("hit rate, %", figures.hit_rates),
    "statements": ("statements to the database, per second", figures.query_rates),
    "processor": (
        "processor time of the service, % of a core",
        lambda run: figures.cpu_percent(run, "service"),
    ),
}
