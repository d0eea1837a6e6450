"""What is known by its bytes."""

from __future__ import annotations

from app.jobs.known import Known


def test_what_has_come_twice_is_to_be_kept() -> None:
    known: Known[str] = Known(10)
    assert [known.meet(said) for said in (b"a", b"b", b"a", b"a")] == [False, False, True, True]
    known.keep(b"a", "A")
    assert (known.get(b"a"), known.get(b"b")) == ("A", None)


def test_hardly_anything_that_has_not_come_before_is_to_be_kept() -> None:
    known: Known[int] = Known(10)
    assert sum(known.meet(b"%d" % number) for number in range(5000)) <= 8
    # In the end each meets another's fingerprint, which is the same for one in 255.
    assert 0 < sum(known.meet(b"later %d" % number) for number in range(100_000)) < 600


def test_what_comes_again_is_to_be_kept_however_many_others_have_come() -> None:
    known: Known[int] = Known(10)
    for number in range(300_000):
        known.meet(b"%d" % number)
    for number in range(5000):
        known.meet(b"again %d" % number)
    assert sum(known.meet(b"again %d" % number) for number in range(5000)) > 4000


def test_of_too_many_the_first_are_forgotten() -> None:
    known: Known[int] = Known(3)
    for number in range(5):
        known.keep(b"%d" % number, number)
    assert [known.get(b"%d" % number) for number in range(5)] == [None, None, 2, 3, 4]
    assert len(known) == 3
    known.forget(b"3")
    known.forget(b"nothing")
    assert (len(known), known.get(b"3")) == (2, None)


def test_a_few_too_many_that_come_in_turn_do_not_drive_each_other_out() -> None:
    known: Known[int] = Known(100)
    found = 0
    for _ in range(50):
        for number in range(125):
            said = b"%d" % number
            if known.get(said) is not None:
                found += 1
            elif known.meet(said):
                known.keep(said, number)
    assert found > 0.6 * 50 * 125


def test_where_all_places_are_taken_newcomers_get_theirs() -> None:
    known: Known[int] = Known(100)
    for number in range(100):
        known.keep(b"old %d" % number, number)
    for _ in range(40):
        for number in range(100):
            if known.meet(b"new %d" % number):
                known.keep(b"new %d" % number, number)
    assert all(known.get(b"old %d" % number) is None for number in range(100))
    assert len(known) == 100
