"""Load tests: `python -m loadtests run` and `python -m loadtests capacity`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from benchmarks.process import exit_at_sigterm
from loadtests.capacity import command as capacity
from loadtests.run import command as run

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {"run": run.main, "capacity": capacity.main}
"""The commands by name. Each takes the other arguments and returns the exit status."""


def main(arguments: Sequence[str]) -> int:
    """Run the command that the first argument names; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtests", description=__doc__)
    parser.add_argument(
        "command",
        choices=COMMANDS,
        help="run: measure scenarios on backends and write a report;"
        " capacity: compute what a number of pollers needs",
    )
    if not arguments or arguments[0] not in COMMANDS:
        parser.parse_args(arguments[:1])  # shows the help, or refuses the command
    return COMMANDS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    exit_at_sigterm()
    sys.exit(main(sys.argv[1:]))
