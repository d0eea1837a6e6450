"""What is known by its bytes."""

from __future__ import annotations

from app.jobs.known import Known


def test_what_has_come_twice_is_worth_to_be_kept() -> None:
    known: Known[str] = Known(10, 100)
    assert [known.met(b"a"), known.met(b"b"), known.met(b"a"), known.met(b"a")] == [
        False,
        False,
        True,
        True,
    ]
    known.keep(b"a", "A")
    assert (known.get(b"a"), known.get(b"b")) == ("A", None)


def test_hardly_anything_that_comes_once_is_kept() -> None:
    known: Known[int] = Known(10, 100)
    wrong = sum(known.met(b"%d" % number) for number in range(100_000))
    # Each after the first 32,768 meets another's fingerprint, which is the same for one in 255.
    assert 0 < wrong < 600


def test_what_comes_again_among_many_others_is_still_met() -> None:
    known: Known[int] = Known(10, 100)
    for number in range(5000):
        known.met(b"%d" % number)
    assert sum(known.met(b"%d" % number) for number in range(5000)) > 4000


def test_of_too_many_the_first_are_forgotten() -> None:
    known: Known[int] = Known(3, 100)
    for number in range(5):
        known.keep(b"%d" % number, number)
    assert [known.get(b"%d" % number) for number in range(5)] == [None, None, 2, 3, 4]
    assert len(known) == 3
    known.forget(b"3")
    known.forget(b"nothing")
    assert (len(known), known.get(b"3")) == (2, None)


def test_what_is_too_long_is_never_met() -> None:
    known: Known[int] = Known(3, 100)
    assert [known.met(b"x" * length) for length in (100, 100, 101, 101)] == [
        False,
        True,
        False,
        False,
    ]
