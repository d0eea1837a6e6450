"""The commands of `python -m app keys`: add, list and revoke keys."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from app.auth.callers import CLIENT_ID, Role
from app.auth.key_file import read_text
from app.auth.keys import HEADING, KeyFileError, make_key, read_lines

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator


def add_to(parser: argparse.ArgumentParser) -> None:
    """Declare the commands."""
    commands = parser.add_subparsers(dest="keys_command", required=True)
    add = commands.add_parser("add", help="make a key, and print it this once")
    add.add_argument("--role", required=True, choices=list(map(str, Role)))
    add.add_argument("--client", help="whose jobs a client's key is for")
    listing = commands.add_parser("list", help="show the keys, without secrets")
    revoke = commands.add_parser("revoke", help="revoke a key")
    revoke.add_argument("id", help="as `list` shows it, or the key's second part")
    for command in (add, listing, revoke):
        command.add_argument("--file", help="the file of keys; else JOBCACHE_API_KEYS names it")


def run(options: argparse.Namespace) -> int:
    """Run the chosen command, and return the exit status."""
    name = options.file or os.environ.get("JOBCACHE_API_KEYS", "")
    if not name:
        return _fail("name the file of keys with --file or JOBCACHE_API_KEYS")
    path = Path(name)
    try:
        if options.keys_command == "add":
            _add(path, Role(options.role), options.client)
        elif options.keys_command == "list":
            _list(path)
        else:
            _revoke(path, options.id)
    except KeyFileError as error:
        return _fail(f"{name}: {error}")
    except OSError as error:
        return _fail(f"{name}: {error.strerror}")
    return 0


def _add(path: Path, role: Role, client: str | None) -> None:
    if (role is Role.CLIENT) != (client is not None):
        raise KeyFileError("--client goes with --role client, and with no other")
    if client is not None and re.fullmatch(CLIENT_ID, client) is None:
        raise KeyFileError("a client's id is up to 64 letters, digits and . _ @ -")
    with _changing(path) as old:
        text = HEADING if old is None else old
        taken = {key.id for key in read_lines(text)}
        key, token = make_key(role, client, datetime.now(UTC).date().isoformat())
        while key.id in taken:
            key, token = make_key(role, client, key.made)
        _replace(path, text + ("" if text.endswith("\n") else "\n") + key.line())
    whom = str(role) if client is None else f"{role} {client}"
    print(f"{path}: key {key.id} for {whom}. It is shown this once:", file=sys.stderr)  # noqa: T201
    print(token)  # noqa: T201 - the product


def _list(path: Path) -> None:
    for key in read_lines(read_text(path)):
        client = "-" if key.client is None else key.client
        print(f"{key.id}  {key.role:8}  {key.made}  {client}")  # noqa: T201 - the product


def _revoke(path: Path, key_id: str) -> None:
    with _changing(path) as text:
        lines = [] if text is None else text.splitlines(keepends=True)
        if key_id not in {key.id for key in read_lines(text or HEADING)}:
            raise KeyFileError("it holds no such key")  # not the id: it may be a whole key
        left = "".join(line for line in lines if line.split()[:1] != [key_id])
        _replace(path, left if left.strip() else HEADING)  # an empty file would not be used
    print(f"{path}: key {key_id} is revoked", file=sys.stderr)  # noqa: T201 - as in `_add`


@contextmanager
def _changing(path: Path) -> Iterator[str | None]:
    """Yield the file's text, None if there is none. No other command changes it meanwhile."""
    # The lock is on the directory, because the file is replaced.
    directory = os.open(path.resolve().parent, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield read_text(path) if path.exists() else None
    finally:
        os.close(directory)


def _replace(path: Path, text: str) -> None:
    """Replace the file atomically: a reader sees all of the new text, or all of the old."""
    target = path.resolve()  # through a link, not over it
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8", newline="") as file:  # noqa: PTH123
            if target.exists():  # a service under another account goes on reading it
                old = target.stat()
                os.fchown(descriptor, old.st_uid, old.st_gid)
                os.fchmod(descriptor, old.st_mode & 0o777)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        beside.replace(target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _fail(line: str) -> int:
    print(line, file=sys.stderr)  # noqa: T201 - the one line
    return 2
