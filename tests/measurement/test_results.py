"""From results to verdicts and pages, and from two runs to what got slower."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import compare, instructions, results, tables
from benchmarks.interleaving import Subject, take_turns
from benchmarks.results import Kind, Missing, NoResults, Run, Section, Series, ratios
from benchmarks.suites import gets, keys, lookups, polls
from benchmarks.verdicts import Verdict, verdicts


def series(subject: str, *samples: float, kind: Kind = "ours", x: float | None = None) -> Series:
    return Series(subject, kind, "somehow", list(samples), x)


def rates(*found: Series) -> Section:
    return Section(
        "polls-one",
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


@pytest.mark.parametrize(("part", "holds"), [(0.9, True), (0.8, False)])
def test_a_rate_must_be_high_enough(part: float, *, holds: bool) -> None:
    run = a_run(rates(PLAIN, series("memory", *(part * rate for rate in PLAIN.samples))))
    found = verdict(run, "1. Poll hit, memory: of the plain")
    assert found.holds is holds
    assert found.figure == f"{part:.2f} ({part:.2f} to {part:.2f})"
    assert found.words == ("holds, by 2%" if holds else "DOES NOT HOLD, by 9%")


def test_the_fastest_peer_counts_as_its_documentation_has_it() -> None:
    peers = [
        series("slow", 1, 1, 1, kind="peer"),
        series("fast", 10, 10, 10, kind="peer"),
        series("tuned", 50, 50, 50, kind="tuned peer"),
    ]
    run = a_run(rates(PLAIN, series("memory", 70, 70, 70), *peers))
    found = verdict(run, "1. Poll hit, memory: times the fastest")
    assert (found.holds, found.figure) == (True, "7.00 (7.00 to 7.00); it is fast")


def test_costs_turn_the_comparison_round() -> None:
    def run(ours: float) -> Run:
        peers = [series("awaited", 3.9, kind="peer"), series("called", 1, kind="peer")]
        peers[1] = replace(peers[1], how=f"get{lookups.SYNCHRONOUS}")
        bare = series(lookups.BARE, 1, kind="limit")
        return a_run(costs("lookups", series(lookups.OURS, ours), bare, *peers))

    claim = "3. JobCache hit on memory, in a coroutine: times"
    assert [verdict(run(1.25), f"{claim} {end}").holds for end in ("the cost", "as fast")] == [
        True,
        True,
    ]
    assert [verdict(run(1.35), f"{claim} {end}").holds for end in ("the cost", "as fast")] == [
        False,
        False,
    ]


@pytest.mark.parametrize(("most", "holds"), [(1.1, True), (1.2, False)])
def test_a_cost_must_be_flat_over_its_scale(most: float, *, holds: bool) -> None:
    scale = [series(keys.HOT, cost, x=10**n) for n, cost in enumerate((1.0, most, 1.05), 2)]
    section = costs("keys", *scale, scale="keys")
    found = verdict(a_run(section), "6. Cost of a hit, 100 to 1,000,000 keys, the same")
    assert found.holds is holds
    assert found.figure.endswith("highest at 1,000 keys, lowest at 100")


def test_what_was_not_measured_is_no_success_and_no_failure() -> None:
    every = verdicts(a_run())
    assert {one.claim[:2] for one in every} == {f"{number}." for number in range(1, 8)}
    assert {one.holds for one in every} == {None}
    gets_only = a_run(costs("gets-at-once", series(gets.OURS, 1)))
    assert verdict(gets_only, "4. redis get, 64 tasks: times valkey").words == "not measured"


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
