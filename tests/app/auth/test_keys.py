"""Keys: how they are made, kept and taken back, and how a running service notices."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from app import settings
from app.__main__ import main
from app.auth import commands
from app.auth.callers import Caller, Role
from app.auth.key_file import KeyFile
from app.auth.keys import HEADING, Key, KeyFileError, Keyring, make_key, read_lines
from jobcache import SettingsError
from tests.app.keyed import bearer, write_keys
from tests.app.process import serving

DAY = "2026-11-24"


def counted() -> Callable[[int], bytes]:
    numbers = iter(range(1, 100))
    return lambda size: bytes([next(numbers)]) * size


# --- one key ---


def test_a_key_is_known_by_its_whole_text() -> None:
    key, token = make_key(Role.CLIENT, "acme", DAY, counted())
    ring = Keyring([key, make_key(Role.WORKER, None, DAY)[0]])
    assert ring.identify(token.encode()) == Caller("010101010101", Role.CLIENT, "acme")
    for wrong in (
        token[:-1],
        token[:-1] + "A",
        token + "A",
        token.upper(),
        token.replace("jc_01", "jc_02"),
        f" {token}",
        key.digest.hex(),
        key.id,
        "",
    ):
        assert ring.identify(wrong.encode()) is None, wrong


def test_an_id_that_nobody_has_is_compared_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr("app.auth.keys.hmac.compare_digest", compare)
    key, token = make_key(Role.OPERATOR, None, DAY)
    _, strange = make_key(Role.OPERATOR, None, DAY)
    ring = Keyring([key])
    for bearer_token in (token, strange, "malformed", ""):
        ring.identify(bearer_token.encode())
    assert compared == [(32, 32)] * 4


def test_two_keys_have_nothing_in_common() -> None:
    made = [make_key(Role.WORKER, None, DAY) for _ in range(50)]
    assert len({key.id for key, _ in made}) == len({token[16:] for _, token in made}) == 50
    assert {len(token) for _, token in made} == {len("jc_") + 12 + 1 + 43}


# --- the text of a file ---


def test_written_keys_are_read_back() -> None:
    keys = [make_key(role, c, DAY)[0] for role, c in ((Role.CLIENT, "a.b"), (Role.OPERATOR, None))]
    text = HEADING + "\n  # a note\n" + "".join(key.line() for key in keys)
    assert read_lines(text) == keys
    assert read_lines(HEADING) == [], "all have been taken back"


def line(**other: str) -> str:
    columns = {"id": "0" * 12, "role": "client", "client": "acme", "hash": "sha256:" + "0" * 64}
    return "  ".join((columns | {"day": DAY} | other).values())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        (" \n", "it is empty"),
        ("s3cret", "line 1: 1 columns, not 5"),
        (f"{HEADING}{line()} s3cret", "line 3: 6 columns"),
        (line(id="s3cret"), "line 1: the id is not valid"),
        (line(role="s3cret"), "line 1: the role is not valid"),
        (line(client="s3cret/"), "line 1: the client is not valid"),
        (line(hash="s3cret"), "line 1: the hash is not valid"),
        (line(hash="sha256:" + "0" * 63), "line 1: the hash is not valid"),
        (line(day="s3cret"), "line 1: the day is not valid"),
        (line(client="-"), "line 1: a client's key, and no other, names a client"),
        (line(role="operator"), "line 1: a client's key, and no other"),
        (f"{line()}\n{line()}", "line 2: a second key with the same id"),
    ],
)
def test_a_line_that_is_no_key_is_named_and_not_quoted(text: str, words: str) -> None:
    with pytest.raises(KeyFileError) as raised:
        read_lines(text)
    assert str(raised.value).startswith(words)
    assert "s3cret" not in str(raised.value)


# --- the commands ---


def keys(*arguments: str) -> int:
    return main(["keys", *arguments])


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JOBCACHE_API_KEYS", str(tmp_path / "keys"))
    return tmp_path / "keys"


def test_a_key_is_made_listed_and_taken_back(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys("add", "--role", "client", "--client", "acme") == 0
    first = capsys.readouterr()
    token = first.out.strip()
    assert keys("add", "--role", "worker") == 0
    worker = capsys.readouterr().out.strip()
    ring = Keyring(read_lines(file.read_text()))
    caller = ring.identify(token.encode())
    assert caller is not None
    assert (caller.role, caller.client) == ("client", "acme")
    assert keys("list") == 0
    listed = capsys.readouterr().out.splitlines()
    assert [row.split()[1] for row in listed] == ["client", "worker"]
    assert listed[0].split()[0] == caller.name
    for secret in (token, worker):
        assert secret[-43:] not in "".join(listed) + file.read_text() + first.err
    file.write_text(file.read_text() + "# a note\n")
    assert keys("revoke", caller.name) == 0
    ring = Keyring(read_lines(file.read_text()))
    assert ring.identify(token.encode()) is None
    assert ring.identify(worker.encode()) is not None
    assert file.read_text().endswith("# a note\n"), "notes stay"
    assert keys("revoke", worker[3:15]) == 0
    assert read_lines(file.read_text()) == []


def test_the_file_is_for_its_owner_alone_and_keeps_what_it_is_given(file: Path) -> None:
    before = os.umask(0)
    try:
        assert keys("add", "--role", "operator") == 0
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        file.chmod(0o640)
        link = file.with_name("link")
        link.symlink_to(file)
        assert keys("add", "--role", "operator", "--file", str(link)) == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert link.is_symlink()
    assert len(read_lines(file.read_text())) == 2
    assert sorted(path.name for path in file.parent.iterdir()) == ["keys", "link"]


def test_a_key_made_while_the_file_is_being_changed_waits_its_turn(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert keys("add", "--role", "operator") == 0
    asked, lock = threading.Event(), fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        asked.set()
        lock(descriptor, operation)

    with ThreadPoolExecutor() as other, commands._changing(file) as text:
        monkeypatch.setattr(fcntl, "flock", flock)
        waiting = other.submit(keys, "add", "--role", "worker")
        assert asked.wait(60)
        commands._replace(file, f"{text}# a note\n")
    assert waiting.result(20) == 0
    assert "# a note\n" in file.read_text()
    assert [key.role for key in read_lines(file.read_text())] == ["operator", "worker"]


def test_a_failed_write_leaves_the_key_file_unchanged(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys("add", "--role", "worker") == 0
    before = file.read_text()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    capsys.readouterr()
    assert keys("add", "--role", "worker") == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"{file}: No space left on device\n")
    assert file.read_text() == before
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["add", "--role", "client"], "--client goes with --role client"),
        (["add", "--role", "worker", "--client", "acme"], "--client goes with --role client"),
        (["add", "--role", "client", "--client", "a b"], "a client's id is"),
        (["add", "--role", "client", "--client", "acme\n"], "a client's id is"),
        (["revoke", "s3cret"], "it holds no such key"),
        (["list"], "there is no such file"),
        (["list", "--file", "/dev/null"], "there is no such file"),
        (["list", "--file", "."], "there is no such file"),
        (["add", "--role", "worker", "--file", "/nowhere/keys"], "No such file or directory"),
        (["add", "--role", "worker", "--file", ".env"], "line 1: 1 columns"),
    ],
)
def test_a_wrong_command_is_one_line(
    file: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (file.parent / ".env").write_text("NOTHING=s3cret\n")
    assert keys(*arguments) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.count("\n") == 1
    assert "s3cret" not in said.err
    assert said.out == ""
    assert not file.exists()


def test_the_file_must_be_named(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("JOBCACHE_API_KEYS")
    assert keys("list") == 2
    assert "JOBCACHE_API_KEYS" in capsys.readouterr().err


# --- a running service ---


def test_with_keys_any_host_may_be_listened_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_keys(tmp_path / "keys")
    monkeypatch.setenv("JOBCACHE_HOST", "0.0.0.0")  # noqa: S104 - nothing is started
    with pytest.raises(SettingsError, match="without API keys only a loopback"):
        settings.load()
    monkeypatch.setenv("JOBCACHE_API_KEYS", str(tmp_path / "keys"))
    assert settings.load().api_keys == tmp_path / "keys"


async def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    tokens = write_keys(file)
    naps: list[float] = []
    slept = asyncio.Semaphore(0)

    async def sleep(seconds: float) -> None:
        naps.append(seconds)
        await slept.acquire()

    watched = KeyFile(file, every=2.0, sleep=sleep)
    watched.start()
    assert watched.ring.identify(tokens["own"].encode())
    kept = [row for row in file.read_text().splitlines(keepends=True) if " acme " not in row]
    file.write_text("".join(kept))
    slept.release()
    async with asyncio.timeout(60):
        while watched.ring.identify(tokens["own"].encode()):
            await asyncio.sleep(0.001)
    assert watched.ring.identify(tokens["worker"].encode())
    assert set(naps) == {2.0}
    await watched.aclose()


def test_a_running_service_notices_that_the_last_key_is_revoked(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys("add", "--role", "operator") == 0
    token = capsys.readouterr().out.strip().encode()
    file.write_text(file.read_text().removeprefix(HEADING))  # as one without comments
    watched = KeyFile(file)
    caller = watched.ring.identify(token)
    assert caller is not None
    assert keys("revoke", caller.name) == 0
    asyncio.run(watched.refresh())
    assert watched.problem == ""
    assert watched.ring.identify(token) is None


async def test_a_change_that_leaves_size_and_time_alone_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    write_keys(file)
    watched = KeyFile(file)
    before, times = file.read_text(), file.stat()
    file.write_text(before.replace("client  ", "worker  ").replace("acme ", "-    "))
    text = before.replace("acme", "acne")
    file.write_text(text)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file.stat().st_size == times.st_size
    old = watched.ring
    await watched.refresh()
    assert watched.ring is not old


async def test_a_broken_file_is_reported_once_and_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file = tmp_path / "keys"
    tokens = write_keys(file)
    good = file.read_text()
    watched = KeyFile(file)
    for broken in (b"s3cret", b"", b"\xff\xfe", None):
        if broken is None:
            file.unlink()
        else:
            file.write_bytes(broken)
        caplog.clear()
        for _ in range(3):
            await watched.refresh()
        assert len(caplog.records) == 1
        assert "the keys stay as they were" in caplog.text
        assert "s3cret" not in caplog.text
        assert watched.ring.identify(tokens["own"].encode())
    caplog.clear()
    file.write_text(good)
    await watched.refresh()
    assert not caplog.records, "as before, which is no change"
    file.write_text(HEADING)
    await watched.refresh()
    assert "it holds 0 keys" in caplog.text
    assert watched.ring.identify(tokens["own"].encode()) is None, "all have been taken back"
    file.write_bytes(b"s3cret")
    await watched.refresh()
    assert "line 1" in caplog.text, "broken again is news again"


async def test_the_loop_goes_on_while_the_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    write_keys(file)
    watched = KeyFile(file)
    loop, seen = asyncio.get_running_loop(), []

    def slow(path: Path) -> str:
        # Ends only when the loop has run something else meanwhile.
        answered = asyncio.run_coroutine_threadsafe(asyncio.sleep(0, "alive"), loop)
        seen.append(answered.result(10))
        return HEADING

    monkeypatch.setattr("app.auth.key_file.read_text", slow)
    await watched.refresh()
    assert seen == ["alive"]
    assert len(watched.ring) == 0


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"#" * (4 * 1024 * 1024 + 1))
    with pytest.raises(SettingsError, match="more than 4194304 bytes"):
        KeyFile(file)


def test_a_service_takes_back_a_key_while_it_runs(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    tokens = write_keys(file)
    revoked = next(key.id for key in read_lines(file.read_text()) if key.client == "other")
    environment = {"JOBCACHE_API_KEYS": str(file), "JOBCACHE_HOST": "127.0.0.1"}
    with serving(tmp_path, **environment) as service:

        def status(name: str) -> int:
            return service.http.get("/api/v2/jobs", headers=bearer(tokens[name])).status_code

        assert (status("own"), status("stranger")) == (200, 200)
        assert keys("revoke", revoked, "--file", str(file)) == 0
        deadline = time.monotonic() + 60
        while status("stranger") != 401:
            assert time.monotonic() < deadline
            time.sleep(0.05)  # between bounded attempts, not instead of a condition
        assert status("own") == 200
        with pytest.raises(httpx.HTTPStatusError):
            service.http.get("/api/v2/jobs").raise_for_status()
        service.stop()
        log = service.log.read_text()
    assert "it holds 3 keys" in log
    assert all(token[-43:] not in log for token in tokens.values())


def test_a_key_shows_no_hash() -> None:
    key: Key = make_key(Role.CLIENT, "acme", DAY)[0]
    assert key.digest.hex() not in repr(key)
    assert str(key.digest) not in repr(key)
