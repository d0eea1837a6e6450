"""Services end with the process that started them, however that ended."""

from __future__ import annotations

import os
import signal
import threading
import time

KEEP_ALIVE = 120
"""Seconds: no connection is to be closed because a client was busy elsewhere."""

_LOOK = 0.5  # seconds between two looks for the owner


def end_with_owner() -> None:
    """Kill this process once the one that has started it is gone."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(owner: int) -> None:
    while os.getppid() == owner:
        time.sleep(_LOOK)
    os.kill(os.getpid(), signal.SIGKILL)
