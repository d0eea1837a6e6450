"""The environment of a process of the service: what each start does before it reads the settings.

A flag takes precedence over the environment, and the environment over the file `.env`. Worker
processes inherit the environment, so that is where flags and the contents of `.env` go.
"""

from __future__ import annotations

import difflib
import logging
import os
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from dotenv import load_dotenv

from app import log_format
from app.settings import RENAMED_VALUES, RENAMED_VARIABLES, listed
from jobcache import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, MutableMapping

logger = logging.getLogger("app")

_PREFIX = "JOBCACHE_"
_CLIENT_VARIABLES = frozenset({"JOBCACHE_KEY"})  # read by the example client
_NO_FLAGS: Mapping[str, str] = {}


def prepare(flags: Mapping[str, str] = _NO_FLAGS) -> None:
    """Configure logging, fill the environment, and warn of old names and of misspelt ones.

    Args:
        flags: variables that flags of the command line set.

    Raises:
        SettingsError: `.env` cannot be read.
    """
    renamed = use_new_names(os.environ)  # before `.env`, which must not override the environment
    read_env_file()
    os.environ.update(flags)
    renamed += use_new_names(os.environ)
    log_format.configure(os.environ)
    for warning in renamed:
        logger.warning("%s", warning)
    for name, nearest in unknown_variables(os.environ):
        logger.warning("%s is not a setting; did you mean %s?", name, nearest)


def read_env_file() -> None:
    """Add the variables of `.env` in the working directory; it overrides none that is set.

    Raises:
        SettingsError: the file exists and cannot be read, or is not text in UTF-8.
    """
    try:
        text = Path(".env").read_text(encoding="utf-8-sig")
        if "\0" in text:  # as in UTF-16 without a byte order mark
            raise ValueError("it has null characters")  # noqa: TRY301
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise SettingsError(".env", "(unreadable)", f"a text file in UTF-8 ({error})") from error
    load_dotenv(stream=StringIO(text))


def use_new_names(environment: MutableMapping[str, str]) -> list[str]:
    """Replace old names of variables and of their values by the current ones; return warnings."""
    warnings = []
    for old, new in RENAMED_VARIABLES.items():
        value = environment.pop(old, None)
        if value is None:
            continue
        if environment.get(new):
            warnings.append(f"{old} is now {new}, which is set, too: the old one is ignored")
        else:
            warnings.append(f"{old} is now {new}; the old name still works")
            environment[new] = value
    for (variable, old), new in RENAMED_VALUES.items():
        if environment.get(variable) == old:
            warnings.append(f"{variable}={old} is now {new}; the old value still works")
            environment[variable] = new
    return warnings


def unknown_variables(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each `JOBCACHE_*` variable that is not a setting, and the setting nearest by name."""
    known = [each.variable for each in listed() if each.variable.startswith(_PREFIX)]
    for name in sorted(environment):
        if name.upper().startswith(_PREFIX) and name not in {*known, *_CLIENT_VARIABLES}:
            yield name, difflib.get_close_matches(name.upper(), known, n=1, cutoff=0)[0]
