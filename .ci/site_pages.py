"""Copy the pages of the documentation site to a folder: `make docs`.

The folders stay as they are, so links between pages work in the checkout and on the site. What the
pages link to comes along: programs become pages, because browsers would download them, a folder
becomes the list of its files, and any other file can be downloaded.
"""

import os
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = (
    "*.md",
    "docs/**/*.md",
    "docs/**/*.css",
    "benchmarks/*.md",
    "loadtests/*.md",
    "examples/*.md",
)
"""The pages. Files that they link to and show are found in them."""
CODE_OR_LINK = re.compile(
    r"^( *)```.*?^\1```$|`[^`\n]*`"  # code, which stays as it is
    r"|\]\((?!\w+:|#)(?P<target>[^)#\s]+)",
    re.MULTILINE | re.DOTALL,
)


class Pages:
    """The files of the site, by their path in it.

    Attributes:
        written: their content.
    """

    def __init__(self) -> None:
        self.written: dict[str, bytes] = {}
        for path in sorted(path for pattern in COPIED for path in ROOT.glob(pattern)):
            self._add(path.relative_to(ROOT).as_posix(), path.read_bytes())

    def _add(self, name: str, content: bytes) -> None:
        self.written[name] = content  # first, for pages link to each other
        if name.endswith(".md"):
            text = CODE_OR_LINK.sub(lambda found: self._followed(found, name), content.decode())
            self.written[name] = text.encode()

    def _followed(self, found: re.Match[str], page: str) -> str:
        """Return a link of a page as the site needs it, and add the file that it leads to."""
        target = found["target"]
        if target is None:
            return found[0]
        path = ROOT / os.path.normpath((ROOT / page).parent / target)
        at = path.relative_to(ROOT).as_posix()
        if path.is_dir():
            index = path / "README.md"
            if f"{at}/README.md" not in self.written:
                content = index.read_bytes() if index.exists() else folder(path).encode()
                self._add(f"{at}/README.md", content)
            return f"{found[0].rstrip('/')}/README.md"
        if path.suffix == ".py":
            at = at.removesuffix(".py") + ".md"
            if at not in self.written:
                self._add(at, program(path).encode())
            return found[0].removesuffix(".py") + ".md"
        if path.suffix != ".md" and path.is_file():
            self.written[at] = path.read_bytes()
        return found[0]


def program(path: Path) -> str:
    """Return a page that shows a program."""
    source = path.read_text("utf-8").rstrip()
    return f"# {path.relative_to(ROOT).as_posix()}\n\n```python\n{source}\n```\n"


def folder(path: Path) -> str:
    """Return a page that lists the files of a folder."""
    names = [each.name for each in sorted(path.iterdir()) if each.is_file()]
    listed = "".join(f"- [{name}]({name})\n" for name in names)
    return f"# {path.relative_to(ROOT).as_posix()}/\n\n{listed}"


def write(site: Path) -> None:
    """Write all files of the site to a folder, which is emptied first."""
    shutil.rmtree(site, ignore_errors=True)
    for name, content in Pages().written.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_bytes(content)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
