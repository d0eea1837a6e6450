"""The checker of the freshness run: silent on good histories, and loud on each kind of bad one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from loadtests.freshness.checker import Finding, Kind, Ledger, PendingRequest, is_excused
from loadtests.freshness.tally import Scope, Tally, total


class History:
    """A ledger with a clock of its own, and short words for what happens."""

    def __init__(self) -> None:
        self.now = 100.0
        self.ledger = Ledger(lambda: self.now)

    def begin(self, client: str = "reader", job: int = 1, tag: int = 0) -> PendingRequest:
        return self.ledger.begin(client, job, tag)

    def answer(self, pending: PendingRequest, version: int, **fields: object) -> list[Finding]:
        return self.ledger.answered(pending, version, body(pending.job_id, version, **fields))

    def read(self, version: int, client: str = "reader", **fields: object) -> list[Finding]:
        return self.answer(self.begin(client), version, **fields)

    def write(self, version: int, **fields: object) -> list[Finding]:
        pending = self.begin("writer")
        return self.ledger.acknowledged(pending, version, body(1, version, **fields), changes=True)


def body(job: int, version: int, **fields: object) -> bytes:
    document = {"id": job, "version": version, "terminal": False, **fields}
    return json.dumps(document).encode()


def kinds(findings: list[Finding]) -> list[Kind]:
    return [finding.kind for finding in findings]


@pytest.fixture
def history() -> History:
    return History()


def test_a_good_history_is_not_complained_of(history: History) -> None:
    assert history.write(1) == []
    assert history.read(1) == []
    early = history.begin("slow")
    assert history.write(2) == []
    assert history.read(2) == []
    assert history.answer(early, 1) == [], "what began before may be answered with what was"
    assert history.read(2, "slow") == []
    assert history.ledger.answered(history.begin(tag=2), 2, None) == []
    assert history.write(3, terminal=True) == []
    assert history.read(3, terminal=True) == []
    assert history.ledger.compare(1, 3, terminal=True) == []


def test_an_answer_may_be_newer_than_anything_known(history: History) -> None:
    history.write(1)
    assert history.read(7) == []
    assert history.ledger.known(1) == 7


def test_older_than_acknowledged(history: History) -> None:
    history.write(1)
    history.write(2)
    assert kinds(history.read(1)) == [Kind.STALE_ACKNOWLEDGED]


def test_older_than_what_another_client_has_seen(history: History) -> None:
    history.write(1)
    history.read(2, "another")
    assert kinds(history.read(1)) == [Kind.STALE_SEEN]


def test_older_than_what_the_client_itself_has_seen(history: History) -> None:
    history.read(2)
    assert kinds(history.read(1)) == [Kind.STALE_SEEN, Kind.BACKWARD]


def test_both_kinds_of_stale_are_told_apart_and_counted_each(history: History) -> None:
    history.write(1)
    history.write(3)
    history.read(5, "another")
    assert kinds(history.read(2)) == [Kind.STALE_ACKNOWLEDGED, Kind.STALE_SEEN]
    assert kinds(history.read(4)) == [Kind.STALE_SEEN, Kind.BACKWARD][:1]


def test_the_age_of_a_stale_answer_begins_with_the_first_that_was_newer(history: History) -> None:
    history.write(1)
    history.now = 101.0
    history.write(2)
    history.now = 104.0
    history.write(3)
    history.now = 104.5
    pending = history.begin()
    history.now = 109.0  # how long the answer took is not held against it
    (finding,) = history.answer(pending, 1)
    assert finding.age == pytest.approx(3.5)
    pending = history.begin("another")
    (finding,) = [one for one in history.answer(pending, 2) if one.kind is Kind.STALE_ACKNOWLEDGED]
    assert finding.age == pytest.approx(5.0)


def test_an_etag_is_a_floor_that_nothing_excuses(history: History) -> None:
    history.read(3)
    findings = history.answer(history.begin(tag=3), 2)
    assert Kind.MIN_VERSION in kinds(findings)
    (min_version,) = [finding for finding in findings if finding.kind is Kind.MIN_VERSION]
    assert not is_excused(min_version, 1000.0)


def test_not_modified_counts_as_the_version_of_its_tag(history: History) -> None:
    history.read(3)
    history.write(4)
    findings = history.ledger.answered(history.begin(tag=3), 3, None)
    assert kinds(findings) == [Kind.STALE_ACKNOWLEDGED]


def test_not_modified_with_a_tag_the_client_does_not_have(history: History) -> None:
    history.read(3)
    assert kinds(history.ledger.answered(history.begin(tag=3), 4, None)) == [Kind.WRONG]


def test_a_job_that_has_ended_does_not_go_on(history: History) -> None:
    history.write(3, terminal=True)
    assert kinds(history.read(4)) == [Kind.TERMINAL]


def test_a_job_that_has_ended_is_not_shown_as_it_was(history: History) -> None:
    history.write(2)
    history.write(3, terminal=True)
    findings = history.read(2)
    assert kinds(findings) == [Kind.STALE_ACKNOWLEDGED, Kind.TERMINAL]


def test_an_end_below_a_version_that_was_known(history: History) -> None:
    early = history.begin()
    history.write(5)
    assert kinds(history.answer(early, 4, terminal=True)) == [Kind.TERMINAL]


def test_one_version_has_one_body(history: History) -> None:
    history.write(2, percent=10)
    assert kinds(history.read(2, percent=11)) == [Kind.BYTES]


def test_two_writers_are_not_given_one_version(history: History) -> None:
    one, other = history.begin("one"), history.begin("other")
    ledger = history.ledger
    assert ledger.acknowledged(one, 2, body(1, 2, message="one"), changes=True) == []
    found = ledger.acknowledged(other, 2, body(1, 2, message="other"), changes=True)
    assert kinds(found) == [Kind.BYTES]


def test_a_change_is_newer_than_what_was_known(history: History) -> None:
    history.write(2)
    assert kinds(history.write(2)) == [Kind.ORDER]
    repeated = history.ledger.acknowledged(history.begin(), 2, body(1, 2), changes=False)
    assert repeated == []


def test_an_acknowledgement_is_an_answer_as_well(history: History) -> None:
    history.write(3)
    pending = history.begin("writer")
    found = history.ledger.acknowledged(pending, 2, body(1, 2), changes=False)
    assert Kind.STALE_ACKNOWLEDGED in kinds(found)


@pytest.mark.parametrize("wrong", [body(2, 4), body(1, 5), b"[]", b"{", b"{}", b""])
def test_the_document_is_the_one_that_was_asked_for(history: History, wrong: bytes) -> None:
    history.write(3)
    assert kinds(history.ledger.answered(history.begin(), 4, wrong)) == [Kind.WRONG]
    assert history.ledger.known(1) == 3, "and says nothing of this job"


def test_a_job_that_exists_is_found(history: History) -> None:
    assert history.ledger.not_found(history.begin()) == []
    history.write(1)
    assert kinds(history.ledger.not_found(history.begin())) == [Kind.MISSING]


@pytest.mark.parametrize("row", [None, 1])
def test_what_was_acknowledged_is_in_the_database(history: History, row: int | None) -> None:
    history.write(2)
    assert kinds(history.ledger.compare(1, row, terminal=False)) == [Kind.LOST]


def test_what_was_shown_is_in_the_database(history: History) -> None:
    history.write(2)
    history.read(3)
    assert kinds(history.ledger.compare(1, 2, terminal=False)) == [Kind.LOST]
    assert history.ledger.compare(1, 4, terminal=False) == [], "an unknown outcome may appear"


def test_a_job_that_has_ended_has_ended_in_the_database(history: History) -> None:
    history.write(2, terminal=True)
    assert kinds(history.ledger.compare(1, 2, terminal=False)) == [Kind.TERMINAL]


# --- what a promise excuses ---


def test_a_bound_excuses_what_is_not_older_than_it() -> None:
    young = Finding(Kind.STALE_SEEN, 1, "", 2.9)
    old = Finding(Kind.STALE_SEEN, 1, "", 3.1)
    assert is_excused(young, 3.0)
    assert not is_excused(old, 3.0)
    assert not is_excused(young, None), "a fresh promise excuses nothing"


def judged(finding: Finding, scope: Scope, process: int | None) -> Tally:
    tally = Tally()
    tally.judge([finding], scope, process, "")
    return tally


@pytest.mark.parametrize(
    ("scope", "process", "excused"),
    [
        (Scope("x", "during", bound=3.0), 0, True),
        (Scope("x", "during", bound=3.0, spared=1), 0, True),
        (Scope("x", "during", bound=3.0, spared=0), 0, False),
        (Scope("x", "during"), 0, False),
    ],
)
def test_the_process_that_is_cut_off_is_held_to_more(
    scope: Scope, process: int, *, excused: bool
) -> None:
    tally = judged(Finding(Kind.STALE_SEEN, 1, "", 1.0), scope, process)
    assert tally.bounded[Kind.STALE_SEEN] == excused
    assert tally.violations[Kind.STALE_SEEN] == (not excused)
    assert max(tally.worst.values()) == (1.0 if excused else 0.0)


def test_the_worst_age_is_told_where_it_is_above_the_bound() -> None:
    tally = judged(Finding(Kind.STALE_SEEN, 1, "", 5.0), Scope("x", "after", bound=3.0), 0)
    assert tally.violations[Kind.STALE_SEEN] == 1
    assert max(tally.worst.values()) == 5.0
    assert tally.examples


def test_sums_have_everything_in_them() -> None:
    one, other = Tally(reads=2, hits=1), Tally(reads=3, unanswered=4)
    other.violations[Kind.LOST] = 5
    other.times["after"].append(0.5)
    whole = total([one, other])
    assert (whole.reads, whole.hits, whole.unanswered) == (5, 1, 4)
    assert whole.violations == {Kind.LOST: 5}
    assert list(whole.times["after"]) == [0.5]


@pytest.mark.parametrize("kind", [Kind.BACKWARD, Kind.MIN_VERSION])
def test_a_client_may_go_back_only_while_two_databases_answer(kind: Kind) -> None:
    finding = Finding(kind, 1, "")
    one = Scope("x", "during", bound=3.0, lag=3.0)
    assert judged(finding, one, 0).violations[kind] == 1
    assert not judged(finding, replace(one, two_sources=True), 0).violations
    too_old = Finding(Kind.STALE_SEEN, 1, "", 5.0)
    assert judged(too_old, replace(one, two_sources=True), 0).violations
