"""The signs that the measured applications watch: both, one of them, or none."""

from __future__ import annotations

import os
from contextlib import nullcontext
from unittest import mock

from jobcache.http import shutdown
from jobcache.http.listening_sockets import ListeningSockets

VARIABLE = "SHUTDOWN_SIGNS"
SIGNS = ("both", "none", "signal", "socket")
"""The values of the variable."""


def restrict() -> None:
    """Let `Shutdown` watch only the signs that the variable chooses."""
    match os.environ.get(VARIABLE, "both"):
        case "none":
            mock.patch.object(shutdown.Shutdown, "watched", return_value=nullcontext()).start()
        case "signal":
            mock.patch.object(ListeningSockets, "are_open", return_value=True).start()
        case "socket":
            mock.patch.object(shutdown, "_chain_handlers", dict).start()
