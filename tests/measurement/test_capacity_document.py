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
BLOCKS = re.findall(
    r"```sh\n(python -m loadtests capacity --.*?)```\n+```text\n(.*?)```", PAGE, re.DOTALL
)


def test_each_recommendation_is_computed_by_its_command(command: Command) -> None:
    assert len(BLOCKS) >= 5
    for code, printed in BLOCKS:
        words = shlex.split(code.replace("\\\n", " "))
        status, said, _ = command.run(main, *words[3:])
        assert status == 0
        missing = [line for line in printed.splitlines() if line not in said.splitlines()]
        assert not missing, f"{code}: {said}"


def test_every_recommended_deployment_fits() -> None:
    sentences = [line for _, printed in BLOCKS for line in printed.splitlines() if "First" in line]
    assert len(sentences) == len(BLOCKS)
    assert sum("margin" in line for line in sentences) >= 3


def test_the_figures_of_the_calibration_are_those_of_the_file() -> None:
    costs = coefficients.load(CALIBRATION)
    assert costs.origin["machine"] in PAGE
    assert costs.origin["commit"] in PAGE
    for name, cost in costs.services.items():
        figures = f"{1e6 * cost.poll:.0f} | {1e6 * cost.wakeup:.0f} | {1e3 * cost.update:.1f}"
        assert f"| {name} | {figures} |" in PAGE
