"""Real servers, one each for a whole worker, and backends on them; and how long tests take."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from app.devservers import MemcachedServer, PostgresServer, RedisServer
from app.devservers.programs import memcached_program
from jobcache.testing import conformance
from tests.hanging import describe_tasks
from tests.installed import require_program
from tests.pairs import impossible_pairs, spare_pairs
from tests.patience import limits
from tests.subjects import REDIS_SERVERS, Stores, make_subject
from tests.wheels import build_wheel


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long",
        action="store_true",
        help="run tests at their full length, and those that are marked as long",
    )


ROOT = Path(__file__).parents[1]


def pytest_configure(config: pytest.Config) -> None:
    # Tests start the service in directories of their own, and it is not installed.
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)
    # How long an example takes is the machine's affair.
    settings.register_profile(
        "tests", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long tests out, and half of the pairs of backend and database, unless asked for."""
    left_out = impossible_pairs(items)
    if not config.getoption("long"):
        left_out |= {item for item in items if item.get_closest_marker("long")}
        left_out |= spare_pairs(items)
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True, scope="module")
def patient_module(request: pytest.FixtureRequest) -> Iterator[None]:
    """Do as `patient` does, for what is made once for a module."""
    with pytest.MonkeyPatch.context() as patch:
        _set_limits(request, patch)
        yield


@pytest.fixture(autouse=True)
def patient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give operations on a store half a minute, except in tests of the usual limits."""
    _set_limits(request, monkeypatch)


def _set_limits(request: pytest.FixtureRequest, patch: pytest.MonkeyPatch) -> None:
    usual = request.node.get_closest_marker("usual_limits") is not None
    for defaults, name, seconds in limits(usual=usual):
        patch.setitem(defaults, name, seconds)


def pytest_collection_finish() -> None:
    """Exclude the objects that exist now from garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def collected() -> Iterator[None]:
    """Report what a module's tests left open in that module, not in a later one.

    What is left is of the whole session, and grows: later modules do not look through it again.
    """
    yield
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Leave it to pytest's last collection to report what no module has."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether tests run at their full length: `make test-long`."""
    asked: bool = request.config.getoption("long")
    return asked


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer() -> Generator[None, bool, bool]:
    """Let a test that hangs say which task waits for what: a thread's stack shows only the loop."""
    done = yield
    give_up = signal.getsignal(signal.SIGALRM)
    assert callable(give_up)

    def tell_and_give_up(number: int, frame: object) -> None:
        print(describe_tasks())  # noqa: T201 - pytest shows it with the failure
        give_up(number, frame)

    signal.signal(signal.SIGALRM, tell_and_give_up)
    return done


@pytest.fixture(scope="session")
def redis_urls() -> Iterator[dict[str, str]]:
    """Every Redis-compatible server found, started; their URLs by name."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(RedisServer(program)).url
            for name, program in REDIS_SERVERS.items()
        }


@pytest.fixture(scope="session")
def redis_url(redis_urls: dict[str, str]) -> str:
    """One of them, where one is enough."""
    return next(iter(redis_urls.values()))


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def memcached_server() -> Iterator[MemcachedServer]:
    require_program(memcached_program)
    with MemcachedServer() as server:
        yield server


@pytest.fixture(scope="session")
def stores(
    request: pytest.FixtureRequest,
    postgres: PostgresServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Stores:
    """The stores with compare-and-set, running; memcached once a test wants it."""

    def memcached() -> str:
        url: str = request.getfixturevalue("memcached_server").url
        return url

    sqlite = tmp_path_factory.mktemp("cells") / "cells.db"
    return Stores(memcached, f"sqlite+aiosqlite:///{sqlite}", postgres.url())


@pytest.fixture
async def subject(
    request: pytest.FixtureRequest, redis_urls: dict[str, str]
) -> AsyncIterator[conformance.Subject]:
    """A backend under test, empty; parametrize it indirectly with names of `BACKENDS`."""
    async for made in make_subject(request.param, redis_urls):
        yield made


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))
