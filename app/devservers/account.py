"""Whom a server of root's runs as, where it refuses to run as root, and what that one may reach."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path


class Account(NamedTuple):
    """The identity of a child process, in the words of `subprocess.Popen`."""

    user: int
    group: int
    extra_groups: tuple[()] = ()

    def take(self, path: Path) -> None:
        """Make `path` this account's."""
        os.chown(path, self.user, self.group, follow_symlinks=False)

    def may_enter(self, directory: Path) -> bool:
        """Whether this account may go to `directory`.

        Asked of the kernel, since modes alone do not tell: there are groups and access lists.
        """
        command = ["test", "-x", str(directory)]
        asked = subprocess.run(command, check=False, **self._asdict())  # noqa: S603 - a constant
        return asked.returncode == 0


def account_for(data: Path | None) -> Account | None:
    """Return whom to run as instead of root: the owner of `data`, or ``nobody`` for new data.

    ``None`` where this process is not root, and its servers run as the user it runs as.
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

    An environment below /root is closed to other accounts, and opening /root to everybody is not
    for a test to do.
    """
    package = install.parent
    copy = into / package.name / install.name
    shutil.copytree(install, copy, ignore=shutil.ignore_patterns("include"))
    # The programs look for the libraries that were bundled with them beside the package.
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, into / libraries.name)
    for path in into.rglob("*"):
        account.take(path)
    return copy
