"""Measure how long servers take to stop while they hold requests.

Each round stops each server once while it is idle, and once while it holds polls and event streams.
The table shows the median of the seconds until the process has ended, and how many of the held
requests got a complete response. With --signs the signs are also used one by one, and not at all.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.machine import surroundings
from benchmarks.process import exit_at_sigterm
from benchmarks.shutdown.servers import SERVERS
from benchmarks.shutdown.signs import SIGNS
from benchmarks.shutdown.trial import TrialFailed, take
from loadtests.arguments import count, positive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.shutdown.trial import Trial

ALLOWED = 0.5
"""Seconds that held requests may add to the end of a server."""
_COLUMNS = {
    "idle": "idle",
    "both": "with held requests",
    "none": "nothing done",
    "signal": "the signal only",
    "socket": "the socket only",
}


def main(arguments: Sequence[str]) -> int:
    """Print the table. Return 1 if a server took too long or cut off a response."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shutdown", description=__doc__)
    parser.add_argument("--rounds", type=count, default=3, help="each server is stopped; 3")
    parser.add_argument("--polls", type=count, default=40, help="that a server holds; 40")
    parser.add_argument("--streams", type=count, default=10, help="that a server holds; 10")
    parser.add_argument("--signs", action="store_true", help="use the signs one by one as well")
    parser.add_argument("--patience", type=positive, default=12.0, help="seconds; 12")
    options = parser.parse_args(arguments)
    try:
        trials = asyncio.run(measure(options))
    except TrialFailed as error:
        sys.stderr.write(f"{error}\n")
        return 2
    around = ", ".join(f"{name} {value}" for name, value in surroundings().items())
    lines = [*table(trials, options.patience), "", f"Taken with: {around}."]
    broken = [name for name, found in trials.items() if not holds(found)]
    lines += [f"FAILED: {name}" for name in broken]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if broken else 0


async def measure(options: argparse.Namespace) -> dict[str, dict[str, list[Trial]]]:
    """Return the trials of each server, by column: "idle", and each of the signs."""
    signs = SIGNS if options.signs else SIGNS[:1]
    trials: dict[str, dict[str, list[Trial]]] = {
        server.name: defaultdict(list) for server in SERVERS
    }
    for _ in range(options.rounds):
        for server in SERVERS:
            idle = await take(server, polls=0, streams=0, patience=options.patience)
            trials[server.name]["idle"].append(idle)
            for each in signs:
                trials[server.name][each].append(
                    await take(
                        server,
                        polls=options.polls,
                        streams=options.streams,
                        signs=each,
                        patience=options.patience,
                    )
                )
    return trials


def table(trials: dict[str, dict[str, list[Trial]]], patience: float) -> list[str]:
    """Return the lines of a table in Markdown, in seconds."""
    columns = list(next(iter(trials.values())))
    titles = [_COLUMNS[each] for each in columns]
    lines = [
        f"| seconds until the process has ended | {' | '.join(titles)} |",
        "| --- |" + " --- |" * len(titles),
    ]
    for name, found in trials.items():
        cells = " | ".join(_shown(found[each], patience) for each in columns)
        lines.append(f"| {name} | {cells} |")
    return lines


def holds(found: dict[str, list[Trial]]) -> bool:
    """Tell whether all responses were complete, and the held requests cost little time."""
    idle, busy = _median(found["idle"]), _median(found["both"])
    complete = all(trial.complete == trial.held for trial in found["both"])
    return complete and busy <= idle + ALLOWED


def _median(trials: list[Trial]) -> float:
    return median(float("inf") if each.seconds is None else each.seconds for each in trials)


def _shown(trials: list[Trial], patience: float) -> str:
    seconds = _median(trials)
    text = f">{patience:.0f}" if seconds == float("inf") else f"{seconds:.2f}"
    complete, held = sum(each.complete for each in trials), sum(each.held for each in trials)
    return text if complete == held else f"{text}, {held - complete} of {held} cut off"


if __name__ == "__main__":
    exit_at_sigterm()
    sys.exit(main(sys.argv[1:]))
