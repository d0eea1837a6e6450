"""The service with the limits of a busy machine: `python -m tests.app.patient_service serve`."""

from __future__ import annotations

import sys

from app.__main__ import main
from tests.patience import limits

if __name__ == "__main__":
    for defaults, name, seconds in limits():
        defaults[name] = seconds
    sys.exit(main())
