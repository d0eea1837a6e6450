"""Loaders, and the database sessions that they use.

A load is shared, and may go on after the request that started it has closed its session:

    request A reads a key: its load uses A's session, and request B waits for the same load
    A is cancelled and closes its session
    the load goes on in the closed session, which opens a connection that nobody returns

So a load should open a session of its own (`with_session`). A load that refers to a session of its
caller is bound to the caller: it ends before the caller's read ends, and B starts its own load.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from contextlib import asynccontextmanager
from functools import lru_cache, partial, wraps
from inspect import Parameter, Signature
from types import CellType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from contextlib import AbstractAsyncContextManager

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")

_LIBRARIES = {"aiosqlite", "asyncpg", "psycopg", "sqlalchemy"}
_SESSIONS = ("Session", "Connection", "scoped_session", "ConnectionProxy")
_LEAVES = _LIBRARIES | {"asyncio", "jobcache"}
_DEPTH = 4
_MOST = 100
_EMPTY = CellType()


def with_session(
    open_session: Callable[[], AbstractAsyncContextManager[S]],
    load: Callable[Concatenate[S, P], Awaitable[T]],
) -> Callable[P, Awaitable[T]]:
    """Return a loader that opens a session for each call of `load`, and closes it.

        sessions = async_sessionmaker(engine)
        result = await cache.read(key, partial(with_session(sessions, load_job), job_id))

    Args:
        open_session: a `sessionmaker`, or another function that returns a context manager.
        load: called with the session, and with the arguments of the call.
    """

    @wraps(load)
    async def call(*arguments: P.args, **options: P.kwargs) -> T:
        async with open_session() as session:
            return await load(session, *arguments, **options)

    # The signature, by which frameworks find the arguments of the loader, leaves out the session.
    session, *others = inspect.signature(load).parameters.values()
    kinds = Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD
    kept = [session, *others] if session.kind in kinds else others
    call.__signature__ = Signature(kept)  # type: ignore[attr-defined]
    return call


class LoaderLeft(Exception):  # noqa: N818 - it names an event; no user gets it
    """A load was ended because its caller does not wait any more.

    Attributes:
        load: the load.
    """

    def __init__(self, load: object) -> None:
        super().__init__("the caller of the load does not wait any more")
        self.load = load


class _Bound:
    """A load that ends before its caller's read ends."""

    def __init__(self, load: Callable[..., Awaitable[Any]]) -> None:
        self._load = load
        self._running: dict[asyncio.Task[Any], asyncio.Future[None]] = {}
        self._left = False

    async def __call__(self, *arguments: object) -> Any:  # noqa: ANN401 - any result
        task = asyncio.current_task()
        if self._left or task is None:
            raise LoaderLeft(self)
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running[task] = ended
        try:
            return await self._load(*arguments)
        except asyncio.CancelledError:
            if self._left:
                raise LoaderLeft(self) from None
            raise
        finally:
            del self._running[task]
            ended.set_result(None)

    async def leave(self) -> None:
        """Cancel the load wherever it runs, and wait for its end."""
        self._left = True
        running = dict(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running.values())


@asynccontextmanager
async def bound_to_caller(
    load: Callable[..., Awaitable[T]],
) -> AsyncIterator[Callable[..., Awaitable[T]]]:
    """Yield the load, bound to the block if it refers to a session of the caller."""
    if isinstance(load, _Bound) or not uses_session(load):
        yield load
        return
    bound = _Bound(load)
    try:
        yield bound
    finally:
        await bound.leave()


def uses_session(load: object) -> bool:
    """Return whether a loader refers to an open session or connection.

    Searches closures, arguments, attributes and context variables, a few levels deep. A reference
    that is hidden deeper is not found.
    """
    if any(map(_is_session, contextvars.copy_context().values())):
        return True
    seen = {id(load)}
    level: list[object] = [load]
    for _ in range(_DEPTH):
        following: list[object] = []
        for value in level:
            for referred in _referred(value):
                if id(referred) in seen:
                    continue
                if _is_session(referred):
                    return True
                seen.add(id(referred))
                following.append(referred)
                if len(seen) > _MOST:
                    return False
        level = following
    return False


def _is_session(value: object) -> bool:
    kind: type = type(value)
    return is_session_type(kind)


@lru_cache(maxsize=1024)
def is_session_type(kind: type) -> bool:
    """Return whether objects of this class are database sessions or connections."""
    return any(
        each.__module__.partition(".")[0] in _LIBRARIES and each.__name__.endswith(_SESSIONS)
        for each in kind.__mro__
    )


def _referred(value: object) -> Iterable[object]:  # noqa: PLR0911 - one return for each kind
    if isinstance(value, FunctionType):
        cells = value.__closure__ or ()
        closure = [cell.cell_contents for cell in cells if cell != _EMPTY]
        return [*closure, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, type | ModuleType) or type(value).__module__.partition(".")[0] in _LEAVES:
        return ()
    return list(getattr(value, "__dict__", {}).values())
