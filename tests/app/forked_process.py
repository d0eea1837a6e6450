"""`benchmarks.process.Process`, forked from a process that has imported the service."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO

from benchmarks import process
from tests.app.forking import fork


class ForkedProcess(process.Process):
    """A child of the fork server, if its program is Python and starts no workers."""

    def _start(self, directory: Path, output: IO[bytes]) -> process.Child:
        program, *options = self._command
        if program != sys.executable or self._environment.get("JOBCACHE_WORKERS", "1") != "1":
            return super()._start(directory, output)
        option, module, *arguments = options
        assert option == "-m"
        return fork(directory, arguments, self._environment, output, module)
