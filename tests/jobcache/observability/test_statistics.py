"""Histograms and lifetimes: small things that every figure rests on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobcache import Document, Lifetimes
from jobcache.observability.metrics import add
from jobcache.observability.statistics import Histogram
from jobcache.protocol.document import GONE


@given(st.lists(st.integers(0, 10**12), min_size=1), st.floats(0, 100))
def test_a_percentile_is_at_most_a_sixteenth_above_the_true_one(
    values: list[int], percent: float
) -> None:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    rank = max(1, -(-len(values) * percent // 100))
    true = sorted(values)[int(rank) - 1]
    shown = histogram.percentile(percent)
    assert true <= shown <= true * (1 + 1 / 16)


def test_an_empty_histogram_and_an_absurd_value_are_no_trouble() -> None:
    histogram = Histogram()
    assert histogram.percentile(99) == 0
    histogram.record(10**30)
    assert histogram.summary()["count"] == 1


def document(version: int, status: str) -> Document:
    return Document(version, "acme", b"{}", status, 1)


def test_lifetimes_follow_the_status_and_are_only_ever_shortened() -> None:
    lifetimes = Lifetimes(
        by_status={"completed": 3600, "secret": 0}, jitter=0.2, random=lambda: 0.5
    )
    moving = lifetimes.entry(document(1, "rendering"), 5)
    assert (moving.stored_at_ms, moving.fresh_ms, moving.keep_ms) == (5, 27_000, 327_000)
    assert lifetimes.entry(document(1, "completed"), 5).fresh_ms == 3_240_000
    gone = lifetimes.entry(GONE, 5)
    assert (gone.fresh_ms, gone.keep_ms) == (4500, 4500)
    assert lifetimes.entry(document(1, "secret"), 5).keep_ms == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"default": -1},
        {"grace": -1},
        {"jitter": 1},
        {"by_status": {"x": -1}},
        {"default": float("inf")},
    ],
)
def test_impossible_lifetimes_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"negative|jitter"):
        Lifetimes(**wrong)  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 10**12)))
def test_buckets_that_end_at_powers_of_two_are_exact_and_the_sum_nearly(values: list[int]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    powers = range(4, 40)
    assert list(histogram.below_powers(powers)) == [
        (1 << power, sum(value < 1 << power for value in values)) for power in powers
    ]
    assert histogram.total() == pytest.approx(sum(values), rel=0.032, abs=len(values))


@given(st.lists(st.integers(0, 10**12)), st.lists(st.integers(0, 10**12)))
def test_histograms_of_two_processes_add_up(first: list[int], second: list[int]) -> None:
    one, two, both = Histogram(), Histogram(), Histogram()
    for value in first:
        one.record(value)
        both.record(value)
    for value in second:
        two.record(value)
        both.record(value)
    assert Histogram.of(add(one.counts(), two.counts())).summary() == both.summary()
