"""Print pip constraints: the lowest versions that pyproject.toml allows users of the project.

What only tests and checks need stays at the versions of constraints.txt. Indirect dependencies are
left to pip, because an old release may not accept their newest versions.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAME = r"[\w.-]+"


def normalised(name: str) -> str:
    """Return a project's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    """Print one constraint for each direct dependency."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    for_tests = {"dev", "docs", "servers"}
    of_users = [*project["dependencies"]]
    of_tests = []
    for extra, requirements in extras.items():
        (of_tests if extra in for_tests else of_users).extend(requirements)
    lowest = {}
    for requirement in of_users:
        found = re.match(rf"({NAME})(\[[^]]*\])?>=([\w.]+)", requirement)
        if found is None:
            raise SystemExit(f"no lower bound: {requirement}")
        lowest[normalised(found[1])] = f"{found[1]}=={found[3]}"
    tested = {normalised(re.match(NAME, requirement)[0]) for requirement in of_tests}
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        name = normalised(line.partition("==")[0])
        if name in tested and name not in lowest:
            lowest[name] = line
    print("\n".join(lowest.values()))


if __name__ == "__main__":
    main()
