"""Record the calls of a check and their results, for the message of a failure.

A failed check names the expected and the actual value under every test framework: pytest rewrites
the `assert` statements of test modules, but not those of an installed package.
"""

from __future__ import annotations

from dataclasses import fields
from enum import Enum
from typing import TYPE_CHECKING, TypeVar

from jobcache.protocol.entry import UNVERSIONED, Entry
from jobcache.testing.subject import NotifiedSubject

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping, Sequence

    from jobcache.protocol.backend import CacheBackend, LeaseResult, PublishResult
    from jobcache.testing.subject import Subject

T = TypeVar("T")
_LONGEST = 120  # characters of a value
_MOST_LINES = 40


def expect(found: object, expected: object) -> None:
    """Check that a backend returned the expected value.

    Raises:
        AssertionError: it did not. The message names both values, and where they differ.
    """
    if found == expected:
        return
    message = f"expected {describe(expected)}, found {describe(found)}"
    if isinstance(found, Entry) and isinstance(expected, Entry):
        message += "".join(
            f"\n    its {field.name}: expected {_short(wanted)}, found {_short(got)}"
            for field in fields(Entry)
            if (wanted := getattr(expected, field.name)) != (got := getattr(found, field.name))
        )
    raise AssertionError(message)


def describe(value: object) -> str:
    """Return a short text for what a backend takes or returns."""
    if isinstance(value, Entry):
        if value.version == UNVERSIONED:
            return f"the unversioned entry of {value.token!r}"
        return f"the entry of version {value.version}"
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {describe(each)}' for key, each in value.items())}}}"
    return _short(value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"


class Transcript:
    """The operations of one check, in the order in which they ended."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def note(self, line: str) -> None:
        """Add a line."""
        self._lines.append(line)

    async def noted(self, operation: str, arguments: tuple[object, ...], result: Awaitable[T]) -> T:
        """Return the result of an operation, and note both."""
        call = f"{operation}({', '.join(map(describe, arguments))})"
        try:
            returned = await result
        except Exception as error:
            self.note(f"{call} raised {error!r}")
            raise
        self.note(
            call if returned is None and operation == "fence" else f"{call} -> {describe(returned)}"
        )
        return returned

    def __str__(self) -> str:
        """Return the last lines, numbered."""
        numbered = [f"{number:4}. {line}" for number, line in enumerate(self._lines, start=1)]
        left_out = len(numbered) - _MOST_LINES
        first = [f"      … {left_out} more before"] if left_out > 0 else []
        return "\n".join(["what the check did:", *first, *numbered[-_MOST_LINES:]])


class RecordedBackend:
    """A backend whose operations are noted in a transcript."""

    def __init__(self, backend: CacheBackend, transcript: Transcript) -> None:
        self._backend = backend
        self._noted = transcript.noted

    @property
    def name(self) -> str:
        """The backend's name."""
        return self._backend.name

    async def get(self, key: str) -> Entry | None:
        """Note a get."""
        return await self._noted("get", (key,), self._backend.get(key))

    async def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        """Note a get of many keys."""
        return await self._noted("get_many", (keys,), self._backend.get_many(keys))

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:
        """Note a lease."""
        return await self._noted("lease", (key, token), self._backend.lease(key, token))

    async def fence(self, key: str, token: str) -> None:
        """Note a fence."""
        await self._noted("fence", (key, token), self._backend.fence(key, token))

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:
        """Note a publish."""
        published = self._backend.publish(key, token, entry)
        return await self._noted("publish", (key, token, entry), published)

    async def purge(self, keys: Sequence[str]) -> int:
        """Note a purge."""
        return await self._noted("purge", (keys,), self._backend.purge(keys))

    async def aclose(self) -> None:
        """Note the end."""
        await self._noted("aclose", (), self._backend.aclose())


class RecordedSubject:
    """A subject whose backend, evictions and time are noted in a transcript."""

    def __init__(self, subject: Subject, transcript: Transcript) -> None:
        self._subject = subject
        self._transcript = transcript
        self.backend: CacheBackend = RecordedBackend(subject.backend, transcript)

    async def committed(self, key: str, writer: str) -> None:
        """Note a commit, of which the backend learns if it is told."""
        if isinstance(self._subject, NotifiedSubject):
            await self._subject.committed(key, writer)
            self._transcript.note(f"{writer} commits a change of {key!r}, and it is reported")

    async def evict(self, key: str) -> None:
        """Note an eviction."""
        await self._subject.evict(key)
        self._transcript.note(f"the cell of {key!r} is evicted")

    async def elapse(self, seconds: float) -> None:
        """Note that time passes."""
        await self._subject.elapse(seconds)
        self._transcript.note(f"{seconds:g} seconds pass")
