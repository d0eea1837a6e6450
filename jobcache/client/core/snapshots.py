"""Snapshots: the responses of a URL that is waited for, and what their documents say."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobcache.client.core.messages import Response

_OPERATION_FIELDS = frozenset({"name", "metadata", "done", "error", "response"})  # of AIP-151
_SUCCEEDED = "succeeded"
_ENDED = frozenset({_SUCCEEDED, "failed", "canceled", "cancelled"})
_OF_AZURE = frozenset({"NotStarted", "Running", "InProgress", "Succeeded", "Failed", "Canceled"})
_PERCENT = (
    ("progress", "percent"),
    ("percent",),
    ("percentComplete",),
    ("properties", "percentComplete"),
    ("metadata", "progressPercent"),
    ("metadata", "progressPercentage"),
    ("progress",),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a URL has answered at one time.

    Attributes:
        source: the URL that the caller waits for.
        url: the URL that has answered: another one after `Location`.
        status: the status code of the response.
        headers: of the response, with names in lower case.
        body: the body.
        document: the body if it is JSON, parsed; None if it is not.
        has_ended: what the response says about the end: True, False, or None if it says nothing.
        is_final: whether this is the end as far as the server says.
        error: the error of an operation that has failed; None if there is none.
    """

    source: str
    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    document: Any
    has_ended: bool | None
    is_final: bool = False
    error: Any = None

    @classmethod
    def of(cls, source: str, url: str, response: Response, *, is_monitor: bool) -> Self:
        """Read a response.

        Args:
            source: the URL that the caller waits for.
            url: the URL that has answered.
            response: a successful response.
            is_monitor: whether the URL was named as a status monitor of Azure.

        Raises:
            ValueError: the body is not the JSON that the response says it is.
        """
        document = _parse(response)
        fields = document if isinstance(document, dict) else {}
        status = _azure_status(fields, is_monitor=is_monitor)
        error = fields.get("error")
        if response.status == HTTPStatus.ACCEPTED:
            has_ended: bool | None = False
        elif response.status == HTTPStatus.NO_CONTENT:
            has_ended = True
        elif _is_operation(fields):
            has_ended = fields.get("done") is True
        elif status is not None:
            has_ended = status in _ENDED
            if has_ended and status != _SUCCEEDED:
                error = error or status
        else:
            has_ended = None
        return cls(
            source=source,
            url=url,
            status=response.status,
            headers=response.headers,
            body=response.body,
            document=document,
            has_ended=has_ended,
            error=error,
        )

    def ended(self, is_final: bool) -> Self:  # noqa: FBT001 - the only argument
        """Return the same snapshot, with `is_final`."""
        return replace(self, is_final=is_final)

    @property
    def etag(self) -> str | None:
        """The entity tag; None if there is none."""
        return self.headers.get("etag")

    @property
    def monitor(self) -> str | None:
        """The URL of the status monitor that the response names, as it is written; or None."""
        headers = self.headers
        return headers.get("operation-location") or headers.get("azure-asyncoperation")

    @property
    def resource(self) -> str | None:
        """The URL of the result that the document of a status monitor names; or None."""
        named = self.document.get("resourceLocation") if isinstance(self.document, dict) else None
        return named if isinstance(named, str) else None

    @property
    def percent(self) -> float | None:
        """The progress, 0 to 100; None if the document has no known field for it."""
        for path in _PERCENT:
            value: Any = self.document
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            if isinstance(value, int | float) and not isinstance(value, bool):
                return min(100.0, max(0.0, float(value)))
        return None

    @property
    def label(self) -> str:
        """A word for messages: the status in the document, or that of the response."""
        named = self.document.get("status") if isinstance(self.document, dict) else None
        return named if isinstance(named, str) else str(self.status)


def _parse(response: Response) -> Any:  # noqa: ANN401 - JSON
    kind = response.headers.get("content-type", "").lower()
    if not response.body or (kind and "json" not in kind):
        return None
    try:
        return json.loads(response.body)
    except (ValueError, RecursionError) as error:
        if not kind:
            return None
        raise ValueError(f"the body is not JSON: {error}") from error


def _is_operation(fields: Mapping[str, Any]) -> bool:
    """Return whether these are the fields of an operation of AIP-151.

    Its JSON leaves `done` out while it is false.
    """
    name = fields.get("name")
    if not isinstance(name, str) or not fields.keys() <= _OPERATION_FIELDS:
        return False
    return isinstance(fields.get("done"), bool) or "operations" in name.split("/")


def _azure_status(fields: Mapping[str, Any], *, is_monitor: bool) -> str | None:
    """Return the status of an operation or a resource of Azure, in lower case, or None.

    The status of a monitor may be any word. Elsewhere only the words of Azure's guidelines count:
    `status` is the name of a field in many documents.
    """
    status = fields.get("status")
    if isinstance(status, str) and (is_monitor or status in _OF_AZURE):
        return status.lower()
    properties = fields.get("properties")
    state = properties.get("provisioningState") if isinstance(properties, dict) else None
    return state.lower() if isinstance(state, str) else None
