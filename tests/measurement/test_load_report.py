"""The report of a load test: a page that needs nothing else, and equal figures in all files."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from loadtests.report import plots
from loadtests.report.comparison import compare
from loadtests.report.document import (
    Bucket,
    Described,
    Document,
    Fault,
    Outcomes,
    from_json,
    to_json,
)
from loadtests.report.figures import (
    cpu_percent,
    cpu_seconds,
    hit_rates,
    others_percent,
    percentile,
    query_rates,
)
from loadtests.report.files import write
from loadtests.report.page import draw, html
from tests.measurement.measurements import measurement, sample


def document(**other: object) -> Document:
    made = Document(
        command="python -m loadtests run --scenarios users_10",
        surroundings={"date": "2026-11-29", "machine": "two cores & <more>"},
        quick=False,
        interrupted=False,
        planned=2,
        scenarios=[
            Described(name="users_10", description="Ten clients poll.", settings={"clients": "10"})
        ],
        runs=[
            measurement("null", hits=0, misses=2345),
            measurement("memory", hits=5432, misses=10),
        ],
        problems=[],
    )
    return replace(made, **other)


class Page(HTMLParser):
    """Collects the addresses, tags and table cells of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.tables: list[list[list[str]]] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            text or "" for name, text in attrs if name in {"src", "href", "xlink:href", "data"}
        ]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in {"td", "th"}:
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in {"td", "th"}:
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.tables[-1][-1][-1] += data

    def table(self, column: str) -> list[dict[str, str]]:
        for head, *rows in self.tables:
            if column in head:
                return [dict(zip(head, row, strict=True)) for row in rows]
        raise AssertionError(f"no table has a column {column}")


@pytest.fixture(scope="module")
def text() -> str:
    made = document()
    return html(made, draw(made))


def test_the_page_needs_nothing_from_elsewhere(text: str) -> None:
    page = Page(text)
    assert [each for each in page.addresses if not each.startswith("#")] == []
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not re.search(r"url\((?!#)|@import|<!DOCTYPE svg|<\?xml", text)
    assert page.tags.count("svg") == 4
    for title in ("duration of polls", "hit rate", "statements to the database", "processor time"):
        assert re.search(rf"<title>{title}", text)
    assert "two cores &amp; &lt;more&gt;" in text


def test_no_two_elements_share_an_id(text: str) -> None:
    identities = re.findall(r'\bid="([^"]+)"', text)
    assert len(identities) > 4
    assert len(identities) == len(set(identities))


def test_tables_show_the_figures_of_the_document(text: str) -> None:
    page = Page(text)
    null, memory = page.table("queries by polls")
    assert (null["backend"], memory["backend"]) == ("null", "memory")
    assert (null["hits"], null["misses"], null["queries by polls"]) == ("0", "2,345", "2,345")
    assert (memory["polls"], memory["bypasses"], memory["coalesced"]) == ("5,445", "3", "2")
    assert (memory["304"], memory["per job"], memory["transactions"]) == ("77", "0.50", "9,876")
    assert memory["hit rate %"] == "99.76"
    assert memory["all statements"] == "421"
    costs = page.table("CPU service s")[1]
    assert (costs["p50 ms"], costs["p99 ms"], costs["max ms"]) == ("1.50", "23.25", "23.25")
    assert (costs["CPU service s"], costs["CPU database s"]) == ("0.75", "0.38")
    assert costs["CPU Redis s"] == "-"
    assert (costs["hit inside, p50 ms"], costs["service MB"]) == ("0.013", "83")
    assert (costs["commit to client, p50 ms"], costs["polls per update"]) == ("1500", "1.50")
    requests = page.table("request")[0]
    taken = ["1.23", "4.56", "7.89", "31.75"]
    assert list(requests.values()) == ["null", "poll: hit", "1,234", "0", *taken]


def test_goals_are_judged_unless_time_was_compressed() -> None:
    slow = measurement("redis", hits=80, misses=20)
    made = document()
    made = replace(made, runs=[*made.runs, slow])
    verdicts = {(each.goal.figure, each.run.backend): each for each in compare(made)}
    assert verdicts["hit rate", "memory"].met is True
    assert verdicts["hit rate", "redis"].met is False
    assert ("hit rate", "null") not in verdicts
    assert verdicts["queries caused by polls, per job", "memory"].value == 0.5
    faster = verdicts["median read of null, divided by the median hit", "memory"]
    assert (faster.value, faster.met) == (200, True)
    assert {each.met for each in compare(replace(made, quick=True))} == {None}
    rows = Page(html(made, {})).table("first version")
    shown = {(row["figure"], row["run"]): (row["measured"], row[""]) for row in rows}
    assert shown["hit rate", "users_10 on memory"] == ("99.76 %", "met")
    assert shown["hit rate", "users_10 on redis"][1] == "missed"


def test_long_polls_are_compared_with_polls_of_the_same_job() -> None:
    polled = measurement("redis", hits=80, misses=20, scenario="one_job")
    waited = replace(polled, scenario="long_polls", update_polls=230, delay_ms={"p50": 0.5})
    verdicts = compare(document(runs=[polled, waited]))
    assert [(verdict.value, verdict.met) for verdict in verdicts] == [(1.15, True), (1500, True)]
    waited = replace(waited, update_polls=250, delay_ms={"p50": 160.0})
    verdicts = compare(document(runs=[polled, waited]))
    assert [verdict.met for verdict in verdicts] == [False, False]
    alone = compare(document(runs=[replace(waited, delay_ms={"p50": None})]))
    assert [verdict.value for verdict in alone] == [1.25]


def test_a_goal_without_its_figure_has_no_verdict() -> None:
    nothing = measurement("memory", hits=0, misses=0, jobs=0, inside_us={}, first_polls=0)
    none = Outcomes(hits=0, misses=0, bypasses=0, stale=0, coalesced=0)
    assert compare(document(runs=[replace(nothing, service=none)])) == []


def test_durations_of_polls_that_were_held_are_not_among_those_of_others() -> None:
    run = measurement("memory", hits=1, misses=0)
    held = replace(run, scenario="long_polls", held=3, polls_ms=[Bucket(upper_ms=9e3, count=9)])
    (row,) = Page(html(document(runs=[run, held]), {})).table("median poll ms")
    assert (row["median poll ms"], row["median p99 ms"]) == ("1.50", "23.25")
    (row,) = Page(html(document(runs=[held]), {})).table("median poll ms")
    assert (row["median poll ms"], row["median p99 ms"]) == ("-", "-")


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text("utf-8").splitlines()))


def test_all_files_have_the_same_figures(tmp_path: Path) -> None:
    made = document()
    page = write(made, tmp_path / "new")
    assert page.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert from_json((tmp_path / "new" / "report.json").read_bytes()) == made
    rows = table(tmp_path / "new" / "runs.csv")
    assert [row["backend"] for row in rows] == ["null", "memory"]
    assert (rows[1]["hits"], rows[1]["clients_hits"]) == ("5432", "5432")
    assert (rows[0]["statements_load"], rows[0]["database_xact_commit"]) == ("2345", "9876")
    samples = table(tmp_path / "new" / "samples.csv")
    assert len(samples) == 6
    assert samples[2]["cpu_seconds_service"] == "0.75"
    requests = table(tmp_path / "new" / "requests.csv")
    assert [row["count"] for row in requests] == ["1234", "1234"]
    assert not list((tmp_path / "new").glob("*.new"))
    drawn = {path.name: path.read_text("utf-8") for path in (tmp_path / "new/plots").iterdir()}
    assert drawn.keys() == {
        *("users_10-durations.svg", "users_10-hits.svg"),
        *("users_10-statements.svg", "users_10-processor.svg"),
    }
    for plot in drawn.values():
        ET.fromstring(plot)  # noqa: S314 - ours
        assert f"color: {plots.FILE_TEXT}" in plot


def test_a_document_without_runs_is_a_problem_and_can_be_shown(tmp_path: Path) -> None:
    empty = document(runs=[], interrupted=True)
    assert empty.all_problems == ["nothing was measured"]
    text = write(empty, tmp_path).read_text("utf-8")
    assert "nothing was measured" in text
    assert "The test was interrupted" in text
    assert "It was not measured." in text
    assert from_json(to_json(empty)) == empty


def test_problems_are_shown(text: str) -> None:
    failed = measurement("memory", hits=1, misses=0, problems=["memory: 3 failures"])
    made = document(runs=[failed], problems=["redis: no service"])
    assert made.all_problems == ["redis: no service", "memory: 3 failures"]
    failed_text = html(made, {})
    assert "redis: no service" in failed_text
    assert "memory: 3 failures" in failed_text
    assert "All responses were right" not in failed_text
    assert "All responses were right" in text


def test_another_document_is_refused() -> None:
    with pytest.raises(ValueError, match="command"):
        from_json(b"{}")


def test_rates_are_of_the_time_between_samples() -> None:
    run = measurement("memory", hits=1, misses=0)
    assert hit_rates(run) == [(1, 90), (3, 80)]
    assert query_rates(run) == [(1, 30), (3, 10)]
    assert cpu_percent(run, "service") == [(1, 25), (3, 25)]
    assert cpu_seconds(run, "service") == 0.75
    assert cpu_seconds(run, "redis") is None
    still = replace(run, samples=[sample(1, 5, 5, 0), sample(2, 5, 5, 0)])
    assert hit_rates(still) == []  # no reads have no hit rate


def test_a_run_beside_other_programs_is_called_noisy(text: str) -> None:
    run = measurement("memory", hits=1, misses=0)
    # Of 3 s, the test's own processes used 1.125 s.
    assert others_percent(run) == pytest.approx(62.5)
    assert "Compare the counts of these runs" in text
    assert "users_10 on null, users_10 on memory" in text
    quiet = [replace(each, machine_seconds=0.5 * each.second) for each in run.samples]
    assert others_percent(replace(run, samples=quiet)) == pytest.approx(12.5)
    assert "Noisy" not in html(document(runs=[replace(run, samples=quiet)]), {})
    assert others_percent(replace(run, samples=quiet[:1])) is None


def test_clients_that_have_ended_are_no_other_programs() -> None:
    run = measurement("memory", hits=1, misses=0)
    *during, after = run.samples
    with_clients = [
        replace(each, cpu_seconds={**each.cpu_seconds, "clients": each.second / 2})
        for each in during
    ]
    # Until the last sample with the clients, 1 s passed, of which the test used 0.875 s.
    assert others_percent(replace(run, samples=[*with_clients, after])) == pytest.approx(12.5)
    assert others_percent(replace(run, samples=[with_clients[0], after])) is None


def test_percentiles_are_edges_of_buckets() -> None:
    buckets = [Bucket(upper_ms=1, count=98), Bucket(upper_ms=5, count=2)]
    assert [percentile(buckets, p) for p in (0, 50, 98, 99, 100)] == [1, 1, 1, 5, 5]
    assert percentile([], 50) is None


def test_plots_over_time_have_the_time_of_each_fault() -> None:
    faults = [Fault(second=1.25, text="Redis hangs"), Fault(second=2, text="Redis answers")]
    broken = measurement("redis", hits=5, misses=1, faults=faults)
    also = measurement("tiered", hits=5, misses=1, faults=faults)
    drawn = draw(document(runs=[broken, also]))["users_10"]
    for name in ("hits", "statements", "processor"):
        assert drawn[name].count("Redis hangs") == 1
        assert drawn[name].count("Redis answers") == 1
    assert "Redis" not in drawn["durations"]


def test_a_plot_has_at_most_six_lines() -> None:
    lines = {f"line {number}": [(0.0, 1.0), (1.0, 2.0)] for number in range(6)}
    drawn = plots.over_time("unit", lines)
    for colour in plots.COLOURS:
        assert colour in drawn
    with pytest.raises(plots.TooManyLines, match="7 lines"):
        plots.over_time("unit", {**lines, "one more": []})


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(part * by for part, by in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))


@pytest.mark.parametrize("background", ["#ffffff", "#15181c"])
def test_lines_stand_out_from_light_and_dark_backgrounds(text: str, background: str) -> None:
    """WCAG asks for a contrast of at least 3 for graphics."""
    assert f"--page: {background}" in text
    for colour in (*plots.COLOURS, plots.FILE_TEXT):
        dark, light = sorted([luminance(colour), luminance(background)])
        assert (light + 0.05) / (dark + 0.05) >= 3, colour


def test_text_of_plots_has_the_colour_of_the_page() -> None:
    drawn = plots.distribution({"memory": [Bucket(upper_ms=1, count=3)]})
    assert "currentColor" in drawn
    colours = set(re.findall(r"#[0-9a-f]{6}\b", drawn)) - set(plots.COLOURS)
    assert colours == set(), "these are drawn for one background"
