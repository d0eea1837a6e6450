"""Renders real videos, each in its own process, so that polls do not wait for the encoder.

Rejected: a thread, which would share the interpreter lock with the server; and a pool of processes,
which would keep the encoder's memory, and which one crash would break for all jobs. A process per
video can be killed to cancel its job.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from app.rendering.partial import remove_partial
from app.rendering.renderer import Progress, RenderError

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncGenerator

    from app.rendering.renderer import RenderTask

_STDERR_BYTES = 2048
# `python -m` searches the working directory first. From this directory it finds the package that
# runs here, and never another `app` in the directory where the service was started.
_IMPORT_ROOT = Path(__file__).resolve().parents[2]

logger = logging.getLogger(__name__)


class VideoRenderer:
    """Draws and encodes each task in a child process.

    If this process dies, the child notices and stops. What a child writes to stderr is logged as a
    warning, the last 2 kB of it.
    """

    makes_video = True

    async def render(self, task: RenderTask) -> AsyncGenerator[Progress, None]:
        """Yield the child's progress. Raises `RenderError` if it fails or dies."""
        output = task.output.absolute()
        # In its own task: not every event loop reaps a process whose start was cancelled.
        starting = asyncio.create_task(_start())
        try:
            process = (await asyncio.shield(starting)).process
            logger.debug("job %d: encoder process %d", task.job_id, process.pid)
            await _send_request(
                process, {"storyboard": task.storyboard.model_dump(), "output": str(output)}
            )
            async for line in cast("asyncio.StreamReader", process.stdout):
                answer = json.loads(line)
                if "error" in answer:
                    raise RenderError(answer["error"])
                if "done" in answer:
                    await process.wait()
                    return
                yield Progress(**answer)
            raise RenderError(_ending(await process.wait()))
        finally:
            # In its own task too: a second cancellation must not interrupt the cleanup.
            clearing = asyncio.create_task(_clear_up(starting, task.job_id, output))
            await asyncio.shield(clearing)


@dataclass(frozen=True, slots=True)
class _Encoder:
    process: Process
    log_tail: asyncio.Task[bytes]


async def _start() -> _Encoder:
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "app.rendering.encode"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=_IMPORT_ROOT,
        )
    except OSError as error:
        raise RenderError(f"the encoder could not be started: {error.strerror}") from error
    # The child would block on a full stderr.
    stderr = cast("asyncio.StreamReader", process.stderr)
    return _Encoder(process, asyncio.create_task(_tail(stderr)))


async def _send_request(process: Process, request: dict[str, object]) -> None:
    stdin = cast("asyncio.StreamWriter", process.stdin)
    stdin.write(json.dumps(request).encode() + b"\n")
    # If the child is already dead, its exit code says more.
    with suppress(ConnectionError):
        await stdin.drain()


async def _tail(stream: asyncio.StreamReader) -> bytes:
    tail = b""
    while chunk := await stream.read(_STDERR_BYTES):
        tail = (tail + chunk)[-_STDERR_BYTES:]
    return tail


def _ending(code: int) -> str:
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"the encoder ended with {how}"


async def _clear_up(starting: asyncio.Task[_Encoder], job_id: int, output: Path) -> None:
    try:
        encoder = await starting
    except RenderError:
        return
    with suppress(ProcessLookupError):
        encoder.process.kill()
    try:
        await encoder.process.wait()
        words = (await encoder.log_tail).decode(errors="replace")
        if words:
            logger.warning("job %d: the encoder wrote: %s", job_id, words)
    finally:
        remove_partial(output)
