"""The service with the limits of a busy machine: `python -m tests.app.patient_service serve`."""

from __future__ import annotations

import sys

from app.__main__ import main
from jobcache._engine import fetching
from jobcache.protocol.backend import LeaseResult
from tests.patience import limits

if __name__ == "__main__":
    # A reader waits half a minute for the entry that another process is loading.
    fetching.PAUSES = (*fetching.PAUSES, *fetching.PAUSES[-1:] * 200)
    fetching.ATTEMPTS[LeaseResult.HELD] = len(fetching.PAUSES)
    for defaults, name, seconds in limits():
        defaults[name] = seconds
    sys.exit(main())
