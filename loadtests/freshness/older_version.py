"""The code of an older version, from the history of the repository.

The dependencies are those of this version.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.process import Process

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_ROOT = Path(__file__).parents[2]
FIRST = "d320b54"
"""The commit of the first version. Its databases have no revision, its cells no other format."""


class NoHistory(Exception):  # noqa: N818 - says what is the matter
    """The repository does not have the commit of the older version."""


class OlderVersion:
    """The service at an older commit.

    Args:
        folder: an empty one, for its code.
        commit: of this repository.

    Raises:
        NoHistory: this repository, or what there is of it, does not have the commit.
    """

    def __init__(self, folder: Path, commit: str = FIRST) -> None:
        self.folder = folder
        self.commit = commit
        archive = subprocess.run(  # noqa: S603 - git
            ["git", "archive", commit, "app", "jobcache", "pyproject.toml"],  # noqa: S607
            cwd=_ROOT,
            capture_output=True,
            check=False,
        )
        if archive.returncode:
            raise NoHistory(f"{commit}: {archive.stderr.decode(errors='replace').strip()}")
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(folder, filter="data")
        self._write_metadata()

    def _write_metadata(self) -> None:
        """Install the entry points, without which it would find the backends of this version."""
        project = tomllib.loads((self.folder / "pyproject.toml").read_text("utf-8"))["project"]
        metadata = self.folder / "jobcache-0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: jobcache\nVersion: 0\n")
        lines = []
        for group, points in project["entry-points"].items():
            lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
        (metadata / "entry_points.txt").write_text("\n".join([*lines, ""]))

    def process(self, environment: Mapping[str, str]) -> Process:
        """Return a process of its service, not started yet."""
        module = "loadtests.freshness.older_service"
        return Process([sys.executable, "-m", module, str(self.folder)], environment)


@contextmanager
def older_version(commit: str) -> Iterator[OlderVersion]:
    """Keep the code of a commit for as long as the block runs. Raises as `OlderVersion`."""
    with tempfile.TemporaryDirectory(prefix="jobcache-older-") as folder:
        yield OlderVersion(Path(folder), commit)
