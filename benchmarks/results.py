"""Results of the benchmarks: their form in JSON, and the comparison of two series.

A run has sections, a section has series, a series has one sample for each turn. All series of a
section took the same turns, so ratios are taken turn by turn: if the machine slows down, it does so
for both series.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

Kind = Literal["ours", "peer", "tuned peer", "limit"]
"""`peer`: set up as its documentation recommends; `tuned peer`: as fast as we could make it;
`limit`: what no cache can be faster than, or what there is without one."""

_FORMAT = 1


class NoResults(Exception):  # noqa: N818 - says what is the matter
    """The file does not contain the requested result."""


@dataclass(frozen=True)
class Series:
    """One subject under one workload.

    Attributes:
        subject: its name.
        kind: its role in the comparison.
        how: how it is set up.
        samples: one for each turn, in the unit of the section.
        x: where it stands on the section's scale, in sections that have one.
        details: further figures, each a list with one item for each turn.
    """

    subject: str
    kind: Kind
    how: str
    samples: list[float]
    x: float | None = None
    details: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Return the median of the samples."""
        return median(self.samples)

    @property
    def noise(self) -> float:
        """Return the interquartile range of the samples, divided by the median."""
        if len(self.samples) < 2 or not self.median:
            return 0.0
        first, _, third = quantiles(self.samples, n=4, method="inclusive")
        return (third - first) / self.median


@dataclass(frozen=True)
class Section:
    """Subjects that did the same work, in turn.

    Attributes:
        name: for programs.
        title: for people.
        workload: what was done.
        unit: of the samples.
        more_is_better: True for rates, False for costs.
        reference: the subject that ratios are shown to; empty if none is.
        scale: what `x` is; empty without one.
        driver: what did the asking.
        series: of all subjects.
        facts: single figures, with their units in their names.
    """

    name: str
    title: str
    workload: str
    unit: str
    more_is_better: bool
    reference: str = ""
    scale: str = ""
    driver: str = "one coroutine of the same process"
    series: list[Series] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)

    def find(self, subject: str, x: float | None = None) -> Series:
        """The series of a subject.

        Raises:
            NoResults: it was not measured.
        """
        for one in self.series:
            if one.subject == subject and (x is None or one.x == x):
                return one
        raise NoResults(f"{subject} was not measured: {self.title}")

    def fact(self, name: str) -> float:
        """A single figure.

        Raises:
            NoResults: it was not taken.
        """
        try:
            return self.facts[name]
        except KeyError:
            raise NoResults(f"{name} was not measured: {self.title}") from None

    def best(self, chosen: Callable[[Series], bool]) -> Series:
        """The fastest of the chosen series, by its median.

        Raises:
            NoResults: none was measured.
        """
        found = sorted(filter(chosen, self.series), key=lambda one: one.median)
        if not found:
            raise NoResults(f"no other cache was measured: {self.title}")
        return found[-1 if self.more_is_better else 0]


@dataclass(frozen=True)
class Missing:
    """A subject that could not be measured here, and the reason."""

    subject: str
    reason: str


@dataclass(frozen=True)
class Run:
    """All that one command has measured.

    Attributes:
        command: which.
        surroundings: date, machine, Python and commit.
        load: of the machine, before and at the end.
        sections: what was measured.
        missing: what was not.
        versions: of the packages that were measured, or measured with.
        quick: whether it only shows that the benchmarks work; its figures mean nothing then.
    """

    command: str
    surroundings: dict[str, str]
    load: list[float]
    sections: list[Section] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    quick: bool = False

    def find(self, name: str) -> Section:
        """A section.

        Raises:
            NoResults: it was not measured.
        """
        for section in self.sections:
            if section.name == name:
                return section
        raise NoResults(f"{name} was not measured")


def ratios(one: Series, other: Series) -> list[float]:
    """Return the ratios of `one` to `other`, turn by turn."""
    return [mine / its for mine, its in zip(one.samples, other.samples, strict=True)]


def spread(values: Sequence[float], style: str) -> str:
    """Return median, lowest and highest as text."""
    return f"{median(values):{style}} ({min(values):{style}} to {max(values):{style}})"


def rows(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """Return a Markdown table."""
    return [f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines]]


def save(run: Run, path: Path) -> None:
    """Write a run as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"format": _FORMAT, **asdict(run)}
    path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def load(path: Path) -> Run:
    """Read what `save` wrote.

    Raises:
        NoResults: it is something else.
        OSError: it cannot be read.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
        if document.pop("format") != _FORMAT:
            raise NoResults("results of another format")
        sections = [
            Section(**{**section, "series": [Series(**one) for one in section["series"]]})
            for section in document.pop("sections")
        ]
        missing = [Missing(**one) for one in document.pop("missing")]
        return Run(**document, sections=sections, missing=missing)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise NoResults(f"these are no results: {error!r}") from error
