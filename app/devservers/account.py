"""The account of a server that refuses to run as root, and access to its files."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path


class Account(NamedTuple):
    """The identity of a child process, as arguments of `subprocess.Popen`."""

    user: int
    group: int
    extra_groups: tuple[()] = ()

    def take(self, path: Path) -> None:
        """Make this account the owner of `path`."""
        os.chown(path, self.user, self.group, follow_symlinks=False)

    def may_enter(self, directory: Path) -> bool:
        """Return whether this account may enter `directory`.

        The kernel decides, because modes are not enough: there are groups and access lists.
        """
        command = ["test", "-x", str(directory)]
        asked = subprocess.run(command, check=False, **self._asdict())  # noqa: S603 - a constant
        return asked.returncode == 0


def account_for(data: Path | None) -> Account | None:
    """Return the account to use instead of root: the owner of `data`, or ``nobody`` for new data.

    Return ``None`` if this process is not root; its servers then run as the same user.
    """
    if os.geteuid() != 0:
        return None
    if data is not None and (data / "PG_VERSION").exists():
        owner = data.stat()
        return Account(owner.st_uid, owner.st_gid)
    nobody = pwd.getpwnam("nobody")
    return Account(nobody.pw_uid, nobody.pw_gid)


def copy_install(install: Path, into: Path, account: Account) -> Path:
    """Copy a PostgreSQL of the development extra for `account`; return the copy.

    Other accounts cannot enter an environment below /root, and a test must not open /root.
    """
    package = install.parent
    copy = into / package.name / install.name
    shutil.copytree(install, copy, ignore=shutil.ignore_patterns("include"))
    # The programs expect their bundled libraries beside the package.
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, into / libraries.name)
    for path in into.rglob("*"):
        account.take(path)
    return copy
