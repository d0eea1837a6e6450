"""The base of all request bodies: a model that refuses unknown fields, few of them at a time."""

from __future__ import annotations

from itertools import islice

from pydantic import BaseModel, ConfigDict, model_validator

MOST_ERRORS = 20
"""The most errors of one request that an answer lists."""


class RequestBody(BaseModel):
    """The body of a request. Unknown fields are errors; only the first few are examined."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _few_unknown(cls, given: object) -> object:
        # Thousands of fields would each become an error, which takes far longer than to read them.
        if not isinstance(given, dict) or len(given) <= len(cls.model_fields) + MOST_ERRORS:
            return given
        known = {name: given[name] for name in cls.model_fields if name in given}
        unknown = (name for name in given if name not in known)
        return known | dict.fromkeys(islice(unknown, MOST_ERRORS))
