"""Compare two runs, and list the subjects that got slower beyond the noise.

    python -m benchmarks.compare benchmarks/results/OLD.json benchmarks/results/latest.json

Where a section has a reference, such as a dictionary or a plain ASGI function, the ratios to it are
compared, turn by turn, because the machine differs between two runs. With `--absolute`, and without
a reference, the figures themselves are compared.

Slower means: the medians differ by more than the interquartile ranges of both, and by more than
`--floor`. Only jobcache is judged. Peers and limits do not change between commits, so their
differences show how the machine has changed. The exit status is 1 if anything got slower, and 2 if
the files cannot be compared.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from math import hypot
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import results
from benchmarks.results import NoResults, Run, Section, Series, ratios, rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_FLOOR = 0.05
_COMPARABLE = ("machine", "python")


@dataclass(frozen=True)
class Change:
    """One subject in two runs.

    Attributes:
        section: its title.
        subject: its name, and where it stands on the scale.
        cost: the new cost divided by the old one: above 1 is slower.
        noise: how far from 1 the cost may be by chance.
        relative: True if it was the ratio to the reference that was compared.
        ours: False for peers and limits.
    """

    section: str
    subject: str
    cost: float
    noise: float
    relative: bool
    ours: bool

    @property
    def slower(self) -> bool:
        """Return True if it got slower beyond the noise."""
        return self.cost > 1 + self.noise

    @property
    def faster(self) -> bool:
        """Return True if it got faster beyond the noise."""
        return 1 / self.cost > 1 + self.noise


def changes(
    old: Run, new: Run, *, floor: float = _FLOOR, absolute: bool = False
) -> Iterator[Change]:
    """Return the change of every subject that is in both runs.

    Raises:
        NoResults: there is none, or one of the runs was a quick one.
    """
    if old.quick or new.quick:
        raise NoResults("a quick run says nothing about speed")
    found = False
    for section in old.sections:
        try:
            now = new.find(section.name)
        except NoResults:
            continue
        for before in section.series:
            after = _same(before, now)
            if after is None or not (before.median and after.median):
                continue
            found = True
            pair = None if absolute else _relative(section, before, now, after)
            one, other = pair or (before, after)
            cost = (
                one.median / other.median if section.more_is_better else other.median / one.median
            )
            yield Change(
                section.title,
                before.subject if before.x is None else f"{before.subject}, {before.x:,.0f}",
                cost,
                max(floor, hypot(one.noise, other.noise)),
                pair is not None,
                before.kind == "ours",
            )
    if not found:
        raise NoResults("the two runs have nothing in common")


def _same(one: Series, section: Section) -> Series | None:
    try:
        return section.find(one.subject, one.x)
    except NoResults:
        return None


def _relative(
    section: Section, before: Series, now: Section, after: Series
) -> tuple[Series, Series] | None:
    """Return both as ratios to their run's reference, or None if there is none."""
    if section.reference in {"", before.subject} or section.reference != now.reference:
        return None
    then = _same(replace(before, subject=section.reference), section)
    since = _same(replace(after, subject=now.reference), now)
    if then is None or since is None:
        return None
    return (
        replace(before, samples=ratios(before, then)),
        replace(after, samples=ratios(after, since)),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the changes; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--floor", type=float, default=_FLOOR, help="what is never noticed; 0.05")
    parser.add_argument("--absolute", action="store_true", help="times, not ratios to a reference")
    options = parser.parse_args(arguments)
    try:
        old, new = results.load(options.old), results.load(options.new)
        found = list(changes(old, new, floor=options.floor, absolute=options.absolute))
    except (OSError, NoResults) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    judged = [one for one in found if one.ours]
    slower = sorted((one for one in judged if one.slower), key=lambda one: -one.cost)
    faster = sorted((one for one in judged if one.faster), key=lambda one: one.cost)
    for name in _COMPARABLE:
        if old.surroundings.get(name) != new.surroundings.get(name):
            sys.stdout.write(
                f"Of different {name}s: {old.surroundings[name]}; {new.surroundings[name]}\n\n"
            )
    sys.stdout.write("\n".join(_report("Slower", slower) + _report("Faster", faster)))
    sys.stdout.write(f"{len(judged)} compared, {len(slower)} slower, {len(faster)} faster.\n")
    others = [one.cost for one in found if not one.ours and (one.relative or options.absolute)]
    if others:
        sys.stdout.write(
            f"{len(others)} that are not ours cost {median(others):.2f} times what they did "
            f"({min(others):.2f} to {max(others):.2f}): so much the machine may have changed.\n"
        )
    return 1 if slower else 0


def _report(word: str, found: Sequence[Change]) -> list[str]:
    if not found:
        return []
    head = ["section", "subject", "cost, new over old", "noise", "compared"]
    lines = (
        [
            one.section,
            one.subject,
            f"{one.cost:.2f}",
            f"{one.noise:.0%}",
            "to the reference" if one.relative else "by itself",
        ]
        for one in found
    )
    return [f"## {word}", "", *rows(head, lines), "", ""]


if __name__ == "__main__":
    sys.exit(main())
