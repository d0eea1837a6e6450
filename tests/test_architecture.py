"""The imports of the project have no cycle, and each module says first what it is."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("jobcache", "app", "benchmarks", "loadtests")


def test_no_modules_import_each_other_in_a_cycle() -> None:
    """Imports for type checking count: they, too, have to be understood together."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    assert len(graph.modules) > 150
    imports = {each: graph.find_modules_directly_imported_by(each) for each in graph.modules}
    TopologicalSorter(imports).prepare()  # raises an error that names a cycle


def test_a_cycle_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "cyclic"
    package.mkdir()
    guarded = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from cyclic import {}\n"
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text("import cyclic.two")
    (package / "two.py").write_text(guarded.format("one"))
    monkeypatch.syspath_prepend(tmp_path)
    graph = grimp.build_graph("cyclic", cache_dir=None)
    imports = {each: graph.find_modules_directly_imported_by(each) for each in graph.modules}
    with pytest.raises(CycleError, match=r"cyclic\.one"):
        TopologicalSorter(imports).prepare()


def test_every_package_has_a_contract_that_names_all_its_modules() -> None:
    """`make check` then refuses a module that has no layer."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    complete = {
        package
        for contract in settings["contracts"]
        if contract["type"] == "layers" and contract.get("exhaustive")
        for package in contract["containers"]
    }
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    packages = {each for each in graph.modules if graph.find_children(each)}
    assert len(packages) > 30
    assert packages - complete == set()


def test_every_module_says_first_what_it_is() -> None:
    wrong = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
            first = docstring.partition("\n")[0]
            words = first.split()
            if not first.endswith(".") or len(words) < 3 or words[0] == "See":
                wrong[str(path.relative_to(ROOT))] = first
    assert not wrong, "the first line is a sentence that says what the module is"


def test_settings_can_be_imported_without_the_frameworks() -> None:
    """Each process reads them first, also one that only prints them or manages keys."""
    program = (
        "import sys, app.settings;"
        " print({'fastapi', 'sqlalchemy', 'starlette', 'throttled', 'redis'} & sys.modules.keys())"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert shown.stdout == "set()\n"
