"""The report of a run: Markdown, and JSON with more details."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from benchmarks.machine import surroundings
from loadtests.freshness.checker import Kind
from loadtests.freshness.faults import FAULTS
from loadtests.freshness.tally import PHASES, Tally, total
from loadtests.percentiles import percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from loadtests.freshness.run import Plan, RunResult
    from loadtests.freshness.tally import Phase

_STALE = (Kind.STALE_ACKNOWLEDGED, Kind.STALE_SEEN)
_NONE = "-"


def _others(tally: Tally) -> str:
    names = [kind for kind in Kind if kind not in {*_STALE, Kind.BACKWARD}]
    found = [f"{tally.violations[kind]} {kind}" for kind in names if tally.violations[kind]]
    return ", ".join(found) or "0"


def _bounded(tally: Tally) -> str:
    if tally.bound is None:
        return _NONE
    stale = max(tally.bounded[kind] for kind in _STALE)
    ages = " / ".join(f"{tally.worst[phase]:.2f}" for phase in PHASES)
    return f"{stale}, {ages} s of {tally.bound:g} s"


def _not_answered(tally: Tally) -> str:
    found = [f"{count} x {status}" for status, count in sorted(tally.statuses.items())]
    if tally.unanswered:
        found.append(f"{tally.unanswered} x no connection")
    return ", ".join(found) or "0"


def _times(phase: Phase) -> Callable[[Tally], str]:
    def shown(tally: Tally) -> str:
        measured = _percentiles(tally, phase)
        return " / ".join(_NONE if value is None else f"{value:.1f}" for value in measured.values())

    return shown


def _percentiles(tally: Tally, phase: Phase) -> dict[str, float | None]:
    times = list(tally.times[phase])
    found = {name: percentile(times, at) for name, at in (("p50", 50), ("p99", 99), ("max", 100))}
    return {name: None if value is None else 1000 * value for name, value in found.items()}


_COLUMNS: dict[str, Callable[[Tally], str]] = {
    "times": lambda tally: str(tally.injected) if tally.injected else _NONE,
    "reads": lambda tally: str(tally.reads),
    "older than acknowledged": lambda tally: str(tally.violations[Kind.STALE_ACKNOWLEDGED]),
    "older than seen": lambda tally: str(tally.violations[Kind.STALE_SEEN]),
    "backward": lambda tally: str(tally.violations[Kind.BACKWARD]),
    "other violations": _others,
    "stale within the bound, the worst before / during / after": _bounded,
    "polls not answered": _not_answered,
    "hit rate of polls %": lambda tally: _part(tally.hits, tally.reads - tally.batched),
    "caches in use again after s": lambda tally: f"{tally.back:.2f}",
    **{f"{phase}: p50 / p99 / max ms": _times(phase) for phase in PHASES},
}


def publish(plan: Plan, outcome: RunResult, command: str, results: Path) -> int:
    """Print the table, and store it with its JSON in `results`; return the exit status."""
    around = surroundings()
    stem = results / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-freshness-{plan.backend}"
    tallies = outcome.tallies
    rows = {name: tallies[name] for name in plan.faults}
    rows["between, and the end"] = tallies[""]
    whole = total(list(rows.values()))
    failures = [
        *(f"{name}: {words}" for name, tally in rows.items() for words in tally.examples),
        *outcome.complaints,
    ]
    broken = sum(whole.violations.values())
    verdict = (
        f"{whole.reads} reads checked in {outcome.seconds:.0f} s"
        f" ({whole.reads / max(outcome.seconds, 1e-9):.0f} a second; {whole.batched} of them in"
        f" batches), {whole.listed} jobs in lists,"
        f" {whole.writes} writes ({whole.unknown_writes} of unknown outcome), {outcome.jobs} jobs,"
        f" {outcome.compared} answers compared with the database at the end."
        f" The checker was computing for {100 * outcome.busy:.0f} % of the time."
        f" Violations: {broken}."
    )
    taken = ", ".join(f"{name} {text}" for name, text in around.items())
    notes = [
        verdict,
        f"Backend {plan.backend}, {plan.processes} processes, entries fresh for"
        f" {plan.freshness:g} s. Seed {plan.seed}."
        + (f" BROKEN ON PURPOSE: {plan.broken}." if plan.broken else ""),
        f"Taken with: {taken}.",
        *_values(plan, whole),
        *_older(plan, whole),
        *_lagged(plan, outcome),
        *_busy(whole),
        f"Command: `{command}`",
        *(f"FAILED: {failure}" for failure in failures),
        *([f"What led to it: {stem}.txt"] if outcome.explanations else []),
    ]
    text = _markdown({**rows, "all": whole}, notes)
    sys.stdout.write(text)
    results.mkdir(parents=True, exist_ok=True)
    if outcome.explanations:
        stem.with_suffix(".txt").write_text("\n".join(outcome.explanations), "utf-8")
    stem.with_suffix(".md").write_text(text, "utf-8")
    document = {
        "surroundings": around,
        "command": command,
        "plan": asdict(plan),
        "seconds": outcome.seconds,
        "busy": outcome.busy,
        "jobs": outcome.jobs,
        "compared": outcome.compared,
        "lag_us": {"idle": outcome.idle_lag, "all": outcome.lag},
        "faults": {name: _document(tally) for name, tally in rows.items()},
        "all": _document(whole),
        "complaints": outcome.complaints,
    }
    stem.with_suffix(".json").write_text(json.dumps(document, indent=1), "utf-8")
    return 1 if broken or outcome.complaints else 0


def _values(plan: Plan, whole: Tally) -> list[str]:
    if not plan.values:
        return []
    counted = f"{whole.value_reads} reads checked, {whole.value_changes} acknowledged changes"
    return [f"Values without a version: {counted}."]


def _older(plan: Plan, whole: Tally) -> list[str]:
    if plan.older is None:
        return []
    done = (
        f"{whole.older_reads} of the reads, {whole.older_hits} of the {whole.hits} hits and"
        f" {whole.older_writes} of the writes"
    )
    return [f"Processes of {plan.older} have answered {done}."]


def _lagged(plan: Plan, outcome: RunResult) -> list[str]:
    if plan.lag is None:
        return []
    invariants = (
        "Whatever the fault, the local tier may show old versions for as long as its feed lags, and"
        f" for {plan.lag:g} s at the most; a client that stays with a process, or sends its ETag,"
        " never goes back."
    )
    lines = [invariants]
    for when, lags in (("without load", outcome.idle_lag), ("all in all", outcome.lag)):
        shown = "; ".join(
            f"{lag['p50'] / 1000:.2f} / {lag['p99'] / 1000:.2f} / {lag['p99.9'] / 1000:.2f}"
            f" ({lag['count']:.0f} times)"
            for lag in lags
        )
        lines.append(f"Lag of the feed {when}, by process, p50 / p99 / p99.9 ms: {shown}.")
    return lines


def _busy(whole: Tally) -> list[str]:
    away = whole.away["before"]
    if away == 0:
        return []
    why = (
        f"Breakers were open for about {away:g} s in calm: the machine is too busy for the cache's"
        " deadlines, and a process that skips its cache hides what it writes from the others for a"
        " while, as one that is cut off does."
    )
    return [why]


def _markdown(rows: dict[str, Tally], notes: Sequence[str]) -> str:
    lines = [["fault", "promise", *_COLUMNS], ["---"] * (len(_COLUMNS) + 2)]
    for name, tally in rows.items():
        invariants = FAULTS[name].invariants if name in FAULTS else _NONE
        lines.append([name, invariants, *(column(tally) for column in _COLUMNS.values())])
    table = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([*table, "", *(f"- {note}" for note in notes), ""])


def _document(tally: Tally) -> dict[str, Any]:
    return {
        "injected": tally.injected,
        "reads": tally.reads,
        "not_modified": tally.not_modified,
        "batched": tally.batched,
        "listed": tally.listed,
        "writes": tally.writes,
        "unknown_writes": tally.unknown_writes,
        "hits": tally.hits,
        "stale_marked": tally.stale_marked,
        "violations": tally.violations,
        "bounded": tally.bounded,
        "bound": tally.bound,
        "breakers_open_seconds": tally.away,
        "back_seconds": tally.back,
        "worst": tally.worst,
        "statuses": tally.statuses,
        "unanswered": tally.unanswered,
        "older_reads": tally.older_reads,
        "older_hits": tally.older_hits,
        "older_writes": tally.older_writes,
        "value_reads": tally.value_reads,
        "value_changes": tally.value_changes,
        "findings": tally.examples,
        "poll_ms": {phase: _percentiles(tally, phase) for phase in PHASES},
    }


def _part(some: int, of: int) -> str:
    return f"{100 * some / of:.1f}" if of else _NONE
