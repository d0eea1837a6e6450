"""`benchmarks.process.Process`, forked from a process that has imported the service."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO

from benchmarks import process
from tests.app.forking import fork


class ForkedProcess(process.Process):
    """A child of the fork server, if its program is Python."""

    def _start(self, directory: Path, output: IO[bytes]) -> process.Child:
        program, *options = self._command
        if program != sys.executable:
            return super()._start(directory, output)
        option, module, *arguments = options
        assert option == "-m"
        return fork(directory, arguments, self._environment, output, module)
