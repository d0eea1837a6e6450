"""Compute the capacity that a load needs: `python -m loadtests.capacity --pollers 1000`."""

from __future__ import annotations

import sys

from benchmarks.process import exit_at_sigterm
from loadtests.capacity.command import main

if __name__ == "__main__":
    exit_at_sigterm()
    sys.exit(main(sys.argv[1:]))
