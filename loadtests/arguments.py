"""Types of command-line arguments."""

from __future__ import annotations

import argparse
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def count(text: str) -> int:
    """Return a number of at least 1."""
    with suppress(ValueError):
        if (number := int(text)) >= 1:
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")


def count_up_to(most: int) -> Callable[[str], int]:
    """Return a type for numbers from 1 to `most`."""

    def limited(text: str) -> int:
        with suppress(ValueError):
            if 1 <= (number := int(text)) <= most:
                return number
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to {most}")

    return limited


def positive(text: str) -> float:
    """Return a number above 0."""
    with suppress(ValueError):
        if (number := float(text)) > 0:
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
