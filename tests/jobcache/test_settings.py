"""From settings to a backend: names, plug-ins, missing libraries, and clear errors."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

from jobcache import CacheSettings, SettingsError, settings
from jobcache.backends import registry
from jobcache.backends.null import NullBackend
from jobcache.backends.registry import make_backend


def test_names_lead_to_backends() -> None:
    assert make_backend(CacheSettings(backend="null")).name == "null"
    assert make_backend(CacheSettings(backend="memory")).name == "memory"
    assert set(settings.backend_names()) >= {"null", "memory", "memcached", "redis", "tiered"}


def test_the_environment_is_read() -> None:
    chosen = CacheSettings.from_environment(
        {
            "JOBCACHE_BACKEND": "redis",
            "REDIS_URL": "rediss://example:6380/1",
            "JOBCACHE_PREFIX": "video:",
            "JOBCACHE_MAX_ENTRIES": "5",
            "JOBCACHE_MAX_BYTES": "",
            "JOBCACHE_SHADOW_RATE": ".25",
        }
    )
    assert chosen == CacheSettings(
        backend="redis",
        redis_url="rediss://example:6380/1",
        prefix="video:",
        max_entries=5,
        shadow_rate=0.25,
    )


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("JOBCACHE_BACKEND", "dynamo", "one of memcached, memory, null"),
        ("REDIS_URL", "localhost:6379", "redis://"),
        ("REDIS_URL", "redis+cluster:/localhost", "redis+cluster://"),
        ("REDIS_URL", "unix+sentinel://localhost/jobs", "rediss+sentinel://"),
        ("REDIS_URL", "valkey+replica://localhost", "valkey may be written"),
        ("JOBCACHE_PREFIX", "a b", "letters, digits"),
        ("JOBCACHE_MAX_ENTRIES", "0", "a whole number above 0"),
        ("JOBCACHE_MAX_BYTES", "1e6", "a whole number above 0"),
        ("JOBCACHE_MAX_BYTES", "٣", "a whole number above 0"),
        ("JOBCACHE_SHADOW_RATE", "1.5", "a number from 0 to 1"),
        ("JOBCACHE_SHADOW_RATE", "nan", "a number from 0 to 1"),
    ],
)
def test_a_wrong_setting_names_variable_value_and_what_is_allowed(
    variable: str, value: str, words: str
) -> None:
    with pytest.raises(SettingsError) as failure:
        CacheSettings.from_environment({variable: value})
    message = str(failure.value)
    assert message.startswith(f"{variable}={value}: ")
    assert words in message
    assert "\n" not in message


def test_other_peoples_backends_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("theirs", f"{__name__}:their_factory", settings.GROUP)

    def found(*, group: str, name: str | None = None) -> list[importlib.metadata.EntryPoint]:
        assert group == "jobcache.backends"
        return [point] if name in {None, "theirs"} else []

    monkeypatch.setattr(settings, "entry_points", found)
    monkeypatch.setattr(registry, "entry_points", found)
    backend = make_backend(CacheSettings.from_environment({"JOBCACHE_BACKEND": "theirs"}))
    assert isinstance(backend, Theirs)


class Theirs(NullBackend):
    """A backend that a plug-in brings."""


def their_factory(settings: CacheSettings) -> NullBackend:
    assert settings.backend == "theirs"
    return Theirs()


@pytest.mark.parametrize(
    ("name", "extra"),
    [("redis", "redis"), ("tiered", "redis"), ("memcached", "memcached")],
    ids=["redis", "tiered", "memcached"],
)
def test_without_the_client_library_there_is_no_backend(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jobcache.backends.redis.backend", None)
    monkeypatch.setitem(sys.modules, "jobcache.backends.memcached", None)
    with pytest.raises(SettingsError) as failure:
        make_backend(CacheSettings(backend=name))
    message = str(failure.value)
    assert message.startswith(f"JOBCACHE_BACKEND={name}: its library is missing (")
    assert message.endswith(f"pip install 'jobcache[{extra}]'")
    assert "\n" not in message


def test_a_plug_in_whose_library_is_missing_is_given_no_extra_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    point = importlib.metadata.EntryPoint("theirs", "no_such_module:factory", settings.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda **_: [point])
    with pytest.raises(SettingsError, match="no_such_module") as failure:
        make_backend(CacheSettings(backend="theirs"))
    assert "pip install" not in str(failure.value)


def test_importing_the_library_imports_none_of_what_is_optional() -> None:
    program = (
        "import sys, jobcache, jobcache.testing.conformance\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "print(sorted(loaded & {'redis', 'hiredis', 'pymemcache', 'fastapi', 'starlette',"
        " 'sqlalchemy', 'pydantic', 'uvicorn', 'app'}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("break_", ["\n", "\r\n", "\u2028", "\x85", "\x1b[2J"])
def test_a_wrong_value_with_line_breaks_is_still_one_line(break_: str) -> None:
    with pytest.raises(SettingsError) as failure:
        CacheSettings.from_environment({"JOBCACHE_PREFIX": f"a{break_}b" + "c" * 100_000})
    message = str(failure.value)
    assert message.isprintable()
    assert message.startswith("JOBCACHE_PREFIX=a\\")
    assert len(message) < 400
