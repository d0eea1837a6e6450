"""What a trial has shown, as text, and what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    Figures = Mapping[str, Any]

P99_MS = 25.0
P99_CHANGING_MS = 40.0
"""Goals: milliseconds from the planned time, for all polls and for those during a change."""

EXTRA_STATEMENTS = 0.01
"""Goal: statements beyond one for each update, as a part of the updates. Heartbeats of the change
feed of `postgres` are left out: there are two in a second, whatever the load."""

_LATE_MS = 5.0
"""If one request in a hundred is made later than planned by more, the driver was too busy."""

_PERCENTILES = ("p50", "p99", "p99.9", "max")


def failures(figures: Figures) -> list[str]:
    """Return why the trial has failed: it has measured nothing, or something was wrong."""
    polls, updates = figures["polls"], figures["updates"]
    sent, planned = polls["sent"], polls["planned"]
    acknowledged, planned_updates = updates["acknowledged"], updates["planned"]
    unknown = figures["counts"].get("unknown", 0)
    wrong = {
        "nothing was measured: no poll was answered": not polls["answered"],
        f"{planned} polls were planned, but {sent} were sent": sent != planned,
        f"{planned_updates} updates were planned, but {acknowledged} acknowledged": (
            acknowledged != planned_updates
        ),
        f"{polls['unanswered']} requests were not answered": polls["unanswered"],
        f"{polls['backwards']} times a poller received an older version than before": (
            polls["backwards"]
        ),
        f"{polls['outdated']} responses were older than acknowledged": polls["outdated"],
        f"{unknown} responses had no known Cache-Status": unknown,
    }
    found = [sentence for sentence, is_wrong in wrong.items() if is_wrong]
    for errors in (polls["errors"], updates["errors"]):
        found += [f"{count} times: {error}" for error, count in errors.items()]
    for name, counted in figures["service"]["counts"].items():
        received = figures["counts"].get(name, 0)
        if counted != received:
            found.append(f"the service has counted {counted} {name}, but {received} were received")
    return found


def is_noisy(figures: Figures, limit: float) -> bool:
    """Return whether other processes used more than `limit` cores."""
    processors = figures["processors"]
    return bool(processors["others"] + processors["stolen"] > limit)


def doubts(figures: Figures, limit: float) -> list[str]:
    """Return why the times may show something other than the service.

    Args:
        figures: of the trial.
        limit: the cores that other processes may use.
    """
    found = []
    if is_noisy(figures, limit):
        processors = figures["processors"]
        foreign = processors["others"] + processors["stolen"]
        found.append(f"NOISY: others used {foreign:.2f} cores (limit {limit:g})")
    late = figures["delay"]["p99"]
    if late is not None and late > _LATE_MS:
        found.append(
            f"THE DRIVER WAS THE BOTTLENECK: 1 % of the polls were due for more than {late:.1f} ms"
            " before it came to send them"
        )
    return found


def missed_goals(figures: Figures) -> list[str]:
    """Return the goals that were missed."""
    rows, updates = figures["rows"], figures["updates"]["acknowledged"]
    found = []
    for row, limit in (("all", P99_MS), ("during a change", P99_CHANGING_MS)):
        p99 = rows[row]["p99"]
        if p99 is None:
            found.append(f"there is no poll of the row '{row}'")
        elif p99 >= limit:
            found.append(f"p99 of the row '{row}' is {p99:.1f} ms (goal: below {limit:g})")
    sent = figures["service"]["statements"]
    total = sum(count for purpose, count in sent.items() if purpose != "feed")
    if total > updates * (1 + EXTRA_STATEMENTS):
        found.append(f"{total} statements for {updates} updates (goal: at most 1 % more)")
    return found


def text(figures: Figures) -> str:
    """Return the figures as Markdown."""
    lines = [
        _title(figures),
        "",
        f"| polls | count | {' | '.join(f'{name} ms' for name in _PERCENTILES)} |",
        f"| {' | '.join(['---'] * (2 + len(_PERCENTILES)))} |",
        *(_row(name, row) for name, row in figures["rows"].items()),
        _row("sent later than planned by", figures["delay"]),
        _row("update", figures["updates"]["times"]),
        "",
        _polls(figures),
        "Updates: {planned} planned, {acknowledged} acknowledged.".format(**figures["updates"]),
        _statements(figures),
        _counts(figures),
        *_hits(figures),
        _cores(figures),
    ]
    return "\n".join([*lines, ""])


def _title(figures: Figures) -> str:
    plan = figures["plan"]
    etags = " with ETags" if plan["conditional"] else ""
    return (
        f"{plan['pollers']} pollers, a poll every {plan['interval']:g} s{etags}, of"
        f" {plan['jobs']} jobs; {figures['backend']} on {figures['database']}, one service"
        f" process, {figures['seconds']:g} s."
    )


def _row(name: str, row: Mapping[str, float | None]) -> str:
    values = (row[percentile] for percentile in _PERCENTILES)
    cells = ("-" if value is None else f"{value:.2f}" for value in values)
    return f"| {name} | {row['count']} | {' | '.join(cells)} |"


def _polls(figures: Figures) -> str:
    pace = figures["polls"]["answered"] / figures["took"]
    return (
        "Polls: {planned} planned, {sent} sent, {answered} answered, {backwards} backwards,"
        " {outdated} outdated".format(**figures["polls"])
        + f"; {pace:.0f}/s."
    )


def _statements(figures: Figures) -> str:
    statements = figures["service"]["statements"]
    listed = [f"{name} {number}" for name, number in statements.items() if number]
    return f"Statements: {sum(statements.values())} ({', '.join(listed) or 'none'})."


def _counts(figures: Figures) -> str:
    counts, received = figures["service"]["counts"], figures["counts"]
    listed = [f"{name} {counted} = {received.get(name, 0)}" for name, counted in counts.items()]
    return f"Counted by the service = received: {', '.join(listed)}."


def _hits(figures: Figures) -> list[str]:
    taken = figures["service"]["hit_us"]
    return [f"Inside the service: p50 of a hit {taken['p50']:.0f} µs."] if taken["count"] else []


def _cores(figures: Figures) -> str:
    processors = figures["processors"]
    roles = ", ".join(f"{role} {cores:.2f}" for role, cores in processors["roles"].items())
    others, stolen = processors["others"], processors["stolen"]
    return f"Cores: {roles}; all other processes {others:.2f}, stolen {stolen:.2f}."
