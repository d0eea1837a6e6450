"""Measure how soon one long poll is answered after a commit, in the program of the quickstart.

The third program of docs/quickstart.md runs under plain uvicorn: FastAPI, SQLAlchemy on SQLite, and
`PollingRoutes`. One client holds a poll with `Prefer: wait`; another one changes the row. The delay
counts from the response to the change, so from when the commit was acknowledged, or is 0 if the
poll was answered first.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from app.devservers import RedisServer, free_port
from benchmarks.machine import surroundings
from benchmarks.process import Process, exit_at_sigterm
from loadtests.arguments import count
from loadtests.connection import HOST, connect
from loadtests.percentiles import percentile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtests.connection import Response

P99_MS = 50.0

_QUICKSTART = Path(__file__).parents[1] / "docs" / "quickstart.md"
_PROGRAM = re.compile(r"^## 3\..*?^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_START = 60.0  # seconds until the program must listen
_LOOK = 0.05  # seconds between two looks
_HELD = 0.02  # seconds until a poll that was sent is held, on any machine
_PATIENCE = 30.0  # seconds for one response
_OK = 200


class Client:
    """A connection that sends one request at a time; `arrived_at` is when its response came."""

    def __init__(self) -> None:
        self.arrived_at = 0.0
        self._response: asyncio.Future[Response] | None = None

    async def open(self, port: int) -> None:
        """Connect."""
        self._connection = await connect(port, self._received)

    def send(self, method: str, path: str, **headers: str) -> asyncio.Future[Response]:
        """Send a request; return a future of its response."""
        fields = {"Host": HOST, "Content-Length": "0", **headers}
        lines = "".join(f"{name.replace('_', '-')}: {text}\r\n" for name, text in fields.items())
        self._response = asyncio.get_running_loop().create_future()
        self._connection.send(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode())
        return self._response

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _received(self, response: Response) -> None:
        self.arrived_at = time.perf_counter()
        if self._response is not None and not self._response.done():
            self._response.set_result(response)


async def measure(port: int, updates: int) -> tuple[list[float], list[float]]:
    """Return the delays of the updates from their acknowledgement and from their sending, in ms.

    Raises:
        RuntimeError: a response was wrong.
    """
    waiter, writer = Client(), Client()
    await waiter.open(port)
    await writer.open(port)
    try:
        return await _measure(waiter, writer, updates)
    finally:
        waiter.close()
        writer.close()


async def _measure(waiter: Client, writer: Client, updates: int) -> tuple[list[float], list[float]]:
    created = await writer.send("POST", "/exports")
    path = f"/exports/{int(created.body)}"
    version = (await waiter.send("GET", path)).version
    delays, spans = [], []
    for update in range(updates):
        validator = f'"{version}-0"'
        waiting = waiter.send("GET", path, If_None_Match=validator, Prefer="wait=20")
        await asyncio.sleep(_HELD)
        sent_at = time.perf_counter()
        async with asyncio.timeout(_PATIENCE):
            changed = await writer.send("PUT", f"{path}?percent={update % 99 + 1}")
            answered = await waiting
        if answered.status != _OK or answered.version <= version:
            raise RuntimeError(f"after {changed}, the long poll was answered {answered}")
        version = answered.version
        delays.append(1e3 * max(0.0, waiter.arrived_at - writer.arrived_at))
        spans.append(1e3 * (waiter.arrived_at - sent_at))
    return delays, spans


def main(arguments: Sequence[str]) -> int:
    """Run the measurement and print its table; return 1 if the p99 is above the limit."""
    options = _parser().parse_args(arguments)
    with contextlib.ExitStack() as stack:
        url = "memory://"
        if options.backend != "memory":
            url = stack.enter_context(RedisServer()).url
            if options.backend == "tiered":
                url = f"tiered+{url}"
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="jobcache-"))
        _write_program(Path(place) / "quickstart_program.py", url)
        port = free_port()
        command = [sys.executable, "-m", "uvicorn", "quickstart_program:app", "--port", str(port)]
        environment = {**os.environ, "PYTHONPATH": place}
        program = stack.enter_context(Process(command, environment))
        _wait_until_it_listens(program, port)
        delays, spans = asyncio.run(measure(port, options.updates))
    p99 = percentile(delays, 99) or 0.0
    lines = [
        f"## One long poll of the quickstart, on {options.backend}, {options.updates} updates",
        "",
        "| | p50 ms | p99 ms | longest ms | limit of p99 |",
        "| --- | --- | --- | --- | --- |",
        f"| from acknowledgement to answer | {_shown(delays)} | {P99_MS:g} |",
        f"| from sending the update to answer | {_shown(spans)} | |",
        "",
        f"Taken with: {', '.join(f'{k} {v}' for k, v in surroundings().items())}.",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if p99 > P99_MS else 0


def _write_program(path: Path, url: str) -> None:
    found = _PROGRAM.search(_QUICKSTART.read_text("utf-8"))
    if found is None:
        raise LookupError("docs/quickstart.md has no third program")
    path.write_text(found[1].replace("memory://", url), "utf-8")


def _wait_until_it_listens(program: Process, port: int) -> None:
    deadline = time.monotonic() + _START
    while program.alive and time.monotonic() < deadline:
        try:
            socket.create_connection((HOST, port)).close()
        except OSError:
            time.sleep(_LOOK)
        else:
            return
    raise RuntimeError(f"uvicorn does not listen:\n{program.log_tail()}")


def _shown(times: Sequence[float]) -> str:
    return " | ".join(f"{percentile(times, at) or 0.0:.1f}" for at in (50, 99, 100))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.long_poll_quickstart",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--backend", choices=["memory", "redis", "tiered"], default="memory")
    parser.add_argument("--updates", type=count, default=300, help="one after the other; 300")
    return parser


if __name__ == "__main__":
    exit_at_sigterm()
    sys.exit(main(sys.argv[1:]))
