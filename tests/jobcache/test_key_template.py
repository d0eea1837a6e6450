"""Templates of keys: different values never make the same key."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobcache._key_template import KeyTemplate, parse

MARKS = ":-_.~/%@ "
TEXTS = st.text(alphabet=f"ab{MARKS}", max_size=4)


@pytest.mark.parametrize("mark", [*MARKS.replace("%", ""), "--", "x-y"])
@given(one=st.tuples(TEXTS, TEXTS), other=st.tuples(TEXTS, TEXTS))
def test_two_values_have_keys_of_their_own(
    mark: str, one: tuple[str, str], other: tuple[str, str]
) -> None:
    template = KeyTemplate(f"k:{{a}}{mark}{{b}}", ["a", "b"])
    keys = [template(a=a, b=b) for a, b in (one, other)]
    assert (keys[0] == keys[1]) == (one == other)


def test_a_mark_of_the_template_is_escaped_in_values() -> None:
    template = KeyTemplate("{a}-{b}", ["a", "b"])
    assert template(a="x-y", b="z") == "x%2Dy-z"
    assert template(a="x", b="y-z") == "x-y%2Dz"


def test_a_single_value_stands_in_the_key_as_it_is() -> None:
    assert KeyTemplate("export:{id}", ["id"])(id="a/b:c") == "export:a/b:c"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{a}{b}", "put a character such as ':' between {a} and {b}"),
        ("{a}x{b}", "put a character"),
        ("{a.x}", "is not just a name"),
        ("{a!r}", "is not just a name"),
        ("{a:>3}", "is not just a name"),
        ("{a", "cannot be read"),
    ],
)
def test_a_template_that_is_ambiguous_is_refused(template: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(template)


@pytest.mark.parametrize("template", ["k", "{a}", "{a}:{c}", "{a}:{b}:{c}"])
def test_all_names_and_no_others_are_in_a_template(template: str) -> None:
    with pytest.raises(ValueError, match=r"must contain \{a\} and \{b\}"):
        KeyTemplate(template, ["a", "b"])
