"""What the tasks of the running loop wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any


def describe_tasks() -> str:
    """A line for each task, and below it one for each coroutine it is in, the innermost last."""
    try:
        tasks = asyncio.all_tasks()
    except RuntimeError:
        return "no loop is running"
    lines = []
    for task in tasks:
        cancelled = f", cancelled {task.cancelling()} times" if task.cancelling() else ""
        lines.append(f"{task.get_name()}{cancelled}")
        lines += [f"    {where}" for where in _places(task.get_coro())]
    return "\n".join(lines)


def _places(awaited: Any) -> Iterator[str]:
    while awaited is not None:
        kind = next((kind for kind in ("cr", "ag", "gi") if hasattr(awaited, f"{kind}_frame")), "")
        frame = getattr(awaited, f"{kind}_frame", None)
        if frame is None:
            yield repr(awaited)
            return
        yield f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
        awaited = getattr(awaited, f"{kind}_yieldfrom" if kind == "gi" else f"{kind}_await")
