"""Functions whose results are cached: keys, arguments, methods, and what a decorator refuses."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from enum import Enum, Flag, IntEnum, StrEnum
from typing import Annotated, Any, Literal, NewType
from uuid import UUID

import httpx
import pytest
from fastapi import Depends, FastAPI
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request
from typing_extensions import TypeAliasType

from jobcache import InvalidDocument, JobCache
from jobcache._engine.call_keys import fill_in
from jobcache.backends.memory import MemoryBackend
from jobcache.errors import CacheClosed, InvalidKey


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Size(StrEnum):
    SMALL = "small"


class Level(IntEnum):
    HIGH = 2


class Rights(Flag):
    READ = 1
    WRITE = 2


ReportId = NewType("ReportId", int)


@pytest.fixture
def cache() -> JobCache:
    return JobCache(MemoryBackend())


async def test_a_function_is_called_once_for_equal_arguments(cache: JobCache) -> None:
    calls: list[tuple[int, str]] = []

    @cache.cached("report:{report_id}:{language}", ttl=60)
    async def report(report_id: int, *, language: str = "en") -> dict[str, Any]:
        """Return a report."""
        calls.append((report_id, language))
        return {"id": report_id, "language": language}

    for _ in range(2):
        assert await report(7) == {"id": 7, "language": "en"}
        assert await report(report_id=7, language="en") == {"id": 7, "language": "en"}
        assert await report(7, language="de") == {"id": 7, "language": "de"}
    assert calls == [(7, "en"), (7, "de")]
    assert report.key(7) == report.key(report_id=7, language="en") == "report:7:en"
    assert report.__doc__ == "Return a report."
    assert report.__name__ == "report"
    assert list(inspect.signature(report).parameters) == ["report_id", "language"]


async def test_a_result_is_invalidated_and_bypassed_by_its_arguments(cache: JobCache) -> None:
    numbers = iter(range(1, 100))

    @cache.cached("n:{name}", ttl=timedelta(minutes=1), tags=["all", "of:{name}"])
    async def number(name: str) -> int:
        return next(numbers)

    assert [await number("a"), await number("b"), await number("a")] == [1, 2, 1]
    assert await number.invalidate("a") is True
    assert await number.invalidate("never") is False
    assert [await number("a"), await number("b")] == [3, 2]
    assert await number.bypass(name="b") == 4
    assert [await number("a"), await number("b")] == [3, 5]
    await cache.invalidate_tags("of:b")
    assert [await number("a"), await number("b")] == [3, 6]
    await cache.invalidate_tags("all")
    assert [await number("a"), await number("b")] == [7, 8]
    assert await cache.invalidate(number.key("a")) == 1
    assert await number("a") == 9


async def test_a_method_is_cached_without_its_object(cache: JobCache) -> None:
    class Reports:
        calls = 0

        @cache.cached("report:{report_id}", ttl=60)
        async def load(self, report_id: int) -> int:
            """Return a report."""
            self.calls += 1
            return report_id

    reports = Reports()
    assert [await reports.load(7), await reports.load(report_id=7)] == [7, 7]
    assert reports.calls == 1
    assert reports.load.key(7) == "report:7"
    assert await reports.load.invalidate(7)
    assert await reports.load.bypass(7) == 7
    assert reports.calls == 2
    assert list(inspect.signature(reports.load).parameters) == ["report_id"]
    assert list(inspect.signature(Reports.load).parameters) == ["self", "report_id"]
    assert await Reports.load(reports, 8) == 8


async def test_a_class_method_is_cached_without_its_class(cache: JobCache) -> None:
    class Reports:
        calls = 0

        @classmethod
        @cache.cached("report:{report_id}", ttl=60)
        async def load(cls, report_id: int = 1) -> int:
            cls.calls += 1
            return report_id

    load: Any = Reports.load
    assert [await load(7), await load(report_id=7), await Reports().load(7)] == [7, 7, 7]
    assert Reports.calls == 1
    # Python 3.13 and newer do not bind attributes.
    first = () if sys.version_info < (3, 13) else (Reports,)
    assert load.key(*first, 7) == "report:7"
    assert await load.invalidate(*first, 7)
    assert await load.bypass(*first, 7) == 7
    assert Reports.calls == 2
    unbound: Any = vars(Reports)["load"].__func__
    assert unbound.key(Reports) == "report:1"
    for arguments in ((), (7,)):
        with pytest.raises(TypeError, match="the first argument is the class"):
            unbound.key(*arguments)
        with pytest.raises(TypeError, match="the first argument is the class"):
            await unbound.invalidate(*arguments)
        with pytest.raises(TypeError, match="the first argument is the class"):
            await unbound.bypass(*arguments)


async def test_wrong_arguments_are_refused_on_a_hit_as_well(cache: JobCache) -> None:
    @cache.cached("{a}", ttl=60, ignore=["rest"])
    async def function(a: int, /, *rest: int) -> int:
        return a

    assert await function(1, 2, 3) == 1
    wrong: Any = function
    for call in (wrong, lambda: wrong(1, b=2), lambda: wrong(a=1)):
        with pytest.raises(TypeError, match="function"):
            await call()


async def test_errors_and_none_are_not_cached(cache: JobCache) -> None:
    calls = []

    @cache.cached("{a}", ttl=60)
    async def fails(a: int) -> int | None:
        calls.append(a)
        if a:
            raise LookupError
        return None

    for _ in range(2):
        with pytest.raises(LookupError):
            await fails(1)
        assert await fails(0) is None
    assert calls == [1, 0, 1, 0]


async def test_requests_and_sessions_are_no_part_of_the_key(cache: JobCache) -> None:
    @cache.cached("k:{a}", ttl=60)
    async def with_both(
        a: int, request: Request, session: AsyncSession | None, other: Annotated[Request, 1]
    ) -> int:
        return a

    request = Request({"type": "http"})
    assert await with_both(1, request, None, request) == 1
    assert with_both.key(1, request, None, request) == "k:1"


async def test_a_cached_function_is_a_route_and_a_dependency(cache: JobCache) -> None:
    app = FastAPI()
    calls = []

    @app.get("/reports/{report_id}")
    @cache.cached("report:{report_id}", ttl=60)
    async def report(report_id: int) -> dict[str, int]:
        calls.append(report_id)
        return {"id": report_id}

    @app.get("/again/{report_id}")
    async def again(found: Any = Depends(report)) -> Any:  # noqa: B008, FAST002 - `report` is local
        return found

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for path in ("/reports/7", "/again/7", "/reports/7"):
            assert (await client.get(path)).json() == {"id": 7}
        assert (await client.get("/reports/x")).status_code == 422
    assert calls == [7]


# --- keys ---

DECORATED: list[tuple[Any, Any, str]] = [
    (int, 7, "7"),
    (int, -7, "-7"),
    (int, Level.HIGH, "2"),
    (ReportId, 7, "7"),
    (Annotated[int, "path"], 7, "7"),
    (str, "a b:ü%{", "a%20b%3A%C3%BC%25%7B"),
    (str, "", ""),
    (str, Size.SMALL, "small"),
    (str | None, None, "%none"),
    (str | None, "None", "None"),
    (bool, True, "true"),
    (Colour, Colour.RED, "RED"),
    (Rights, Rights.READ | Rights.WRITE, "READ%7CWRITE"),
    (Rights, Rights(0), "0"),
    (Literal["x", "y"], "x", "x"),
    (UUID, UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (date, date(2026, 1, 2), "2026-01-02"),
    (datetime, datetime(2026, 1, 2), "2026-01-02T00%3A00%3A00"),  # noqa: DTZ001 - without a zone
    (
        datetime,
        datetime(2026, 1, 2, 1, tzinfo=timezone(timedelta(hours=1))),
        "2026-01-02T00%3A00%3A00%2B00%3A00",
    ),
    (datetime, datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00%3A00%3A00%2B00%3A00"),
]


def taking(*kinds: Any) -> Callable[..., Any]:
    async def function(a: Any, b: Any = 1) -> int:
        return 1

    names = ("a", "b")
    function.__annotations__ = dict(zip(names, kinds, strict=False))
    return function


@pytest.mark.parametrize(("kind", "value", "text"), DECORATED, ids=lambda it: str(it)[:40])
def test_a_value_has_one_text(kind: Any, value: Any, text: str) -> None:
    keys = fill_in(taking(kind, int), ["k:{a}:{b}"], ())
    assert keys(value) == (f"k:{text}:1",)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, "7"),
        (int, True),
        (int, None),
        (int, 7.0),
        (str, 7),
        (str, None),
        (bool, 1),
        (date, datetime(2026, 1, 2)),  # noqa: DTZ001 - of another type
        (Colour, "red"),
        (UUID, "7"),
        (str | None, 7),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_refused(kind: Any, value: Any) -> None:
    with pytest.raises(TypeError, match=r"a=.* is of type .*; its annotation says"):
        fill_in(taking(kind, int), ["k:{a}:{b}"], ())(value)


def test_a_text_that_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(InvalidKey):
        fill_in(taking(str), ["k:{a}"], ["b"])("\ud800")


texts = st.text("ab01:-_.~@/%é ", max_size=5)


@given(texts, texts, texts, texts, st.sampled_from([":", "-", "_", ".", "x~x", "@", "/", " 0"]))
def test_different_arguments_have_different_keys(
    a: str, b: str, c: str, d: str, between: str
) -> None:
    keys = fill_in(taking(str, str), [f"k{{a}}{between}{{b}}"], ())
    assert (keys(a, b) == keys(c, d)) is ((a, b) == (c, d))


@pytest.mark.parametrize(
    ("kinds", "template", "message"),
    [
        ((int, int), "k:{a}", "the parameter 'b' is not in the template 'k:{a}'"),
        ((int, int), "k:{a}:{c}", "has no parameter 'c', which 'k:{a}:{c}' names"),
        ((int, int), "k:{a}{b}", "put a character such as ':' between {a} and {b}"),
        ((int, int), "k:{a}x1%{b}", "put a character such as ':' between {a} and {b}"),
        ((int, int), "k:{a}:{b.x}", "{b.x} in the template .* is not just a name"),
        ((int, int), "k:{a}:{b!r}", "is not just a name"),
        ((int, int), "k:{a}:{b:>3}", "is not just a name"),
        ((int, int), "k:{a}:{}", "is not just a name"),
        ((int, int), "k:{a", "cannot be read"),
        ((int, float), "k:{a}:{b}", "its annotation must say one type: .* It says float"),
        ((int, int | str), "k:{a}:{b}", "It says int | str"),
        ((int,), "k:{a}:{b}", "It says nothing"),
        ((int, Any), "k:{a}:{b}", "It says typing.Any"),
        ((int, dict[str, int]), "k:{a}", "'b' is not in the template"),
        ((int, "OnlyForTypeCheckers"), "k:{a}", "means nothing while the program runs"),
    ],
)
def test_a_template_that_does_not_fit_is_refused(
    kinds: tuple[Any, ...], template: str, message: str
) -> None:
    cache = JobCache(MemoryBackend())
    with pytest.raises(TypeError) as raised:
        cache.cached(template, ttl=60)(taking(*kinds))
    assert all(part in str(raised.value) for part in message.split(" .* "))


def test_what_cannot_be_decorated_is_refused(cache: JobCache) -> None:
    def synchronous(a: int) -> int:
        return a

    async def a_tuple(a: int) -> tuple[int, int]:
        return a, a

    async def no_annotation(a: int):  # type: ignore[no-untyped-def]  # noqa: ANN202 - on purpose
        return a

    with pytest.raises(TypeError, match=r"jobcache\.sync"):
        cache.cached("{a}", ttl=1)(synchronous)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="give a serializer"):
        cache.cached("{a}", ttl=1)(a_tuple)
    with pytest.raises(ValueError, match="ttl="):
        cache.cached("{a}", ttl=-1)(no_annotation)
    with pytest.raises(TypeError, match="has no parameter 'b' that could be ignored"):
        cache.cached("{a}", ttl=1, ignore=["b"])(no_annotation)
    with pytest.raises(TypeError, match="several names are expected"):
        cache.cached("{a}", ttl=1, ignore="a")(no_annotation)
    cache.cached("{a}", ttl=1)(no_annotation)


# --- results ---


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)
    number: int


async def test_a_model_comes_back_as_a_model(cache: JobCache) -> None:
    @cache.cached("{a}", ttl=60)
    async def model(a: int) -> Frozen | None:
        return Frozen(number=a)

    assert await model(1) is await model(1)
    assert await model(1) == Frozen(number=1)


async def test_a_result_that_would_change_is_refused(cache: JobCache) -> None:
    @cache.cached("{a}", ttl=60)
    async def numbers(a: int) -> Any:
        return {a: a}

    with pytest.raises(InvalidDocument, match="changes when it is stored"):
        await numbers(1)


async def test_after_the_cache_is_closed_a_call_raises(cache: JobCache) -> None:
    @cache.cached("{a}", ttl=60)
    async def function(a: int) -> int:
        return a

    assert await function(1) == 1
    await cache.aclose()
    with pytest.raises(CacheClosed):
        await function(1)


class OwnUUID(UUID):
    """As some database drivers return."""


def test_a_value_of_a_subclass_has_the_text_of_its_base(cache: JobCache) -> None:
    @cache.cached("k:{a}", ttl=60)
    async def load(a: UUID) -> int:
        return 1

    assert load.key(OwnUUID(int=1)) == load.key(UUID(int=1))


def test_parameters_for_any_number_of_arguments_have_no_text(cache: JobCache) -> None:
    async def load(*several: int) -> int:
        return sum(several)

    with pytest.raises(TypeError, match="any number of arguments"):
        cache.cached("k:{several}", ttl=60)(load)


def test_an_alias_of_a_type_means_the_type(cache: JobCache) -> None:
    number = TypeAliasType("number", int)

    async def load(a: int) -> int:
        return a

    load.__annotations__["a"] = number
    assert cache.cached("k:{a}", ttl=60)(load).key(7) == "k:7"
