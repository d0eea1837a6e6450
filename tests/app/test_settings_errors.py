"""A setting that cannot be used stops the start at once: one line, an exit status, no secret.

`main` runs in this process. `test_process.py` shows that the process ends with its result.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import uvicorn

from app.__main__ import main
from app.devservers import free_port
from app.main import from_environment
from tests.app.process import clean_environment

REDIS = {"JOBCACHE_BACKEND": "redis"}
REDIS_2 = {"JOBCACHE_BACKEND": "redis", "JOBCACHE_WORKERS": "2"}


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of its own, no settings of a developer's, and a server that must not start."""

    def run(*arguments: object, **options: object) -> None:
        raise AssertionError("the service was started")

    monkeypatch.chdir(tmp_path)
    for name in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(name)
    monkeypatch.setattr(uvicorn, "run", run)
    monkeypatch.setenv("JOBCACHE_PORT", "0")  # nobody else's
    return tmp_path


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"DATABASE_URL": "postgresql://u:s3cret@h:port/d"}, "DATABASE_URL=(unreadable): a URL"),
        (
            {"JOBCACHE_RENDERER": "celery", "JOBCACHE_BACKEND": "memory"},
            "JOBCACHE_BACKEND=memory: the memory backend is right for one process only",
        ),
        (
            {"JOBCACHE_RENDERER": "celery", **REDIS, "REDIS_URL": "rediss://u:s3cret@127.0.0.1:1"},
            "CELERY_BROKER_URL=: the URL of the workers' broker",
        ),
        (
            {"JOBCACHE_RENDERER": "celery", **REDIS, "CELERY_BROKER_URL": "http://u:s3cret@h"},
            "CELERY_BROKER_URL=(unreadable): the URL of the workers' broker",
        ),
        ({"DATABASE_URL": "mysql://h/d?password=s3cret"}, "DATABASE_URL=mysql://h: a URL"),
        ({"DATABASE_URL": "mysql://u:s3cret@h/d"}, "DATABASE_URL=mysql://h: a URL"),
        (
            {"DATABASE_URL": "postgresql://u:s3cret@127.0.0.1:1/d?sslmod=require"},
            "DATABASE_URL=postgresql+asyncpg://127.0.0.1: unknown parameter 'sslmod'; known are",
        ),
        (
            {"DATABASE_URL": "postgresql://u:s3cret@127.0.0.1:1/d?sslmode=always"},
            "DATABASE_URL=postgresql+asyncpg://127.0.0.1: sslmode must be one of disable, allow",
        ),
        (
            {"DATABASE_URL": "postgresql://u:s3cret@h1:1,h2:2/d?target_session_attrs=standby"},
            "DATABASE_URL=postgresql+asyncpg://: target_session_attrs must be one of any, primary",
        ),
        (
            {"DATABASE_URL": "postgresql://u:s3cret@h/d?sslmode=verify-ca&sslrootcert=nowhere.pem"},
            "DATABASE_URL=postgresql+asyncpg://h: sslrootcert: there is no file nowhere.pem",
        ),
        (
            {"DATABASE_URL": "postgresql://u:s3cret@h/d?channel_binding=require&sslmode=prefer"},
            "DATABASE_URL=postgresql+asyncpg://h: channel_binding=require needs sslmode=require",
        ),
        (
            {"DATABASE_URL": "postgresql://u:s3cret@h/d?connect_timeout=soon"},
            "DATABASE_URL=postgresql+asyncpg://h: connect_timeout must be a number",
        ),
        (
            {"DATABASE_URL": "postgresql://u:s3cret@h/d?application_name=a&application_name=b"},
            "DATABASE_URL=postgresql+asyncpg://h: application_name is given twice",
        ),
        (
            {"DATABASE_URL": "sqlite:///x.db?timeout=long"},
            "DATABASE_URL=sqlite+aiosqlite:///x.db: the driver refuses it: ",
        ),
        ({"JOBCACHE_VAR_DIR": "/etc/passwd"}, "JOBCACHE_VAR_DIR=/etc/passwd: a directory"),
        ({"JOBCACHE_VAR_DIR": "/proc/x"}, "JOBCACHE_VAR_DIR=/proc/x: a directory that can be"),
        ({"JOBCACHE_API_KEYS": "nowhere"}, "JOBCACHE_API_KEYS=nowhere: there is no such file; al"),
        ({"JOBCACHE_API_KEYS": "."}, "JOBCACHE_API_KEYS=.: there is no such file; allowed is a"),
        ({"JOBCACHE_API_KEYS": "/etc/passwd"}, "JOBCACHE_API_KEYS=/etc/passwd: line 1: "),
        ({"JOBCACHE_API_KEYS": "/dev/null"}, "JOBCACHE_API_KEYS=/dev/null: there is no such"),
        # The page takes a stream that is silent for a minute for lost.
        ({"JOBCACHE_HEARTBEAT_SECONDS": "31"}, "JOBCACHE_HEARTBEAT_SECONDS=31: "),
        ({"JOBCACHE_RATE_LIMIT": "often"}, "JOBCACHE_RATE_LIMIT=often: a rate such as"),
        ({"REDIS_URL": "redis://:s3cret@h:port", **REDIS_2}, "REDIS_URL=redis://h:port: "),
        ({"REDIS_URL": "redis://:s3cret@h/x", **REDIS}, "REDIS_URL=redis://h/x: a URL"),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_line(
    environment: dict[str, str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["serve"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(words)
    assert said.count("\n") == 1
    assert "s3cret" not in said
    assert not caplog.records


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_database_that_is_away_at_the_start_is_one_line(
    workers: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JOBCACHE_BACKEND", "null")
    monkeypatch.setenv("JOBCACHE_WORKERS", workers)
    monkeypatch.setenv("DATABASE_URL", f"postgresql://u:s3cret@127.0.0.1:{free_port()}/d")
    assert main(["serve"]) == 3
    said = capsys.readouterr().err
    assert said.startswith("The database cannot be used: postgresql+asyncpg://127.0.0.1: ")
    assert said.count("\n") == 1
    assert "s3cret" not in said


def test_a_file_that_is_no_database_is_one_line(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory / "x.db").write_text("This is no database. " * 100)
    monkeypatch.setenv("DATABASE_URL", "sqlite:///x.db")
    assert main(["serve"]) == 3
    said = capsys.readouterr().err
    assert "file is not a database" in said
    assert said.count("\n") == 1


def test_every_worker_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker is a new process, which knows nothing of what its parent set up."""
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    from_environment()
    assert len(logging.root.handlers) == 1
    assert logging.getLogger("app").isEnabledFor(logging.INFO)


@pytest.mark.parametrize("host", ["example.com", "0.0.0.0", "::"])  # noqa: S104
def test_without_keys_only_an_address_of_loopback_is_listened_on(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JOBCACHE_HOST", host)
    assert main(["serve"]) == 2
    assert f"JOBCACHE_HOST={host}: " in capsys.readouterr().err
