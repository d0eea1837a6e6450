"""Functions whose results are cached, as `JobCache.cached` makes them."""

from __future__ import annotations

import inspect
from functools import partial, update_wrapper
from types import MethodType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from jobcache._engine.call_keys import fill_in
from jobcache._engine.storing import Absent, Storing, seconds, sorted_tags
from jobcache.serializers import serializer_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
    from datetime import timedelta
    from typing import Self

    from jobcache._engine.owner_loop import OwnerLoop
    from jobcache._engine.values import Values
    from jobcache.serializers import Serializer

P = ParamSpec("P")
Q = ParamSpec("Q")
S = TypeVar("S")
T = TypeVar("T")


class CachedCalls(Generic[T]):
    """The keys and tags of the calls of one function, and how its results are stored.

    Args:
        function: the function.
        key: the template of the key.
        ttl: seconds for which a result is served.
        tags: templates of tags.
        ignore: parameters that do not change the result.
        serializer: stores results; None: by the return annotation.
        cache_none: whether None is stored, too.

    Attributes:
        keys: takes the arguments of a call, and returns its key and its tags.
        fixed: how all results are stored; None if that depends on the arguments.

    Raises:
        TypeError: a template does not fit the function, or its results cannot be stored.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        key: str,
        ttl: float | timedelta,
        tags: Iterable[str],
        ignore: Collection[str],
        serializer: Serializer[T] | None,
        cache_none: bool,
    ) -> None:
        if isinstance(ignore, str):
            raise TypeError(f"ignore={ignore!r}: several names are expected, such as [{ignore!r}]")
        templates = sorted_tags(tags)
        varying = any("{" in template for template in templates)
        self.keys = fill_in(function, (key, *templates), ignore)
        self._storing: Storing[T] = Storing(
            serializer_of(function) if serializer is None else serializer,
            seconds(ttl),
            () if varying else templates,
            cache_none,
        )
        self.fixed = None if varying else self._storing

    def storing(self, tags: Sequence[str]) -> Storing[T]:
        """Return how the result of a call with these tags is stored."""
        storing = self._storing
        if self.fixed is not None:
            return self.fixed
        return Storing(storing.serializer, storing.ttl, sorted_tags(tags), storing.none)


class CachedFunction(Generic[P, T]):
    """A function whose results are cached. It is called as before.

    Attributes:
        __wrapped__: the function itself, which is not cached.
    """

    def __init__(
        self,
        function: Callable[P, Awaitable[T]],
        calls: CachedCalls[T],
        *,
        values: Values,
        owner: OwnerLoop,
        invalidate: Callable[[str], Awaitable[int]],
    ) -> None:
        self.__wrapped__ = function
        self._function = function
        self._calls = calls
        self._values = values
        self._owner = owner
        self._invalidate = invalidate
        self._keys = calls.keys
        self._fixed = calls.fixed
        update_wrapper(self, function)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of the function, from the cache if it is there.

        Raises:
            TypeError: the function does not take such arguments, or a value in the key is not of
                the type that its annotation says.
            Exception: as `JobCache.get_or_load`.
        """
        keys = self._keys(*args, **kwargs)
        key, storing = keys[0], self._fixed
        if storing is None:
            storing = self._calls.storing(keys[1:])
        if not self._owner.runs_here():
            self._owner.bind()
        found = self._values.peek(key, storing)
        if isinstance(found, Absent):
            load = partial(self._function, *args, **kwargs)
            return await self._values.read(key, load, storing)
        return found

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the key of a call with these arguments."""
        return self._keys(*args, **kwargs)[0]

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Remove the result of a call with these arguments, and return whether there was one.

        Raises:
            CacheUnavailable: as `JobCache.invalidate`.
        """
        return bool(await self._invalidate(self.key(*args, **kwargs)))

    async def bypass(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function in any case, and remove a cached result, which may be older."""
        key, *tags = self._keys(*args, **kwargs)
        self._owner.bind()
        load = partial(self._function, *args, **kwargs)
        return await self._values.bypass(key, load, self._calls.storing(tags))

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(
        self: CachedFunction[Concatenate[S, Q], T], instance: S, owner: type | None = None
    ) -> CachedFunction[Q, T]: ...
    def __get__(self, instance: object, owner: type | None = None) -> CachedFunction[..., T]:
        """Return this function as a method of an object."""
        if instance is None:
            return self
        bound: CachedFunction[..., T] = object.__new__(type(self))
        bound.__dict__.update(self.__dict__)
        bound.__wrapped__ = bound._function = MethodType(self._function, instance)
        bound._keys = partial(self._keys, instance)
        return bound


def require_coroutine_function(function: Callable[..., Coroutine[Any, Any, object]]) -> None:
    """Check that a function is asynchronous.

    Raises:
        TypeError: it is not.
    """
    if not inspect.iscoroutinefunction(inspect.unwrap(function)):
        raise TypeError(
            f"{getattr(function, '__qualname__', function)} is not an async function: for others"
            " there is jobcache.sync.JobCache.cached"
        )
