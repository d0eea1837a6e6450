"""The service without the counts of polls, to measure what they cost.

python -m benchmarks.uncounted serve
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from typing import Any

from app.__main__ import main
from jobcache.http import fast_path

_COUNTS = 5  # the lines at the end of the method that count


def leave_out_the_counts() -> None:
    """Replace the method that replies to polls by the same one without its lines that count."""
    polled = vars(fast_path)["_PolledPath"]
    lines = textwrap.dedent(inspect.getsource(polled.reply)).splitlines()
    *kept, last = lines
    kept, counts = kept[:-_COUNTS], kept[-_COUNTS:]
    assert last.strip() == "return reply"
    assert counts[0].strip().startswith("counts = ")
    assert "counts" not in "".join(kept)
    kept.append(last)
    made: dict[str, Any] = {}
    source = "\n".join(["from __future__ import annotations", *kept])
    exec(source, vars(fast_path), made)  # noqa: S102 - our own source
    polled.reply = made["reply"]


if __name__ == "__main__":
    leave_out_the_counts()
    sys.exit(main(sys.argv[1:]))
