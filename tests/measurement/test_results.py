"""From results to verdicts and pages, and from two runs to what got slower."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import compare, instructions, plots, results, tables
from benchmarks.generator import WrongAnswer
from benchmarks.headlines import headliners, summary
from benchmarks.interleaving import Subject, take_turns
from benchmarks.limits import limits
from benchmarks.peers.table import ROUTES
from benchmarks.results import Kind, Missing, NoResults, Run, Section, Series, ratios
from benchmarks.suites import calls, embedded, keys, lookups, observed, polls, updates
from benchmarks.verdicts import Verdict, verdicts


def series(subject: str, *samples: float, kind: Kind = "ours", x: float | None = None) -> Series:
    return Series(subject, kind, "somehow", list(samples), x)


def rates(*found: Series) -> Section:
    return Section(
        "polls-many",
        "Polls",
        "asked",
        "answers/s",
        more_is_better=True,
        reference=polls.PLAIN,
        series=[*found],
    )


def costs(name: str, *found: Series, scale: str = "") -> Section:
    return Section(name, name, "asked", "µs", more_is_better=False, scale=scale, series=[*found])


def a_run(*sections: Section, missing: tuple[Missing, ...] = ()) -> Run:
    around = {"machine": "a fast one", "python": "CPython", "commit": "abc"}
    return Run("python -m benchmarks", around, [0.1, 0.2], [*sections], [*missing])


def verdict(run: Run, claim: str) -> Verdict:
    (found,) = [one for one in verdicts(run) if one.claim.startswith(claim)]
    return found


PLAIN = series(polls.PLAIN, 100, 50, 200, kind="limit")


async def test_subjects_take_turns_and_the_first_turn_does_not_count() -> None:
    order: list[str] = []

    def subject(name: str) -> Subject:
        async def once() -> tuple[float, dict[str, object]]:
            order.append(name)
            return float(len(order)), {"busy": name}

        return Subject(name, "ours", "", once)

    found = await take_turns([subject("a"), subject("b")], 2)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [one.samples for one in found] == [[4, 5], [3, 6]]
    assert found[0].details == {"busy": ["a", "a"]}


async def test_a_peer_that_fails_is_left_out_and_named_and_others_end_the_run() -> None:
    def subject(name: str, kind: Kind, fails_at: int) -> Subject:
        turns = iter(range(9))

        async def once() -> tuple[float, dict[str, object]]:
            if next(turns) == fails_at:
                raise WrongAnswer("500\nat length")
            return 1.0, {}

        return Subject(name, kind, "", once)

    missing: list[Missing] = []
    subjects = [subject("ours", "ours", 8), subject("theirs", "peer", 1)]
    found = await take_turns(subjects, 2, missing=missing)
    assert [(one.subject, one.samples) for one in found] == [("ours", [1, 1])]
    assert missing == [Missing("theirs", "500")]
    with pytest.raises(WrongAnswer, match="ours: 500"):
        await take_turns([subject("ours", "ours", 1)], 2, missing=missing)


def test_results_are_kept_whole(tmp_path: Path) -> None:
    run = a_run(rates(PLAIN, series("memory", 1, 2, 3)), missing=(Missing("nginx", "not there"),))
    results.save(run, tmp_path / "new" / "run.json")
    assert results.load(tmp_path / "new" / "run.json") == run


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 0}', '{"format": 1}', "nothing"])
def test_what_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(NoResults):
        results.load(tmp_path / "run.json")
    assert tables.main([str(tmp_path / "run.json")]) == 2


def test_a_ratio_is_taken_turn_by_turn() -> None:
    """A machine that slows down for everybody changes nothing."""
    assert ratios(series("memory", 90, 45, 180), PLAIN) == [0.9, 0.9, 0.9]


@pytest.mark.parametrize(("part", "holds"), [(1.6, True), (1.5, False)])
def test_a_rate_must_be_high_enough(part: float, *, holds: bool) -> None:
    run = a_run(rates(PLAIN, series("memory", *(part * rate for rate in PLAIN.samples))))
    found = verdict(run, "Poll, memory: times a plain")
    assert found.holds is holds
    assert found.figure == f"{part:.2f} ({part:.2f} to {part:.2f})"
    assert found.words == ("holds, by 0%" if holds else "DOES NOT HOLD, by 6%")


def test_the_fastest_peer_counts_as_its_documentation_has_it() -> None:
    on_redis = next(name for name, route in ROUTES.items() if route.store == "redis")
    peers = [
        series("slow", 1, 1, 1, kind="peer"),
        series("fast", 10, 10, 10, kind="peer"),
        series("tuned", 50, 50, 50, kind="tuned peer"),
        series(on_redis, 5, 5, 5, kind="peer"),
    ]
    ours = [series("memory", 70, 70, 70), series("redis", 20, 20, 20)]
    run = a_run(rates(PLAIN, *ours, *peers))
    found = verdict(run, "Poll, memory: times the fastest")
    assert (found.holds, found.figure) == (True, "7.00 (7.00 to 7.00); it is fast")
    found = verdict(run, "Poll, redis: times the fastest")
    assert (found.holds, found.figure) == (False, f"4.00 (4.00 to 4.00); it is {on_redis}")


@pytest.mark.parametrize(("ours", "holds"), [(1.25, True), (1.35, False)])
def test_a_cost_must_be_low_enough(ours: float, *, holds: bool) -> None:
    bare = series(lookups.BARE, 1, kind="limit")
    run = a_run(costs("lookups", series(lookups.OURS, ours), bare))
    assert verdict(run, "Hit of JobCache on memory").holds is holds


def test_the_goals_are_those_of_the_project() -> None:
    """A goal that is dropped or made easier would not be seen in a table of goals that hold."""
    redis_peer = next(name for name, route in ROUTES.items() if route.store == "redis")
    ours = ["memory", "tiered", "redis", "postgres", polls.WITHOUT_PROTOCOL]
    unchanged = [polls.NOT_MODIFIED.format(name) for name in ours[:3]]
    costly = [updates.OURS.format(name) for name in ("redis", "tiered")]
    section = rates(
        series(polls.PLAIN, 1, kind="limit"),
        series(redis_peer, 1, kind="peer"),
        *(series(name, 1) for name in [*ours, *unchanged]),
    )
    facts = {updates.STATEMENTS: 1.0, updates.OTHERS: 0.0}
    update = replace(
        costs("updates", series(updates.BARE, 1), *(series(name, 1) for name in costly)),
        facts={
            name.format(backend): figure
            for name, figure in facts.items()
            for backend in ("redis", "tiered", "postgres")
        },
    )
    hit = costs(
        "lookups",
        *(series(lookups.READ.format(name), 1) for name in ("memory", "tiered", "postgres")),
        series(lookups.BARE, 1, kind="limit"),
    )
    bare = series(calls.BARE, 1, kind="limit")
    peers = [series(name, 1, kind="peer") for name in (calls.CASHEWS, calls.AIOCACHE)]
    cached = costs("calls", series(calls.OURS, 1), bare, *peers)
    servers = [
        series(subject.format(server), 1)
        for subject in (embedded.PLAIN, embedded.WRAPPED, embedded.REPEATED, embedded.ROUTES)
        for server in ("uvicorn", "granian", "hypercorn")
    ]
    inside = replace(rates(*servers, series(embedded.SERVICE, 1)), name="embedded")
    watched = replace(
        costs(
            "lookups",
            *(
                series(name, 1)
                for name in (
                    observed.UNOBSERVED,
                    observed.METRICS,
                    observed.SPANS,
                    observed.ALL_SPANS,
                )
            ),
        ),
        name="observed",
    )
    pauses = {
        name.format(kind): 1.0 for name in (keys.PAUSE, keys.COMPUTED) for kind in keys.PAUSES
    }
    held = replace(costs("keys", series(keys.HOT, 1, x=1_000_000), scale="keys"), facts=pauses)
    found = {
        one.claim: one.limit
        for one in verdicts(a_run(section, inside, update, hit, cached, held, watched))
    }
    assert list(found.values()) == [
        *("≥ 1.6", "≥ 1.6", "≥ 6"),
        *("≥ 1.6", "≥ 1.6", "≥ 6"),
        *("≥ 0.9", "≥ 0.9", "≥ 6"),
        "≥ 0.85",
        *("≥ 0.85", "≥ 0.8", "≥ 0.9", "≥ 0.65", "≥ 1"),
        *("≤ 1.03", "≤ 1.05", "≤ 1.05"),
        *("≤ 1.3", "≤ 1.05", "≥ 0.95", "≤ 2", "≤ 0.5", "≤ 0.5"),
        *("≤ 1.35", "= 1", "≤ 1.35", "= 1", "= 1"),
        *["≤ 10 ms"] * 4,
    ]


def test_what_was_not_measured_is_no_success_and_no_failure() -> None:
    every = verdicts(a_run())
    assert {one.holds for one in every} == {None}
    assert {one.words for one in every} == {"not measured"}
    without_peers = a_run(rates(PLAIN, series("memory", 1, 1, 1)))
    assert verdict(without_peers, "Poll, memory: times the fastest").words == "not measured"


def test_a_limit_has_its_value_and_its_reason_and_is_no_goal() -> None:
    """What Python and the hardware set is shown, and nothing is said to have failed."""
    one_job = replace(
        rates(
            series("memory", 60, kind="ours"),
            series("tiered", 60, kind="ours"),
            series("null", 10, kind="ours"),
            series(polls.HANDWRITTEN, 2, kind="limit"),
        ),
        name="polls-one",
        reference="",
    )
    wide = [
        *(series(keys.ALL, cost, x=x) for x, cost in ((100, 1.0), (1e6, 2.0))),
        *(series(keys.HOT, 1.0, x=x) for x in (100, 1e6)),
        *(series(keys.ALL_DICTIONARY, cost, kind="limit", x=x) for x, cost in ((100, 1), (1e6, 9))),
    ]
    run = a_run(one_job, replace(costs("keys", *wide, scale="keys"), facts={keys.COLLECTION: 500}))
    found = {one.name: one for one in limits(run)}
    shared = found["`memory` beside `null`, if all connections poll one job"]
    assert shared.value == "6.00 (6.00 to 6.00) times as fast"
    assert "5.00 (5.00 to 5.00) times a route without a cache" in shared.reason
    by_chance = found["A hit, if all keys are asked for by chance"]
    assert by_chance.value == "2.00 (2.00 to 2.00) times the time with 1,000,000 keys as with 100"
    assert "A dictionary differs by 9.0 times" in by_chance.reason
    assert found["One full garbage collection with 1,000,000 entries"].value == "500 ms"
    page = tables.page(run)
    assert f"| {by_chance.name} | {by_chance.value} | {by_chance.reason} |" in page
    assert not any(one.claim in page for one in verdicts(run) if one.holds is False)


def polled(*names: str) -> list[Series]:
    """Subjects with latencies."""
    return [
        replace(series(name, rate, rate), details={"latency_ms": [{"50": 1.0, "99": rate}] * 2})
        for rate, name in enumerate(names, 10)
    ]


def test_a_page_begins_with_a_summary_and_two_plots_and_ends_with_the_goals() -> None:
    names = (polls.HANDWRITTEN, polls.PLAIN, "null", "redis", "memcached", "tiered", "memory")
    run = a_run(rates(*polled(*names)))
    drawn = [name for name, _ in plots.figures(run, {})]
    page = tables.page(run, drawn)
    titles = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert titles == ["Summary", "Polls", "Not measured", "Goals"]
    before_the_tables = page.partition("## Polls")[0]
    assert re.findall(r"plots/(.*)\.svg", before_the_tables) == [plots.THROUGHPUT, plots.LATENCY]
    assert "16 polls per second from `memory`, 15 from `tiered`, 13 from `redis`" in page
    assert "`memory` is 1.45 times as fast" in page
    assert "1 of 3 are reached. Missed: Poll, memory: times a plain ASGI function; " in page


def test_a_busy_machine_is_named_in_the_summary() -> None:
    quiet = a_run(rates(PLAIN, series("memory", 1, 1, 1)))
    assert not any("busy" in line for line in summary(quiet))
    assert any("busy" in line for line in summary(replace(quiet, load=[3.0, 3.0])))


def test_at_most_six_lines_of_a_plot_can_be_told_apart(tmp_path: Path) -> None:
    peers = [series(f"peer {number}", number, number, kind="peer") for number in range(1, 9)]
    names = (polls.HANDWRITTEN, polls.PLAIN, "null", "redis", "memcached", "tiered", "memory")
    section = rates(*polled(*names), *peers)
    chosen = headliners(section)
    assert len(chosen) == 6
    assert {one.subject for one in chosen} >= {"memory", "redis", polls.PLAIN, "peer 8"}
    scale = [series(f"subject {n}", 1, 1, x=x) for n in range(6) for x in (1, 10)]
    run = a_run(section, costs("connections", *scale, scale="connections"))
    for name, figure in plots.figures(run, {"connections": ["scale"]}):
        lines = [line for line in figure.axes[0].lines if not line.get_label().startswith("_")]
        looks = {(line.get_color(), str(line.get_linestyle()), line.get_marker()) for line in lines}
        colours = {line.get_color() for line in lines}
        assert len(colours) == len(looks) == len(lines) <= 6, name
    more = [*scale, series("one more", 1, 1, x=1)]
    with pytest.raises(ValueError, match="7 lines"):
        plots.draw(
            a_run(costs("connections", *more, scale="connections")),
            tmp_path,
            {"connections": ["scale"]},
        )


def test_plots_have_a_background_of_their_own_and_old_ones_are_removed(tmp_path: Path) -> None:
    (tmp_path / "of-an-earlier-run.svg").touch()
    drawn = plots.draw(a_run(rates(*polled("null", polls.PLAIN, "memory"))), tmp_path, {})
    assert {file.stem for file in tmp_path.iterdir()} == set(drawn)
    for file in tmp_path.iterdir():
        page = file.read_text()
        assert re.search(r'<g id="patch_1">\s*<path [^>]*style="fill: #ffffff"', page), file


def test_a_quick_run_has_no_verdicts_and_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(tables, "PLOTS", tmp_path / "plots")
    run = replace(a_run(rates(PLAIN, series("memory", 1, 1, 1))), quick=True)
    page = tables.page(run)
    assert "quick run" in page
    assert "## Polls" in page
    for words in ("HOLD", "holds", "not measured", "## Goals", "## Summary", "## Measured limits"):
        assert words not in page
    with pytest.raises(NoResults, match="quick"):
        tables.write(run)
    results.save(run, tmp_path / "run.json")
    assert results.load(tmp_path / "run.json").quick
    assert tables.main([str(tmp_path / "run.json"), "--write"]) == 2
    assert compare.main([str(tmp_path / "run.json")] * 2) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_page_carries_where_its_numbers_come_from() -> None:
    peer = series("a peer", 300, 100, 500, kind="peer")
    page = tables.page(
        a_run(rates(PLAIN, series("memory", 90, 45, 180), peer), missing=(Missing("x", "why"),))
    )
    assert "Written by `python -m benchmarks`" in page
    assert "- machine: a fast one" in page
    assert "- commit: abc" in page
    assert "asked. Driver: " in page
    assert "| x | why |" in page
    assert "| memory | ours | 90.0 (45.0 to 180.0) | 0.90 (0.90 to 0.90) |" in page
    # whoever wins stands first
    assert re.search(r"\| a peer \|.*\n\| plain ASGI function \|.*\n\| memory \|", page)


def test_operations_have_a_row_each_and_a_column_for_each_backend() -> None:
    found = [
        series("get, hit, null", 0.1),
        series("get, hit, redis", 90, 80, 110),
        series("write, redis", 300),
    ]
    page = tables.page(a_run(costs("operations", *found)))
    assert "| one operation | null | redis |" in page
    assert "| get, hit | 0.1 (0.1 to 0.1) | 90 (80 to 110) |" in page
    assert "| write |  | 300 (300 to 300) |" in page


def compared(tmp_path: Path, old: Run, new: Run, *arguments: str) -> int:
    for name, run in (("old", old), ("new", new)):
        results.save(run, tmp_path / f"{name}.json")
    return compare.main([str(tmp_path / "old.json"), str(tmp_path / "new.json"), *arguments])


def at(rate: float, noise: float = 0.0) -> Run:
    """A run in which memory is so fast beside the plain function, more or less."""
    turns = [rate * (1 - noise), rate, rate * (1 + noise)]
    ours = [plain * turn for plain, turn in zip(PLAIN.samples, turns, strict=True)]
    return a_run(rates(PLAIN, series("memory", *ours)))


@pytest.mark.parametrize(
    ("new", "status"),
    [
        (at(0.5), 0),
        (at(0.49), 0),
        (at(0.4), 1),
        (at(0.4, noise=0.3), 0),  # who knows
        (at(0.2, noise=0.3), 1),
        (at(0.7), 0),
    ],
)
def test_what_got_slower_beyond_the_noise_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], new: Run, status: int
) -> None:
    assert compared(tmp_path, at(0.5), new) == status
    said = capsys.readouterr().out
    assert ("## Slower" in said) == (status == 1)
    if status:
        assert "| Polls | memory | " in said


def test_what_is_not_ours_is_no_verdict_but_a_measure_of_the_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def beside(rate: float) -> Run:
        peer = series("a peer", *(rate * plain for plain in PLAIN.samples), kind="peer")
        return a_run(rates(PLAIN, series("memory", *PLAIN.samples), peer))

    assert compared(tmp_path, beside(0.4), beside(0.2)) == 0
    said = capsys.readouterr().out
    assert "1 compared, 0 slower" in said
    assert "1 that are not ours cost 2.00 times what they did" in said


def test_a_slower_machine_is_no_slower_cache_unless_asked(tmp_path: Path) -> None:
    half = replace(
        at(0.5),
        sections=[
            replace(
                section,
                series=[
                    replace(one, samples=[sample / 2 for sample in one.samples])
                    for one in section.series
                ],
            )
            for section in at(0.5).sections
        ],
    )
    assert compared(tmp_path, at(0.5), half) == 0
    # the samples of a plain function are far apart here
    steady = a_run(costs("updates", series("an update", 10, 10, 10)))
    slower = a_run(costs("updates", series("an update", 11, 11, 11)))
    assert compared(tmp_path, steady, slower) == 1
    assert compared(tmp_path, slower, steady) == 0
    assert compared(tmp_path, steady, slower, "--floor", "0.2") == 0
    assert compared(tmp_path, steady, at(0.5)) == 2


def test_more_instructions_than_stored_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = {"interpreter": "this one"}

    def count(hit: float, *arguments: str) -> int:
        monkeypatch.setattr(instructions, "whereabouts", lambda: here)
        monkeypatch.setattr(instructions, "measured", lambda *_: {"hit": hit})
        return instructions.main(["--only", "hit", "--file", str(tmp_path / "kept"), *arguments])

    assert count(1000) == 2  # nothing is stored
    assert count(1000, "--store") == 0
    assert count(1019) == count(500) == 0
    assert "stored" not in capsys.readouterr().out
    assert count(1021) == 1
    assert "hit takes 1,021 instructions, 2.1% more" in capsys.readouterr().out
    here = {"interpreter": "another one"}
    assert count(1000) == 2
    assert "counted with another interpreter" in capsys.readouterr().err
