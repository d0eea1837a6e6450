"""The recommendations of docs/capacity.md are what its commands print."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from loadtests.__main__ import main
from loadtests.capacity import coefficients
from loadtests.capacity.arguments import CALIBRATION
from tests.measurement.in_process import Command

PAGE = (Path(__file__).parents[2] / "docs/capacity.md").read_text()


def blocks(command: str) -> list[tuple[str, str]]:
    """Return the commands that begin so, and what they print."""
    return re.findall(rf"```sh\n({command}.*?)```\n+```text\n(.*?)```", PAGE, re.DOTALL)


COMPUTED = blocks("python -m loadtests capacity --")
SIMULATED = blocks("python -m loadtests capacity simulate ")


def run(command: Command, code: str, printed: str) -> str:
    status, said, _ = command.run(main, *shlex.split(code)[3:])
    assert status == 0
    missing = [line for line in printed.splitlines() if line not in said.splitlines()]
    assert not missing, f"{code}: {said}"
    return said


def test_each_recommendation_is_computed_by_its_command(command: Command) -> None:
    assert len(COMPUTED) >= 5
    for code, printed in COMPUTED:
        run(command, code, printed)


def test_each_simulation_prints_what_the_page_shows(command: Command) -> None:
    assert len(SIMULATED) >= 3
    for code, printed in SIMULATED:
        assert "lower limit" not in run(command, code, printed), code


def test_every_recommended_deployment_fits() -> None:
    printed = [line for _, lines in COMPUTED for line in lines.splitlines()]
    sentences = [line for line in printed if "First" in line]
    assert len(sentences) == len(COMPUTED)
    assert sum("margin" in line for line in sentences) >= 3


def test_the_figures_of_the_calibration_are_those_of_the_file() -> None:
    costs = coefficients.load(CALIBRATION)
    assert costs.origin["machine"] in PAGE
    assert costs.origin["commit"] in PAGE
    for name, cost in costs.services.items():
        figures = f"{1e6 * cost.poll:.0f} | {1e6 * cost.wakeup:.0f} | {1e3 * cost.update:.1f}"
        assert f"| {name} | {figures} |" in PAGE
