"""The parameters of the endpoints of jobs: their types, and how they are read."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated

from fastapi import Header
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from pydantic import BeforeValidator, Field, WithJsonSchema

from app.jobs.schemas import LARGEST_ID

MOST_IDS = 100
"""The most ids in one request."""
_ONE_NUMBER = r"[1-9][0-9]{0,18}"


def _number(text: str) -> str:
    # int() also takes 1_0, +1, 1.0 and blanks; one number is to have one spelling
    if re.fullmatch(_ONE_NUMBER, text) is None:
        raise ValueError("a number is written in digits only, the first of them not 0")
    return text


Number = BeforeValidator(_number)
JobIdInPath = Annotated[int, Field(ge=1, le=LARGEST_ID), Number, InPath()]
Limit = Annotated[int, Field(ge=1, le=100), Number]
# Lists, because either may come in several lines, which are read as one (RFC 9110, 5.3).
Lines = Annotated[list[str] | None, WithJsonSchema({"type": "string"})]
IfNoneMatch = Annotated[Lines, Header()]
AcceptEncoding = Annotated[Lines, Header()]
IdempotencyKey = Annotated[
    str | None, Header(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$")
]


def joined(lines: list[str] | None) -> str | None:
    """Return the lines of a header as the one line that they stand for."""
    return None if lines is None else ", ".join(lines)


def read_ids(text: str) -> list[int]:
    """Read a list of job ids, each once, in their order.

    Raises:
        RequestValidationError: a part is not an id, or there are too many.
    """
    parts = text.split(",")
    if len(parts) > MOST_IDS:
        raise invalid("query.ids", f"at most {MOST_IDS} ids")
    ids = []
    for part in parts:
        if re.fullmatch(_ONE_NUMBER, part) is None or int(part) > LARGEST_ID:
            raise invalid("query.ids", "job ids, separated by commas")
        ids.append(int(part))
    return list(dict.fromkeys(ids))


def write_cursor(job_id: int) -> str:
    """Return the cursor of the page that begins below a job."""
    return base64.urlsafe_b64encode(str(job_id).encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> int:
    """Return the job that a page begins below.

    Raises:
        RequestValidationError: the cursor is not one of `write_cursor`.
    """
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (binascii.Error, ValueError):
        text = ""
    # Decoding skips characters that it does not know; one cursor is to have one spelling, too.
    number = int(text) if re.fullmatch(_ONE_NUMBER, text) else 0
    if not 1 <= number <= LARGEST_ID or write_cursor(number) != cursor:
        raise invalid("query.cursor", "a next_cursor of an earlier page")
    return number


def invalid(field: str, message: str) -> RequestValidationError:
    """Return the error for a parameter that is not valid, such as `query.ids`."""
    return RequestValidationError([{"loc": field.split("."), "msg": message, "type": "value"}])
