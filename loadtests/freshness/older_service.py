"""The service of an older version, unchanged.

python -m loadtests.freshness.older_service FOLDER
"""

from __future__ import annotations

import os
import sys
from functools import partial

import uvicorn

from loadtests.freshness.owner import KEEP_ALIVE, end_with_owner


def main() -> int:
    """Run `app serve` of the code in a folder until it is stopped; return the exit status."""
    end_with_owner()
    os.environ.pop("JOBCACHE_RENDERER", None)  # it has other names, and nothing is rendered here
    vars(uvicorn)["run"] = partial(uvicorn.run, timeout_keep_alive=KEEP_ALIVE)
    # Before this version, and before the metadata of the one that is installed.
    sys.path.insert(0, sys.argv[1])
    from app.__main__ import main as run  # noqa: PLC0415 - the other version

    return run(["serve"])


if __name__ == "__main__":
    sys.exit(main())
