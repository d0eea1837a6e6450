"""The command that calibrates the model on this machine and validates it."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from app.devservers import ServerFailed
from benchmarks.service import ServiceFailed
from loadtests.capacity import validation
from loadtests.capacity.calibration import FULL, QUICK, Measured, calibrate
from loadtests.open_loop.files import allow_files

if TYPE_CHECKING:
    from collections.abc import Sequence

RESULTS = Path(__file__).parents[1] / "results"

NOISE = 0.2
"""Cores that other processes may use on average before a run is called noisy."""

DESCRIPTION = """Measure the costs of polls, updates and queries on this machine.

python -m loadtests capacity calibrate --write loadtests/results/calibration.json
"""


def main(arguments: Sequence[str]) -> int:
    """Calibrate and validate; return 1 if a prediction is wrong by more than 20 %, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests capacity calibrate",
        description=DESCRIPTION,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="short loads: shows that it works")
    parser.add_argument(
        "--write",
        type=Path,
        help="where the measured costs go; default: loadtests/results/calibration.json, or"
        " calibration-quick.json",
    )
    options = parser.parse_args(arguments)
    allow_files()
    try:
        measured = calibrate(QUICK if options.quick else FULL)
    except (ServerFailed, ServiceFailed) as error:
        sys.stderr.write(f"nothing was calibrated: {error}\n")
        return 1
    name = "calibration-quick.json" if options.quick else "calibration.json"
    path: Path = options.write or RESULTS / name
    measured.coefficients.save(path)
    loads = {
        "fitted": [asdict(each) for each in measured.fitted],
        "held back": [asdict(each) for _, each in measured.held_back],
    }
    path.with_suffix(".loads.json").write_text(json.dumps(loads, indent=1) + "\n", "utf-8")
    status = judge(measured)
    sys.stdout.write(f"The costs are in {path}.\n")
    return status


def judge(measured: Measured) -> int:
    """Print predictions and measurements; return 1 if an error is too large, else 0."""
    comparisons = [
        comparison
        for point, observation in measured.held_back
        for comparison in validation.compare(
            measured.coefficients, point, observation, measured.body
        )
    ]
    sys.stdout.write(validation.table(comparisons))
    judged = [abs(each.error) for each in comparisons if each.error is not None]
    wrong = [each for each in comparisons if each.too_large]
    largest = f", the largest error is {100 * max(judged):.0f} %" if judged else ""
    sys.stdout.write(f"\n{len(judged)} of {len(comparisons)} quantities judged{largest}.\n")
    foreign = [each.foreign for each in measured.fitted]
    if foreign and sum(foreign) / len(foreign) > NOISE:
        sys.stdout.write(
            f"NOISY: other processes used {sum(foreign) / len(foreign):.2f} cores on average.\n"
        )
    if wrong or not judged:
        limit = f"{100 * validation.LARGEST_ERROR:g} %"
        sys.stdout.write(f"FAILED: {len(wrong)} predictions are wrong by more than {limit}.\n")
        return 1
    return 0
