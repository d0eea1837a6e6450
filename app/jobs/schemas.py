"""The bodies of requests and the documents of answers, as pydantic models."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AnyHttpUrl,
    BaseModel,
    BeforeValidator,
    Field,
    StringConstraints,
    TypeAdapter,
)

from app.auth.callers import CLIENT_ID
from app.http.request_body import RequestBody
from app.jobs.states import Status

LARGEST_ID = 2**53 - 1
"""The largest number that every reader of JSON holds exactly (RFC 7493, 2.2)."""

# Python's definition of a blank, for the document: `\s` differs between dialects.
_BLANK = r"\t-\r\u001c-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_NO_NUL = r"^[^\u0000]*$"
_NOT_BLANK = rf"^[^\u0000]*[^\u0000{_BLANK}][^\u0000]*$"
_URL = r"^[Hh][Tt][Tt][Pp][Ss]?://([A-Za-z0-9._~:/?#@!$&'()*+,;=\[\]-]|%[0-9A-Fa-f]{2})+$"


def _storable(text: str) -> str:
    # PostgreSQL stores no NUL, and UTF-8 has no lone surrogates; JSON can carry both.
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("contains a NUL or a lone surrogate")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank")
    return text


def _http_url(text: str) -> str:
    # pydantic corrects a URL before it checks it, but the original text is stored
    if re.fullmatch(_URL[1:-1], text) is None:
        raise ValueError("is not http:// or https:// and the characters of a URL (RFC 3986)")
    TypeAdapter(AnyHttpUrl).validate_python(text)
    return text


def _whole(value: object) -> object:
    # JSON has one kind of number, and JSON Schema calls 7.0 an integer
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _described(pattern: str) -> Any:  # noqa: ANN401 - pydantic's name for it is not public
    return Field(json_schema_extra={"pattern": pattern})


Text = Annotated[str, AfterValidator(_storable), _described(_NO_NUL)]
Shown = Annotated[Text, AfterValidator(_not_blank), _described(_NOT_BLANK)]
Url = Annotated[str, AfterValidator(_http_url), _described(_URL)]
ClientId = Annotated[str, StringConstraints(pattern=CLIENT_ID)]
Whole = BeforeValidator(_whole)
JobId = Annotated[int, Field(strict=True, ge=1, le=LARGEST_ID), Whole]


class CreateJob(RequestBody):
    """A request for a video."""

    client_id: ClientId
    prompt: Annotated[Shown, Field(min_length=1, max_length=2000)]
    scenes: Annotated[int, Field(strict=True, ge=1, le=12), Whole] | None = None
    seconds_per_scene: Annotated[float, Field(strict=True, ge=0.5, le=10, allow_inf_nan=False)] = (
        2.0
    )
    renderer: Literal["builtin", "external"] = "builtin"


class ReportProgress(RequestBody):
    """A worker's report of its progress."""

    percent: Annotated[float, Field(strict=True, ge=0, le=100, allow_inf_nan=False)]
    stage: Annotated[Text, Field(max_length=100)] = ""
    message: Annotated[Text, Field(max_length=500)] = ""


class Complete(RequestBody):
    """A worker's report that it has finished."""

    video_url: Annotated[Url, Field(max_length=2000)] | None = None


class Fail(RequestBody):
    """A worker's report that it has failed."""

    error: Annotated[Shown, Field(min_length=1, max_length=1000)]


class ProgressBody(BaseModel):
    """The progress of a job."""

    percent: float
    stage: str
    message: str
    updated_at: datetime | None


class JobBody(BaseModel):
    """The status of a job, as polls return it."""

    id: int
    client_id: str
    prompt: str
    status: Status
    terminal: bool
    progress: ProgressBody
    version: int
    error: str | None
    storyboard_url: str | None
    video_url: str | None
    created_at: datetime
    updated_at: datetime


class JobPage(BaseModel):
    """A page of a list of jobs, newest first."""

    items: list[JobBody]
    next_cursor: str | None


class JobBatch(BaseModel):
    """The jobs of a request by id, in its order, and the ids that do not exist."""

    items: list[JobBody]
    missing: list[int]
