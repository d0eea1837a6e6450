"""The encoder process: `python -m app.rendering.encode`.

Reads one line of JSON from stdin, {"storyboard": …, "output": path}, and makes that video. Answers
on stdout with lines of JSON: {"percent": …, "stage": …, "message": …} about once per percent, then
{"done": true} and exit code 0, or {"error": reason} and exit code 1.

stdin stays open to detect the death of the parent: when stdin ends or stdout is closed, nobody
needs the video any more. Encoding stops within a frame, the partial file is removed, and the exit
code is 1.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path

import av

from app.rendering.mp4 import make_mp4
from app.rendering.renderer import RenderError
from app.rendering.storyboard import Storyboard

_STDIN, _STDOUT = 0, 1
_NICENESS = 10
_CHUNK_BYTES = 65536

logger = logging.getLogger(__name__)


class _Abandoned(Exception):  # noqa: N818 - not an error
    """The parent has gone, so nobody needs the video any more."""


def main() -> int:
    """Make the video asked for on stdin and return the exit code."""
    os.nice(_NICENESS)
    # Ctrl-C and service managers signal the whole process group. The parent decides about the job;
    # if the parent ends, stdin ends too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        request = json.loads(_first_line(_STDIN))
        storyboard = Storyboard.model_validate(request["storyboard"])
        abandoned = threading.Event()
        threading.Thread(target=_watch_lifeline, args=(_STDIN, abandoned), daemon=True).start()
        _encode(storyboard, Path(request["output"]), abandoned)
    except _Abandoned:
        return 1
    except Exception as error:
        logger.exception("the video could not be made")
        with suppress(_Abandoned):
            _report({"error": _reason(error)})
        return 1
    return 0


def _encode(storyboard: Storyboard, output: Path, abandoned: threading.Event) -> None:
    reported = -1
    with closing(make_mp4(storyboard, output)) as steps:
        for step in steps:
            if abandoned.is_set():
                raise _Abandoned
            if int(step.percent) > reported:
                reported = int(step.percent)
                _report({"percent": step.percent, "stage": step.stage, "message": step.message})
    _report({"done": True})


def _reason(error: Exception) -> str:
    """Return the reason of an error without the paths that its message contains."""
    if isinstance(error, RenderError):
        return str(error)
    if isinstance(error, (OSError, av.FFmpegError)):
        return f"the video could not be written: {error.strerror}"
    return f"the encoder failed: {type(error).__name__}"


# Plain reads and writes on the descriptors: a thread that sits in `sys.stdin.read()` holds a lock
# without which the interpreter cannot end; and a closed `sys.stdout` would be flushed once more.


def _first_line(descriptor: int) -> bytes:
    line = b""
    while b"\n" not in line:
        chunk = os.read(descriptor, _CHUNK_BYTES)
        if not chunk:
            raise _Abandoned
        line += chunk
    return line.partition(b"\n")[0]


def _watch_lifeline(descriptor: int, abandoned: threading.Event) -> None:
    with suppress(OSError):
        while os.read(descriptor, _CHUNK_BYTES):
            pass
    abandoned.set()


def _report(message: dict[str, object]) -> None:
    try:
        os.write(_STDOUT, json.dumps(message).encode() + b"\n")
    except OSError as error:
        raise _Abandoned from error


if __name__ == "__main__":
    sys.exit(main())
