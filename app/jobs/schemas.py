"""What goes in and out over HTTP: the bodies of requests, and the documents of answers."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    AnyHttpUrl,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
)

from app.access.callers import CLIENT_ID
from app.jobs.states import Status

LARGEST_ID = 2**63 - 1


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
    # pydantic strips and escapes these before it looks, but what is stored is the text as it came
    if any(char == " " or not char.isprintable() for char in text):
        raise ValueError("contains white space or a control character")
    TypeAdapter(AnyHttpUrl).validate_python(text)
    return text


Text = Annotated[str, AfterValidator(_storable)]
ClientId = Annotated[str, StringConstraints(pattern=CLIENT_ID)]
JobId = Annotated[int, Field(strict=True, ge=1, le=LARGEST_ID)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CreateJob(_Request):
    """Ask for a video."""

    client_id: ClientId
    prompt: Annotated[Text, Field(min_length=1, max_length=2000), AfterValidator(_not_blank)]
    scenes: Annotated[int, Field(strict=True, ge=1, le=12)] | None = None
    seconds_per_scene: Annotated[float, Field(strict=True, ge=0.5, le=10, allow_inf_nan=False)] = (
        2.0
    )
    renderer: Literal["builtin", "external"] = "builtin"


class ReportProgress(_Request):
    """A worker tells how far it is."""

    percent: Annotated[float, Field(strict=True, ge=0, le=100, allow_inf_nan=False)]
    stage: Annotated[Text, Field(max_length=100)] = ""
    message: Annotated[Text, Field(max_length=500)] = ""


class Complete(_Request):
    """A worker has finished."""

    video_url: Annotated[Text, Field(max_length=2000), AfterValidator(_http_url)] | None = None


class Fail(_Request):
    """A worker has given up."""

    error: Annotated[Text, Field(min_length=1, max_length=1000), AfterValidator(_not_blank)]


class ProgressBody(BaseModel):
    """How far a job is."""

    percent: float
    stage: str
    message: str
    updated_at: datetime | None


class JobBody(BaseModel):
    """The status of a job: what polls return."""

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
    """The jobs asked for by id, in that order, and the ids nobody knows."""

    items: list[JobBody]
    missing: list[int]
