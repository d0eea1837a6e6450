"""Functions whose results are cached, for threads."""

from __future__ import annotations

import inspect
from functools import partial, update_wrapper
from types import MethodType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from jobcache._engine.cached import CachedCalls
    from jobcache._engine.storing import Storing

P = ParamSpec("P")
Q = ParamSpec("Q")
S = TypeVar("S")
T = TypeVar("T")


class _Value(Protocol):
    def __call__(
        self, key: str, load: Callable[[], T], storing: Storing[T], /, *, bypass: bool
    ) -> T: ...


class SyncCachedFunction(Generic[P, T]):
    """A function whose results are cached. It is called as before.

    Attributes:
        __wrapped__: the function itself, which is not cached.
    """

    def __init__(
        self,
        function: Callable[P, T],
        calls: CachedCalls[T],
        *,
        value: _Value,
        invalidate: Callable[[str], int],
    ) -> None:
        self.__wrapped__ = self._function = function
        self._calls = calls
        self._read = value
        self._invalidate = invalidate
        self._keys = calls.keys
        update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of the function, from the cache if it is there.

        Raises:
            TypeError: the function does not take such arguments, or a value in the key is not of
                the type that its annotation says.
            Exception: as `JobCache.get_or_load`.
        """
        return self._value(args, kwargs, bypass=False)

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the key of a call with these arguments."""
        return self._keys(*args, **kwargs)[0]

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Remove the result of a call with these arguments, and return whether there was one.

        Raises:
            CacheUnavailable: as `JobCache.invalidate`.
        """
        return bool(self._invalidate(self._keys(*args, **kwargs)[0]))

    def bypass(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function in any case, and remove a cached result, which may be older."""
        return self._value(args, kwargs, bypass=True)

    def _value(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, bypass: bool) -> T:
        key, *tags = self._keys(*args, **kwargs)
        load: Callable[[], T] = partial(self._function, *args, **kwargs)
        return self._read(key, load, self._calls.storing(tags), bypass=bypass)

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(
        self: SyncCachedFunction[Concatenate[S, Q], T], instance: S, owner: type | None = None
    ) -> SyncCachedFunction[Q, T]: ...
    def __get__(self, instance: object, owner: type | None = None) -> SyncCachedFunction[..., T]:
        """Return this function as a method of an object."""
        if instance is None:
            return self
        bound: SyncCachedFunction[..., T] = object.__new__(type(self))
        bound.__dict__.update(self.__dict__)
        bound.__wrapped__ = bound._function = MethodType(self._function, instance)
        bound._keys = partial(self._keys, instance)
        return bound


def require_plain_function(function: Callable[..., object]) -> None:
    """Check that a function is not asynchronous.

    Raises:
        TypeError: it is.
    """
    if inspect.iscoroutinefunction(inspect.unwrap(function)):
        raise TypeError(
            f"{getattr(function, '__qualname__', function)} is an async function: for these there"
            " is jobcache.JobCache.cached"
        )
