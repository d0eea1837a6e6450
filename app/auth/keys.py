"""API keys: `jc_<id>_<secret>`, stored as SHA-256.

One fast hash is enough: the secret is 256 random bits, too many to try. Slow hashes protect
passwords that people choose. The id is public. It finds the one hash to compare with, so the time
does not depend on the number of keys, and it names a key in lists.

The key file is text, one key a line, in columns that people can read and comment on.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.auth.callers import CLIENT_ID, Caller, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

HEADING = (
    "# API keys of jobcache, made by `python -m app keys add`; one a line:\n"
    "# id, role, client (- for none), SHA-256 of the key, day it was made\n"
)
_ID_BYTES, _SECRET_BYTES = 6, 32
_TOKEN = re.compile(rb"jc_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_COLUMNS = {
    "id": r"[0-9a-f]{12}",
    "role": "|".join(Role),
    "client": rf"-|{CLIENT_ID}",
    "hash": r"sha256:[0-9a-f]{64}",
    "day": r"\d{4}-\d\d-\d\d",
}


class KeyFileError(Exception):
    """A key file cannot be used. The message repeats nothing of its content."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key, without its secret.

    Attributes:
        id: its public part.
        role: its role.
        client: the client whose jobs it is for; None unless its role is client.
        digest: the SHA-256 of the whole key.
        made: the day it was made, in ISO 8601.
    """

    id: str
    role: Role
    client: str | None
    digest: bytes = field(repr=False)
    made: str

    def line(self) -> str:
        """Return the line of this key in a key file."""
        client = "-" if self.client is None else self.client
        return f"{self.id}  {self.role:8}  {client}  sha256:{self.digest.hex()}  {self.made}\n"


def make_key(
    role: Role,
    client: str | None,
    made: str,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
) -> tuple[Key, str]:
    """Return a new key, and its token: the only copy, for the key's owner.

    Args:
        role: its role.
        client: the client whose jobs it is for; None unless the role is client.
        made: today, in ISO 8601.
        random_bytes: returns so many random bytes.
    """
    key_id = random_bytes(_ID_BYTES).hex()
    token = f"jc_{key_id}_{_urlsafe(random_bytes(_SECRET_BYTES))}"
    return Key(key_id, role, client, hashlib.sha256(token.encode()).digest(), made), token


def read_lines(text: str) -> list[Key]:
    """Return the keys in the text of a key file.

    Raises:
        KeyFileError: a line is not a key. The message names the line and the wrong column.
    """
    if not text.strip():
        # A file that was cut off while it was written; one without keys has its heading.
        raise KeyFileError("it is empty")
    keys: dict[str, Key] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key = _key(line.split(), number)
        if key.id in keys:
            raise KeyFileError(f"line {number}: a second key with the same id")
        keys[key.id] = key
    return list(keys.values())


class Keyring:
    """Keys, by id.

    Args:
        keys: the keys.
        before: the ring that this one replaces. A key that has not changed keeps its caller, so
            that `holds` knows the callers that the earlier ring has admitted.
    """

    def __init__(self, keys: Iterable[Key], before: Keyring | None = None) -> None:
        earlier = {} if before is None else before._known  # noqa: SLF001 - of the same class
        self._known: dict[str, tuple[bytes, Caller]] = {}
        for key in keys:
            known, kept = (key.digest, _caller(key)), earlier.get(key.id)
            self._known[key.id] = kept if kept is not None and kept == known else known

    def __len__(self) -> int:
        return len(self._known)

    def holds(self, caller: Caller) -> bool:
        """Return True if the key of this caller is still here, and unchanged."""
        return self._known.get(caller.name, _NOBODY)[1] is caller

    def identify(self, token: bytes) -> Caller | None:
        """Return the caller whose token this is, or None, after the same work."""
        shape = _TOKEN.fullmatch(token)
        key_id = "" if shape is None else shape[1].decode()
        digest, caller = self._known.get(key_id, _NOBODY)
        same = hmac.compare_digest(digest, hashlib.sha256(token).digest())
        return caller if same else None


_NOBODY: tuple[bytes, Caller | None] = (bytes(hashlib.sha256().digest_size), None)


def _caller(key: Key) -> Caller:
    return Caller(key.id, key.role, key.client)


def _key(columns: list[str], number: int) -> Key:
    if len(columns) != len(_COLUMNS):
        raise KeyFileError(f"line {number}: {len(columns)} columns, not {len(_COLUMNS)}")
    for text, (name, pattern) in zip(columns, _COLUMNS.items(), strict=True):
        if re.fullmatch(pattern, text, re.ASCII) is None:
            raise KeyFileError(f"line {number}: the {name} is not valid")
    key_id, role, client, digest, made = columns
    if (role == Role.CLIENT) == (client == "-"):
        raise KeyFileError(f"line {number}: a client's key, and no other, names a client")
    owner = None if client == "-" else client
    return Key(key_id, Role(role), owner, bytes.fromhex(digest.removeprefix("sha256:")), made)


def _urlsafe(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
