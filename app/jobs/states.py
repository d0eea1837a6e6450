"""The life of a job: its states, and the moves between them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """Where a job is."""

    PENDING = "pending"
    STORYBOARDING = "storyboarding"
    STORYBOARD_READY = "storyboard_ready"
    APPROVED = "approved"
    RENDERING = "rendering"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})
MOVING = frozenset(Status) - TERMINAL


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of state.

    Attributes:
        name: what it is called in an error.
        allowed: the states it may start from.
        to: the state it leads to.
        done: states in which it has happened already, so that repeating it changes nothing.
        external: True if only a job whose renderer is external can be moved so.
    """

    name: str
    allowed: frozenset[Status]
    to: Status
    done: frozenset[Status] = frozenset()
    external: bool = False


_RENDERING = frozenset({Status.RENDERING})

BEGIN_STORYBOARD = Transition(
    "begin the storyboard",
    frozenset({Status.PENDING}),
    Status.STORYBOARDING,
    done=frozenset({Status.STORYBOARDING}),
)
FINISH_STORYBOARD = Transition(
    "finish the storyboard", frozenset({Status.STORYBOARDING}), Status.STORYBOARD_READY
)
APPROVE = Transition(
    "approve",
    frozenset({Status.STORYBOARD_READY}),
    Status.APPROVED,
    done=frozenset({Status.APPROVED, Status.RENDERING, Status.COMPLETED}),
)
RENDER = Transition(
    "render",
    frozenset({Status.APPROVED}),
    Status.RENDERING,
    done=frozenset({Status.RENDERING, Status.COMPLETED}),
)
CANCEL = Transition("cancel", MOVING, Status.CANCELLED, done=frozenset({Status.CANCELLED}))

# The service's own reports on what it renders.
PROGRESS = Transition("report progress", _RENDERING, Status.RENDERING)
COMPLETE = Transition("complete", _RENDERING, Status.COMPLETED, done=frozenset({Status.COMPLETED}))
FAIL = Transition("fail", MOVING, Status.FAILED, done=frozenset({Status.FAILED}))

# A worker's reports on what it renders.
WORKER_PROGRESS = Transition("report progress", _RENDERING, Status.RENDERING, external=True)
WORKER_COMPLETE = Transition(
    "complete", _RENDERING, Status.COMPLETED, done=frozenset({Status.COMPLETED}), external=True
)
WORKER_FAIL = Transition(
    "fail", MOVING, Status.FAILED, done=frozenset({Status.FAILED}), external=True
)
