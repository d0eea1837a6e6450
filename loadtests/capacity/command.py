"""The command that computes what a number of pollers needs."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from loadtests.capacity import calibrate, coefficients, simulate
from loadtests.capacity.arguments import add_hardware, add_workload, flag, hardware_of, workload_of
from loadtests.capacity.bottlenecks import resources
from loadtests.capacity.model import predict
from loadtests.capacity.report import report
from loadtests.capacity.workload import InvalidWorkload

if TYPE_CHECKING:
    from collections.abc import Sequence

DESCRIPTION = """Compute what a number of pollers needs, and name the first bottleneck.

python -m loadtests capacity --pollers 100000 --jobs 10000 --backend tiered --nodes 2 --processes 4
python -m loadtests capacity calibrate --help: measure the costs on this machine
python -m loadtests capacity simulate --help: simulate many processes, and a cold start
"""


def main(arguments: Sequence[str]) -> int:
    """Print what a load needs, and return 0; or run the command that the first argument names."""
    commands = {"calibrate": calibrate.main, "simulate": simulate.main}
    if arguments and arguments[0] in commands:
        return commands[arguments[0]](arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m loadtests capacity",
        description=DESCRIPTION,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_workload(parser)
    add_hardware(parser)
    options = parser.parse_args(arguments)
    try:
        workload, hardware = workload_of(options), hardware_of(options)
        costs = coefficients.load(options.calibration)
    except InvalidWorkload as error:
        parser.error(f"argument {flag(error.name)}: {error.reason}")
    except coefficients.InvalidCalibration as error:
        parser.error(str(error))
    prediction = predict(workload, costs)
    used = resources(workload, prediction, hardware)
    sys.stdout.write(report(workload, prediction, used, hardware, costs.origin))
    return 0
