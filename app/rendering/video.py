"""Renders real videos, each in a process of its own, so that polls do not wait for the encoder.

A thread would share the interpreter lock with the server. A pool of processes would keep the
encoder's memory for good, and one crash would break it for every job; a process per video dies
alone, and killing it is how a render is cancelled.
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
# `python -m` looks in the working directory first. In this one it finds the very package that runs
# here, installed or not, and never another `app` that lies where the service was started.
_IMPORT_ROOT = Path(__file__).resolve().parents[2]

logger = logging.getLogger(__name__)


class VideoRenderer:
    """Draws and encodes each task in a child process, which lives exactly as long as the render.

    If this process dies, the child notices and stops. What a child writes to stderr is logged as a
    warning, the last 2 kB of it.
    """

    makes_video = True

    async def render(self, task: RenderTask) -> AsyncGenerator[Progress, None]:
        """Yield the child's progress. Raises `RenderError` if it fails or dies."""
        output = task.output.absolute()
        # A task of its own: not every event loop reaps a process whose start was cancelled.
        starting = asyncio.create_task(_start())
        try:
            process = (await asyncio.shield(starting)).process
            logger.debug("job %d: encoder process %d", task.job_id, process.pid)
            await _ask(process, {"storyboard": task.storyboard.model_dump(), "output": str(output)})
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
            # Again its own: a second cancellation must not cut the clearing up short.
            clearing = asyncio.create_task(_clear_up(starting, task.job_id, output))
            await asyncio.shield(clearing)


@dataclass(frozen=True, slots=True)
class _Encoder:
    process: Process
    last_words: asyncio.Task[bytes]


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
    # Unread, a full stderr would stop the child.
    stderr = cast("asyncio.StreamReader", process.stderr)
    return _Encoder(process, asyncio.create_task(_tail(stderr)))


async def _ask(process: Process, request: dict[str, object]) -> None:
    stdin = cast("asyncio.StreamWriter", process.stdin)
    stdin.write(json.dumps(request).encode() + b"\n")
    # A child that is dead already tells more by its exit code.
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
        words = (await encoder.last_words).decode(errors="replace")
        if words:
            logger.warning("job %d: the encoder wrote: %s", job_id, words)
    finally:
        remove_partial(output)
