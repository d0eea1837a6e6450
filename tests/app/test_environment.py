"""`.env`, misspelt variables and odd directories: what a start makes of its surroundings."""

from __future__ import annotations

import codecs
import logging
import os
import sys
from pathlib import Path

import pytest
import uvicorn

from app import __main__ as command
from app import environment, settings
from app.__main__ import main
from tests.app.process import clean_environment, serving
from tests.app.running import Start

LINE = "JOBCACHE_PORT=from-file\n"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with an environment of its own, and no server that starts."""

    def serve(*arguments: object, **options: object) -> None:
        raise AssertionError("the service was started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", clean_environment())
    monkeypatch.setattr(uvicorn, "Server", serve)
    return tmp_path


@pytest.mark.parametrize("arguments", [["serve"], ["dev"], ["keys", "list"]])
@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF16_LE + LINE.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + LINE.encode("utf-16-be"),
        LINE.encode("utf-16-le"),
        LINE.encode("utf-16-be"),
        LINE.encode("utf-32"),
        b"# caf\xe9\n" + LINE.encode(),
        b"JOBCACHE_PREFIX=a\0b\n",
    ],
)
def test_an_env_file_that_is_no_text_is_one_line(
    directory: Path, arguments: list[str], content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory / ".env").write_bytes(content)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(".env=(unreadable): a text file in UTF-8 (")
    assert said.count("\n") == 1


@pytest.mark.parametrize("what", ["directory", "loop"])
def test_an_env_file_that_cannot_be_read_is_one_line(
    directory: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if what == "directory":
        (directory / ".env").mkdir()
    else:
        (directory / ".env").symlink_to(".env")
    assert main(["serve"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(".env=(unreadable): a text file in UTF-8 (")
    assert said.count("\n") == 1


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_an_env_file_is_read_with_and_without_a_byte_order_mark(
    directory: Path, mark: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory / ".env").write_bytes(mark + "JOBCACHE_PORT=größer\n".encode())
    assert main(["serve"]) == 2
    assert capsys.readouterr().err.startswith("JOBCACHE_PORT=größer: ")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("JOBCACHE_PROT", "JOBCACHE_PORT"),
        ("JOBCACHE_BACKENDS", "JOBCACHE_BACKEND"),
        ("jobcache_host", "JOBCACHE_HOST"),
        ("Jobcache_Port", "JOBCACHE_PORT"),
        ("JOBCACHE_SHADOWRATE", "JOBCACHE_SHADOW_RATE"),
        ("JOBCACHE_API_KEY", "JOBCACHE_API_KEYS"),
        ("JOBCACHE_", "JOBCACHE_"),
        ("JOBCACHE_QQ", "JOBCACHE_"),
    ],
)
@pytest.mark.parametrize("place", ["environment", "file"])
def test_a_misspelt_variable_is_one_warning_with_the_nearest_name(
    directory: Path, place: str, name: str, nearest: str, caplog: pytest.LogCaptureFixture
) -> None:
    if place == "file":
        (directory / ".env").write_text(f"{name}=s3cret\n")
    else:
        os.environ[name] = "s3cret"
    os.environ["JOBCACHE_PORT"] = "wrong"  # so that nothing starts
    assert main(["serve"]) == 2
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"{name} is not a setting; did you mean {nearest}")
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("place", ["environment", "file", "both"])
def test_an_old_name_works_with_one_warning(
    directory: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    for number, (old, new) in enumerate(settings.RENAMED_VARIABLES.items(), 1):
        with (directory / ".env").open("a") as file:
            if place == "file":
                file.write(f"{old}={number}\n")
            elif place == "both":
                file.write(f"{new}={10 * number}\n")
        if place != "file":
            os.environ[old] = str(number)
    environment.prepare()
    for number, (old, new) in enumerate(settings.RENAMED_VARIABLES.items(), 1):
        assert old not in os.environ
        assert os.environ[new] == str(number), "the environment takes precedence over .env"
        said = [each for each in caplog.messages if each.startswith(f"{old} is now {new}")]
        assert said == [f"{old} is now {new}; the old name still works"]
    chosen = settings.load()
    assert (chosen.header_timeout, chosen.max_held_requests) == (1, 2)
    assert (chosen.simulated_seconds, chosen.simulated_updates) == (3, 4)


def test_a_new_name_takes_precedence_over_the_old_one(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.environ |= {"JOBCACHE_PACED_SECONDS": "1", "JOBCACHE_SIMULATED_SECONDS": "2"}
    environment.prepare()
    assert settings.load().simulated_seconds == 2
    (record,) = caplog.records
    assert record.getMessage().startswith("JOBCACHE_PACED_SECONDS is now JOBCACHE_SIMULATED_SECON")
    assert record.getMessage().endswith("the old one is ignored")


@pytest.mark.parametrize("place", ["environment", "flag"])
def test_an_old_value_works_with_a_warning(
    directory: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    flags = {}
    if place == "flag":
        flags["JOBCACHE_RENDERER"] = "paced"
    else:
        os.environ["JOBCACHE_RENDERER"] = "paced"
    environment.prepare(flags)
    assert settings.load().renderer == "simulated"
    (record,) = caplog.records
    assert record.getMessage() == (
        "JOBCACHE_RENDERER=paced is now simulated; the old value still works"
    )


def test_every_setting_and_the_key_of_a_client_are_known(directory: Path) -> None:
    known = {each.variable: "" for each in settings.listed()}
    assert (
        list(environment.unknown_variables(known | {"JOBCACHE_KEY": "x", "REDIS_HOST": ""})) == []
    )


@pytest.mark.parametrize("backend", ["redis", "tiered"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_without_the_client_library_of_redis_the_start_stops_with_one_line(
    directory: Path,
    backend: str,
    workers: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "jobcache.backends.redis.backend", None)
    os.environ |= {"JOBCACHE_BACKEND": backend, "JOBCACHE_WORKERS": workers, "JOBCACHE_PORT": "0"}
    monkeypatch.setattr(command, "allow_connections", lambda _: None)
    assert main(["serve"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"JOBCACHE_BACKEND={backend}: its library is missing (")
    assert said.endswith("pip install 'jobcache[redis]'\n")
    assert said.count("\n") == 1


def walk(directory: Path) -> list[Path]:
    return list(directory.rglob("*"))


@pytest.mark.parametrize(
    "name",
    ["a%2Fb", "what?", "c#1", "d e", " ", "%", "%%20", "a&b=c", "ü 日本", "x:y", "@h", "?x=1#y"],
)
async def test_the_directory_of_the_data_may_have_any_name(
    tmp_path: Path, start: Start, name: str
) -> None:
    async with start(JOBCACHE_VAR_DIR=str(tmp_path / name)) as service:
        await service.rendering()
    found = {str(each.relative_to(tmp_path)) for each in walk(tmp_path)}
    found = {each for each in found if not each.startswith(f"{name}/processes/")}
    assert found - {f"{name}/jobcache.db-shm", f"{name}/jobcache.db-wal"} == {
        name,
        f"{name}/jobcache.db",
        f"{name}/jobcache.db.lock",
        f"{name}/processes",
        f"{name}/videos",
    }


def test_a_video_is_made_and_served_from_a_directory_with_any_name(tmp_path: Path) -> None:
    name = "a%2Fb?c#d e:é&"
    with serving(tmp_path, JOBCACHE_VAR_DIR=name) as service:
        job_id = service.rendering(seconds_per_scene=0.5)
        done = service.until(job_id, "completed")
        assert service.http.get(str(done["video_url"])).status_code == 200
    assert (tmp_path / name / "videos" / f"{job_id}.mp4").is_file()
    assert (tmp_path / name / "jobcache.db").is_file()
    assert {each.name for each in tmp_path.iterdir() if each.is_dir()} == {name}


def test_a_directory_whose_name_is_not_utf8_is_one_line(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.environ |= {"JOBCACHE_VAR_DIR": "a\udcff", "JOBCACHE_PORT": "0"}
    assert main(["serve"]) == 2
    said = capsys.readouterr().err
    assert said == "JOBCACHE_VAR_DIR=a\\udcff: a path in UTF-8\n"


# With two workers, which take a second each to start, `test_greeting.py` looks for it.
@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.long)])
def test_a_misspelt_variable_is_mentioned_once_whatever_the_number_of_workers(
    tmp_path: Path, workers: str
) -> None:
    (tmp_path / ".env").write_text("JOBCACHE_BACKEMD=memory\n")
    environment = {"JOBCACHE_WORKERS": workers, "JOBCACHE_BACKEND": "null"}
    with serving(tmp_path, **environment, JOBCACHE_PREFX="x") as service:
        log = service.log.read_text()
    assert log.count("JOBCACHE_BACKEMD is not a setting; did you mean JOBCACHE_BACKEND?") == 1
    assert log.count("JOBCACHE_PREFX is not a setting; did you mean JOBCACHE_PREFIX?") == 1


def test_the_settings_are_printed_as_the_document_has_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["settings"]) == 0
    assert capsys.readouterr().out == settings.document()


def test_a_command_that_is_interrupted_says_so_by_its_status_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(settings, "document", interrupt)
    assert main(["settings"]) == 130
    assert capsys.readouterr().err == ""
