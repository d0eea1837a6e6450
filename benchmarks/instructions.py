"""Count the instructions of the hottest paths with callgrind.

    python -m benchmarks.instructions           # compare with what is stored
    python -m benchmarks.instructions --store   # store

Counts repeat where times do not. Each path runs with N and with 2 N operations. The difference of
the counts divided by N is the cost of one operation, because both contain the start of Python.
Hashes have a fixed seed, and a hit uses no random tokens.

Stored counts hold for one interpreter on one kind of machine; with another, nothing is compared.
The exit status is 1 if a path takes over 2 % more than stored, and 2 if it cannot be compared.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

STORED = Path(__file__).with_name("instructions.json")
TOLERANCE = 0.02

_ROOT = Path(__file__).parents[1]
_COLLECTED = re.compile(r"Collected : (\d+)")
_KEY = "job:1:progress"
_PATIENCE = 600.0  # seconds
_PACKAGES = ("fastapi", "starlette", "uvicorn")
"""What a path runs through that is not ours: another version has other counts."""


class NoCount(Exception):  # noqa: N818 - says what is the matter
    """The instructions could not be counted."""


async def hit(count: int) -> None:
    """Run hits of a `JobCache` on memory, in a coroutine."""
    from benchmarks.document import DOCUMENT  # noqa: PLC0415 - each path loads what it needs only
    from jobcache import JobCache, Lifetimes  # noqa: PLC0415
    from jobcache.backends.memory import MemoryBackend  # noqa: PLC0415

    cache = JobCache(MemoryBackend(), lifetimes=Lifetimes(default=86400))

    async def load() -> Any:  # noqa: ANN401 - a document
        return DOCUMENT

    await cache.read(_KEY, load)
    _settle()
    for _ in range(count):
        await cache.read(_KEY, load)


async def poll(count: int) -> None:
    """Run poll hits of the ASGI application, called as a server calls it."""
    from app.jobs.cache_keys import progress_key  # noqa: PLC0415
    from app.main import create_app  # noqa: PLC0415
    from app.settings import Settings  # noqa: PLC0415
    from benchmarks.document import DOCUMENT  # noqa: PLC0415
    from jobcache import CacheOutcome, CacheSettings  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="jobcache-") as place:
        update = {
            "var_dir": Path(place),
            "database_url": f"sqlite+aiosqlite:///{place}/jobcache.db",
            "renderer": "simulated",
        }
        settings = Settings(cache=CacheSettings(backend="memory")).model_copy(update=update)
        app = create_app(settings)
        cache = app.state.services.cache

        async def load() -> Any:  # noqa: ANN401 - a document
            # a terminal status: under callgrind, an entry of an active job would expire
            return replace(DOCUMENT, status="completed")

        await cache.read(progress_key(41), load)
        path = "/api/v2/jobs/41"
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 40000),
            "scheme": "http",
            "method": "GET",
            "root_path": "",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"host", b"127.0.0.1"), (b"accept", b"*/*")],
            "state": {},
        }
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:  # noqa: ANN401 - of ASGI
            sent.append(message)

        await app({**scope, "state": {}}, receive, send)
        _settle()
        for _ in range(count):
            sent.clear()
            await app({**scope, "state": {}}, receive, send)
        if sent[0]["status"] != 200 or sent[1]["body"] != DOCUMENT.body:
            raise NoCount(f"a poll was answered {sent}")
        hits = (await cache.read(progress_key(41), load)).outcome
        if hits is not CacheOutcome.HIT or cache.statistics.hits < count:
            raise NoCount("the polls were no hits")


async def decode(count: int) -> None:
    """Decode entries from the bytes in Redis."""
    from benchmarks.document import DOCUMENT  # noqa: PLC0415
    from jobcache import Lifetimes  # noqa: PLC0415
    from jobcache.protocol.codec import decode as decoded  # noqa: PLC0415
    from jobcache.protocol.codec import encode_entry  # noqa: PLC0415

    cell = encode_entry(Lifetimes(jitter=0).entry(DOCUMENT, 1_700_000_000_000), "abc123")
    _settle()
    for _ in range(count):
        decoded(cell, "abc123")


def _settle() -> None:
    """Exclude existing objects from garbage collection, because one more collection would show."""
    gc.collect()
    gc.freeze()  # as the service does


PATHS: dict[str, tuple[Callable[[int], Awaitable[None]], int]] = {
    "hit": (hit, 2000),
    "poll": (poll, 500),
    "decode": (decode, 2000),
}
"""What is counted, by name, and N."""


def counted(name: str, count: int) -> int:
    """Return the instructions of a process that does `count` operations of a path.

    Raises:
        NoCount: callgrind reported no count.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise NoCount("valgrind is not installed")
    with tempfile.TemporaryDirectory(prefix="jobcache-") as place:
        said = _told(name, count, valgrind, "--tool=callgrind", f"--callgrind-out-file={place}/out")
    found = _COLLECTED.search(said)
    if found is None:
        raise NoCount(f"{name} was not counted:\n{said[-1500:]}")
    return int(found[1])


def _told(name: str, count: int, *under: str) -> str:
    """What a process that does `count` operations of a path says, and what it runs under."""
    done = subprocess.run(  # noqa: S603 - our own program
        [*under, sys.executable, "-m", "benchmarks.instructions", "--run", name, str(count)],
        cwd=_ROOT,
        # Nothing of ours in the environment, which would be settings.
        env={"PATH": os.environ.get("PATH", ""), "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=_PATIENCE,
    )
    if done.returncode:
        raise NoCount(f"{name} failed:\n{done.stderr[-1500:]}")
    return done.stderr


def measured(names: Sequence[str], scale: float = 1.0) -> dict[str, float]:
    """Return the instructions of one operation, by path.

    Args:
        names: of the paths.
        scale: of their N.

    Raises:
        NoCount: as for `counted`.
    """
    sizes = {name: max(1, round(PATHS[name][1] * scale)) for name in names}
    for name in names:
        _told(name, 1)  # so that no counted process compiles a module
    runs = [(name, times * sizes[name]) for name in names for times in (1, 2)]
    with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
        counts = dict(zip(runs, pool.map(lambda run: counted(*run), runs), strict=True))
    return {
        name: (counts[name, 2 * size] - counts[name, size]) / size for name, size in sizes.items()
    }


def whereabouts() -> dict[str, str]:
    """Return the conditions that counts depend on, besides the project."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise NoCount("valgrind is not installed")
    said = subprocess.run([valgrind, "--version"], capture_output=True, text=True, check=False)  # noqa: S603 - found on PATH
    options = sysconfig.get_config_var("CONFIG_ARGS") or ""  # an optimised Python has other counts
    configured = hashlib.sha256(options.encode()).hexdigest()
    return {
        "interpreter": f"{platform.python_implementation()} {platform.python_version()}",
        "built": f"{platform.python_compiler()}, configuration {configured[:12]}",
        "machine": f"{platform.system()} {platform.machine()}",
        "valgrind": said.stdout.strip(),
        **{package: metadata.version(package) for package in _PACKAGES},
    }


def compared(stored: dict[str, float], found: dict[str, float]) -> list[str]:
    """Return a sentence for each path that takes more than stored."""
    return [
        f"{name} takes {found[name]:,.0f} instructions, {found[name] / before - 1:.1%} more "
        f"than the {before:,.0f} that are stored"
        for name, before in stored.items()
        if name in found and found[name] > before * (1 + TOLERANCE)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, compare or store; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.instructions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--store", action="store_true", help="keep the counts")
    parser.add_argument("--only", default=",".join(PATHS), help="some of the paths")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of operations")
    parser.add_argument("--file", type=Path, default=STORED, help=argparse.SUPPRESS)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.run:
        name, count = options.run
        asyncio.run(_run(PATHS[name][0], int(count)))
        return 0
    names = options.only.split(",")
    if not set(names) <= set(PATHS):
        parser.error(f"--only takes {', '.join(PATHS)}")
    try:
        here, found = whereabouts(), measured(names, options.scale)
    except (NoCount, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    for name, count in found.items():
        sys.stdout.write(f"{name}: {count:,.0f} instructions for each operation\n")
    kept: dict[str, Any] = json.loads(options.file.read_text()) if options.file.exists() else {}
    if options.store:
        together = found if kept.get("on") != here else kept["instructions"] | found
        document = {"on": here, "instructions": together}
        options.file.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
        return 0
    if not kept:
        sys.stderr.write("nothing is stored to compare with\n")
        return 2
    if kept["on"] != here:
        differ = [key for key in here if kept["on"].get(key) != here[key]]
        sys.stderr.write(f"what is stored was counted with another {', '.join(differ)}\n")
        return 2
    worse = compared(kept["instructions"], found)
    sys.stdout.write("".join(f"{sentence}\n" for sentence in worse))
    return 1 if worse else 0


async def _run(path: Callable[[int], Awaitable[None]], count: int) -> None:
    await path(count)


if __name__ == "__main__":
    sys.exit(main())
